"""The ablation study on held-out prompts: one thing changed at a time, every reward judging.

The main rows and the groups that a claim of the paper rests on (`DECIDING`) have all pairs, the
others the first `side_pairs`, so that every row is paired with the fixed embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import datekit as dk
from datekit.methods import DATE, Fixed, RandomDirection
from datekit.methods.rho_rules import Taylor
from datekit.schedules import early, every, fraction, late, middle
from studies.results import FIXED
from studies.rules import SignalToNoise, Unnormalised
from studies.study import Row, Study
from studies.trials import JUDGES, Draw, Trials

RHOS = (0.5, 1.0, 2.0, 4.0)  # to choose from; ||c_org|| is 38.5 on the shipped model
RUNNING_RHOS = (0.075, 0.15, 0.3, 0.6)  # twenty displacements add up: its grid starts lower
TOLERANCES = (0.25, 0.5, 1.0)  # of the Taylor rule
MOSTS = (2.0, 4.0, 8.0)  # of the rule by signal to noise
SWEEP = (0.125, 0.25, 0.5, 2.0, 8.0)  # of each reward, displacements adding up
GUIDANCE = (5.0, 14.0)
REWARDS = ("guide", "preference", "aesthetic", "guide + preference", "guide + aesthetic")
DECIDING = ("adaptive", "direction", "anchor", "rho")

ALL, HALF, RUNNING = "DATE, all steps", "DATE, 50 % of steps", "DATE, all steps, running"
FEW_STEPS, HALF_STEPS = fraction(0.1), fraction(0.5)
TAYLOR_STEPS = fraction(0.4)  # what costs about as much as a constant rho at half of the steps
SIGNAL_STEPS = fraction(0.25)
RHO = "rho {0:g}"


class _OfNoisy:
    """A reward of the noisy xt that DDIM's mean leads to from x0bar, in one step of a batch."""

    def __init__(self, reward: Any, denoiser: Any) -> None:
        self.reward, self.denoiser = reward, denoiser

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return self.reward(images, prompts)

    def decoder(self, backbone: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        """What decodes the noisy latent in place of x0bar."""
        solver, state = self.denoiser.solver, self.denoiser.state

        def decode(x0bar: torch.Tensor) -> torch.Tensor:
            alpha, sigma = solver.level(state.i)
            eps = (state.xt.to(x0bar) - alpha * x0bar) / sigma
            return backbone.decode(solver.add_noise(x0bar, eps, state.i + 1))

        return decode


class NoisyDATE(DATE):
    """DATE whose reward judges the noisy xt that the step leads to, in place of x0bar."""

    listed = False

    def condition(self, denoiser: Any, state: Any) -> Any:
        """The embedding of this step."""
        noisy = DATE(**vars(self) | {"reward": _OfNoisy(self.reward, denoiser)})
        return noisy.condition(denoiser, state)


def half(h: Any, s: float) -> DATE:
    """Eq. 14 at half of the steps."""
    return DATE(h, s, HALF_STEPS)


def few(h: Any, s: float) -> DATE:
    """Eq. 14 at a tenth of the steps."""
    return DATE(h, s, FEW_STEPS)


def running(h: Any, s: float) -> DATE:
    """Displacements that add up, at all steps."""
    return DATE(h, s, anchor="running")


def running_at(share: float, inner_steps: int = 1) -> Callable[[Any, float], DATE]:
    """Displacements that add up, at a share of the steps."""
    return lambda h, s: DATE(h, s, fraction(share), "running", inner_steps=inner_steps)


def mean_gradient(trials: Trials, rho: float) -> float:
    """||grad_c h|| of DATE at half of the steps, averaged over steps and a batch of pairs."""
    batch = next(trials.batches())
    sampler = dk.Sampler(trials.backbone, half(trials.guide, rho), num_steps=trials.steps)
    history = sampler.start(batch.prompts, seeds=batch.seeds).finish(progress=False).history
    norms = [info.grad_norm for info in history if info.grad is not None]
    return torch.stack(norms).mean().item()


def unnormalised(trials: Trials, rho: float) -> Draw:
    """c_org + s grad_c h, where s is such that the mean length is rho."""
    factor = round(rho / mean_gradient(trials.tuning, rho), 4)
    return trials.sample(DATE(trials.guide, Unnormalised(factor), HALF_STEPS))


def in_half_precision(method: str) -> Any:
    """The network in bfloat16; embedding, reward and solver stay in float32."""

    def make(trials: Trials, rho: float) -> Draw:
        backbone = dk.load(trials.model, device="cpu", dtype=torch.bfloat16)
        own = Fixed() if method == FIXED else half(trials.guide, rho)
        return trials.sample(own, backbone=backbone)

    return make


def thirds() -> list[Row]:
    """Updates in one third of the steps."""
    schedules = {"early": early(), "middle": middle(), "late": late()}
    return [
        Row(f"DATE, {name} third", lambda h, s, when=when: DATE(h, s, when), of=HALF, tags=(name,))
        for name, when in schedules.items()
    ]


def main_rows() -> list[Row]:
    """The main rows, the most telling first."""
    return [
        Row(FIXED, lambda h, s: Fixed(), tags=("fixed",)),
        Row(ALL, DATE, of=HALF, tags=("all",)),
        Row("best of 2", lambda h, s: Fixed(), count=2, tags=("best of 2",)),
        Row("DATE, 10 % of steps", few, of=HALF, tags=("few",)),
        Row("best of 4", lambda h, s: Fixed(), count=4, tags=("best of 4",)),
        Row("DATE, 10 % of steps, then best of 2", few, of=HALF, count=2),
        Row(HALF, half, RHOS, words=RHO, tags=("half",)),
        Row(RUNNING, running, RUNNING_RHOS, words=RHO, tags=("running",)),
        Row("fixed, 1.4 times the steps", lambda h, s: Fixed(), longer=1.4, tags=("more steps",)),
        Row("random direction of the same length, all steps", lambda h, s: RandomDirection(s),
            of=HALF, tags=("random",)),
        *thirds(),
    ]  # fmt: skip


def reward_rows() -> list[Row]:
    """Each reward guiding alone and in sums, displacements adding up over a fifth of the steps."""
    rows = []
    for name in REWARDS:
        for rho in SWEEP:
            about = {"guide": name, "group": "reward", "tags": (f"guided by {name}",)}
            rows.append(Row(f"{name}, rho {rho:g}", running_at(0.2), (rho,), **about))
    return rows


def rho_rows() -> list[Row]:
    """Eq. 14 with other rho than the chosen one, at half of the steps."""
    values = (*RHOS, 2 * RHOS[-1])
    rows = [Row("chosen", same=HALF, group="rho", tags=("a rho",))]
    for rho in values:
        tags = ("a rho", "largest rho") if rho == values[-1] else ("a rho",)
        rows.append(Row(f"rho {rho:g}", half, (rho,), group="rho", tags=tags))
    return rows


def inner_rows() -> list[Row]:
    """One update in a step repeated, and as many updates spread over more steps."""
    rows = []
    for share, count in ((0.2, 1), (0.2, 2), (0.2, 4), (0.4, 1)):
        name = f"{count} in {share:.0%} of the steps"
        rows.append(Row(name, running_at(share, count), of=RUNNING, group="inner steps"))
    return rows


def guidance_rows() -> list[Row]:
    """Other guidance scales than the recommended one, fixed and DATE at half of the steps."""
    rows = [
        Row("fixed, as recommended", same=FIXED, group="guidance"),
        Row("DATE, as recommended", same=HALF, group="guidance"),
    ]
    for w in GUIDANCE:
        about = {"settings": {"guidance_scale": w}, "group": "guidance"}
        rows.append(Row(f"fixed, guidance {w:g}", lambda h, s: Fixed(), **about))
        rows.append(Row(f"DATE, guidance {w:g}", half, of=HALF, **about))
    return rows


ROWS = (
    *main_rows(),
    *reward_rows(),
    Row("constant", same=HALF, group="adaptive", tags=("constant",)),
    Row("Taylor", lambda h, s: DATE(h, Taylor(s), TAYLOR_STEPS), TOLERANCES,
        words="tolerance {0:g}", group="adaptive", tags=("Taylor",)),
    Row("signal to noise", lambda h, s: DATE(h, SignalToNoise(s), SIGNAL_STEPS), MOSTS,
        words="at most {0:g}", group="adaptive", tags=("signal to noise",)),
    Row("best of 3", lambda h, s: Fixed(), count=3, group="best of"),
    Row("best of 8", lambda h, s: Fixed(), count=8, group="best of"),
    Row("DATE, 10 % of steps, then best of 4", few, of=HALF, count=4, group="best of"),
    Row("DATE", same=HALF, group="direction", tags=("normalised",)),
    Row("random", lambda h, s: RandomDirection(s, when=HALF_STEPS), of=HALF, group="direction"),
    Row("unnormalised, of the same mean length", make=unnormalised, of=HALF, group="direction",
        tags=("unnormalised",)),
    Row("reward of xt instead of x0bar", lambda h, s: NoisyDATE(h, s, HALF_STEPS), of=HALF,
        group="direction", tags=("of xt",)),
    Row("original", same=ALL, group="anchor"),
    Row("running", same=RUNNING, group="anchor", tags=("anchor running",)),
    Row("reset", lambda h, s: DATE(h, s, anchor="reset"), of=HALF, group="anchor",
        tags=("anchor reset",)),
    *guidance_rows(),
    *rho_rows(),
    *inner_rows(),
    Row("hold", lambda h, s: DATE(h, s, every(5)), of=HALF, group="between"),
    Row("revert", lambda h, s: DATE(h, s, every(5), between="revert"), of=HALF, group="between"),
    Row("fixed, bfloat16", make=in_half_precision(FIXED), group="precision"),
    Row("DATE, bfloat16", make=in_half_precision("DATE"), of=HALF, group="precision"),
)  # fmt: skip

STUDY = Study(
    "ablate",
    ROWS,
    (*JUDGES, "oracle"),
    file="ablations",
    judges=tuple(JUDGES),
    steps=20,
    pairs=304,
    side_pairs=192,
    tuning_pairs=256,
    deciding=DECIDING,
)
