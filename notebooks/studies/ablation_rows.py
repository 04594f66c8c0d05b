"""The rows of the ablation study: what varies, from what is chosen on other prompts.

A group is a function of (bench, tuning bench, chosen) that gives (name, what to draw): a function that makes the drawing function, or
the name of the main row that it repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from datekit import rewards
from datekit.backbones import load
from datekit.methods import DATE, Fixed, Method, RandomDirection
from datekit.methods.rho_rules import SignalToNoise, Taylor, Unnormalised
from datekit.sampler import Sampler
from datekit.schedules import early, every, fraction, late, middle
from studies.ablation import FIXED, Bench
from studies.trials import Notes, best

Rows = Iterator[tuple[str, Callable[[], Callable] | str]]

RHOS = (0.3, 0.6, 1.2, 2.4)  # to choose from; ||c_org|| is 38.5 on the shipped model
RUNNING_RHOS = (0.075, 0.15, 0.3, 0.6)  # twenty displacements add up: its grid starts lower
TOLERANCES = (0.25, 0.5, 1.0)  # of the Taylor rule
MOSTS = (0.6, 1.2, 2.4, 4.8)  # of the rule by signal to noise
SWEEP = (0.3, 0.6, 1.2, 2.4, 4.8)  # of the rho sweep of each reward, displacements adding up
GUIDANCE = (3.0, 5.0)
HALF, ALL, RUNNING = "DATE, 50 % of steps", "DATE, all steps", "DATE, all steps, running"
TAYLOR_SHARE, SIGNAL_SHARE = (
    0.4,
    0.25,
)  # of the steps: what costs about as much as a constant rho at half of them
REWARDS = ("guide", "preference", "aesthetic", "guide + preference", "guide + aesthetic")


def choose(bench: Bench, notes: Notes, parts: Sequence[str]) -> dict:
    """rho of DATE and of the other anchors, and the settings of the rules, by the held-out reward on the bench's prompts."""

    def liked(label: str, options: Sequence[float], method: Callable) -> float:
        return best(
            {
                x: notes.get(
                    f"tune: {label} {x:g}", lambda x=x: bench.judge(bench.sample(method(x)))
                )
                for x in options
            }
        )

    chosen = {
        "rho": liked(
            "DATE, 50 %, rho", RHOS, lambda rho: DATE(bench.guide, rho=rho, when=fraction(0.5))
        ),
        "rho, running": liked(
            "DATE, all, running, rho",
            RUNNING_RHOS,
            lambda rho: DATE(bench.guide, rho=rho, anchor="running"),
        ),
    }
    if "anchor" in parts:
        chosen["rho, reset"] = liked(
            "DATE, all, reset, rho", RHOS, lambda rho: DATE(bench.guide, rho=rho, anchor="reset")
        )
    if "adaptive" in parts:
        chosen["tolerance"] = liked("Taylor, tolerance", TOLERANCES, lambda x: _taylor(bench, x))
        chosen["most"] = liked("signal to noise, most", MOSTS, lambda x: _signal(bench, x))
    if {"adaptive", "direction"} & set(parts):
        chosen["mean gradient"] = _mean_gradient(bench, chosen["rho"])
    return chosen


def main(bench: Bench, chosen: dict) -> Rows:
    """The main rows, the most telling first."""
    rho = chosen["rho"]
    date = lambda **settings: lambda: bench.sample(DATE(bench.guide, **{"rho": rho} | settings))
    few = DATE(bench.guide, rho=rho, when=fraction(0.1))
    more = round(1.4 * bench.steps)
    yield FIXED, lambda: bench.sample(Fixed())
    yield ALL, date()
    yield "best of 2", lambda: bench.sample(Fixed(), count=2)
    yield "DATE, 10 % of steps", date(when=fraction(0.1))
    yield "best of 4", lambda: bench.sample(Fixed(), count=4)
    yield "DATE, 10 % of steps, then best of 2", lambda: bench.sample(few, count=2)
    yield HALF, date(when=fraction(0.5))
    yield RUNNING, date(rho=chosen["rho, running"], anchor="running")
    yield f"{FIXED}, {more} steps", lambda: bench.sample(Fixed(), num_steps=more)
    yield (
        f"random direction of length {rho:g}, all steps",
        lambda: bench.sample(RandomDirection(rho)),
    )
    for name, third in (("early", early()), ("middle", middle()), ("late", late())):
        yield f"DATE, {name} third", date(when=third)


def which_reward(bench: Bench, tuning: Bench, chosen: dict) -> Rows:
    """Each reward guiding alone and in sums, displacements adding up over a fifth of the steps, over a sweep of rho."""
    scale = _Scale(tuning)
    for name in REWARDS:
        for rho in SWEEP:
            yield (
                f"{name}, rho {rho:g}",
                lambda name=name, rho=rho: bench.sample(
                    DATE(scale(bench, name), rho=rho, anchor="running", when=fraction(0.2))
                ),
            )


def rho(bench: Bench, tuning: Bench, chosen: dict) -> Rows:
    """Eq. 14 with other rho_rules than the chosen one, at half of the steps."""
    for value in sorted({RHOS[0], RHOS[-2], 2 * RHOS[-1], chosen["rho"]}):
        made = (
            HALF
            if value == chosen["rho"]
            else lambda value=value: bench.sample(DATE(bench.guide, rho=value, when=fraction(0.5)))
        )
        yield f"rho {value:g}", made


def inner_steps(bench: Bench, tuning: Bench, chosen: dict) -> Rows:
    """One update in a step repeated, and as many updates spread over more steps, displacements adding up."""
    rho = chosen["rho, running"]
    make = lambda share, count: (
        lambda: bench.sample(
            DATE(bench.guide, rho=rho, anchor="running", when=fraction(share), inner_steps=count)
        )
    )
    for share, count in ((0.2, 1), (0.2, 2), (0.2, 4), (0.4, 1)):
        yield f"{count} in {share:.0%} of the steps", make(share, count)


def anchor(bench: Bench, tuning: Bench, chosen: dict) -> Rows:
    """Where the gradient is taken and what is moved, at all steps, each with its own chosen rho."""
    yield "original", ALL
    yield "running", RUNNING
    yield "reset", lambda: bench.sample(DATE(bench.guide, rho=chosen["rho, reset"], anchor="reset"))


def between(bench: Bench, tuning: Bench, chosen: dict) -> Rows:
    """What a step without an update is told, with one update in five steps."""
    for word in ("hold", "revert"):
        yield (
            word,
            lambda word=word: bench.sample(
                DATE(bench.guide, rho=chosen["rho"], when=every(5), between=word)
            ),
        )


def direction(bench: Bench, tuning: Bench, chosen: dict) -> Rows:
    """Other directions and lengths of the same size, at half of the steps."""
    rho, half = chosen["rho"], fraction(0.5)
    yield "DATE", HALF
    yield "random", lambda: bench.sample(RandomDirection(rho, when=half))
    yield (
        "unnormalised, of the same mean length",
        lambda: bench.sample(DATE(bench.guide, rho=_unnormalised(chosen), when=half)),
    )
    yield (
        "reward of xt instead of x0bar",
        lambda: bench.sample(DATE(bench.guide, rho=rho, when=half, seen="xt")),
    )


def guidance(bench: Bench, tuning: Bench, chosen: dict) -> Rows:
    """Other guidance scales, fixed and DATE at half of the steps."""
    default = bench.backbone.recommended.guidance_scale
    for w in sorted({*GUIDANCE, default}):
        date = lambda w=w: bench.sample(
            DATE(bench.guide, rho=chosen["rho"], when=fraction(0.5)), guidance_scale=w
        )
        yield (
            f"fixed, guidance {w:g}",
            FIXED if w == default else lambda w=w: bench.sample(Fixed(), guidance_scale=w),
        )
        yield f"DATE, guidance {w:g}", HALF if w == default else date


def precision(bench: Bench, tuning: Bench, chosen: dict) -> Rows:
    """The network in bfloat16; embedding, reward and solver stay in float32."""

    def half_precision(method: Method) -> Callable:
        sampler = Sampler(
            load(bench.backbone.source, device="cpu", dtype=torch.bfloat16),
            method,
            num_steps=bench.steps,
        )
        return lambda prompts, seeds: (
            sampler.start(prompts, seeds=seeds).finish(progress=False).pixels
        )

    yield "fixed, bfloat16", lambda: half_precision(Fixed())
    yield (
        "DATE, bfloat16",
        lambda: half_precision(DATE(bench.guide, rho=chosen["rho"], when=fraction(0.5))),
    )


def adaptive(bench: Bench, tuning: Bench, chosen: dict) -> Rows:
    """Rules for rho at about the cost of the constant rho at half of the steps."""
    yield f"constant, rho {chosen['rho']:g}", HALF
    yield (
        f"Taylor, tolerance {chosen['tolerance']:g}",
        lambda: bench.sample(_taylor(bench, chosen["tolerance"])),
    )
    yield (
        f"signal to noise, most {chosen['most']:g}",
        lambda: bench.sample(_signal(bench, chosen["most"])),
    )


def best_of_more(bench: Bench, tuning: Bench, chosen: dict) -> Rows:
    """More points for the plot of quality against time: best of N, and a few updates first."""
    few = DATE(bench.guide, rho=chosen["rho"], when=fraction(0.1))
    yield "best of 3", lambda: bench.sample(Fixed(), count=3)
    yield "best of 8", lambda: bench.sample(Fixed(), count=8)
    yield "DATE, 10 % of steps, then best of 4", lambda: bench.sample(few, count=4)


GROUPS = {
    "reward": which_reward, "adaptive": adaptive, "best of": best_of_more, "direction": direction, "anchor": anchor, "guidance": guidance,
    "rho": rho, "inner steps": inner_steps, "between": between, "precision": precision,
}  # fmt: skip
DECIDING = (
    "adaptive",
    "direction",
    "anchor",
    "rho",
)  # a claim of the paper rests on them, so they get as many pairs as the main rows


class _Scale:
    """Rewards by name, terms of a sum on a common scale: that of what the fixed embedding draws for other prompts."""

    def __init__(self, tuning: Bench) -> None:
        self.tuning, self._pictures = tuning, None

    def __call__(self, bench: Bench, name: str) -> rewards.Reward:
        parts = [bench.judges[part] for part in name.split(" + ")]
        if len(parts) == 1:
            return parts[0]
        if self._pictures is None:
            draw = self.tuning.sample(Fixed())
            self._pictures = torch.cat(
                [draw(prompts, seeds) for prompts, seeds in self.tuning.batches()]
            )
        return sum(parts).standardised(self._pictures, self.tuning.prompts)


def _taylor(bench: Bench, tolerance: float) -> DATE:
    return DATE(bench.guide, rho=Taylor(tolerance), when=fraction(TAYLOR_SHARE))


def _signal(bench: Bench, most: float) -> DATE:
    return DATE(bench.guide, rho=SignalToNoise(most), when=fraction(SIGNAL_SHARE))


def _unnormalised(chosen: dict) -> Unnormalised:
    return Unnormalised(round(chosen["rho"] / chosen["mean gradient"], 4))


def _mean_gradient(bench: Bench, rho: float) -> float:
    """||grad_c h|| of DATE, averaged over steps and samples of a batch."""
    prompts, seeds = next(bench.batches())
    run = Sampler(
        bench.backbone, DATE(bench.guide, rho=rho, when=fraction(0.5)), num_steps=bench.steps
    ).start(prompts, seeds=seeds)
    return round(
        torch.stack(
            [info.grad_norm for info in run.finish(progress=False).history if info.grad is not None]
        )
        .mean()
        .item(),
        5,
    )
