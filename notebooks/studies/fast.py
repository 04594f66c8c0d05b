"""What cheaper decoders cost in accuracy and bring in time, in the shapes world: `datekit bench --decoders`.

Two questions: does the update point where the exact one does, step by step; and what does held-out quality do at equal time?
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from datekit.rewards.decoders import Linear, Resized, Tiny, through
from datekit.methods import DATE, Fixed
from datekit.sampler import Sampler
from datekit.schedules import fraction
from datekit.types import unit
from datekit.evaluation.machine import facts
from datekit.statistics import bootstrap
from studies.trials import COST, FIXED, Notes, Trials, fingerprint, summary, table

KINDS = {
    "resized (half)": Resized(0.5),
    "resized (quarter)": Resized(0.25),
    "linear": Linear(),
    "tiny": Tiny(),
}
EQUAL_TIME = ("linear", "tiny")  # beside which the exact update stands, on fewer steps


def bench(
    out: str | Path,
    *,
    model: str = "shapes",
    pairs: int = 304,
    rho: float = 0.6,
    seed: int = 0,
    cosine_pairs: int = 32,
    steps: int = 20,
) -> dict:
    """Measure both and write to `out` (JSON); goes on where it was interrupted.

    rho: the same for all; prompts are held out, the same noise for every row.
    """
    from datekit.shapes.captions import prompts

    out = Path(out)
    settings = {
        "model": model,
        "pairs": pairs,
        "rho": rho,
        "seed": seed,
        "steps": steps,
        "weights": fingerprint(model),
    }
    notes = Notes(out, settings)
    trials = Trials(model, prompts("heldout", pairs, seed, part="test"), seed, steps=steps)
    cosines = agreement(
        trials.backbone,
        trials.guide,
        trials.prompts[:cosine_pairs],
        trials.seeds[:cosine_pairs],
        trials.steps,
    )
    rows = {
        name: notes.get(name, lambda draw=draw: trials.judge(draw()))
        for name, draw in _first(trials, rho)
    }
    rows |= {
        name: notes.get(name, lambda draw=draw: trials.judge(draw()))
        for name, draw in _equal_time(trials, rho, rows)
    }
    content = {
        "command": "datekit bench --decoders",
        **facts(),
        **settings,
        "steps": trials.steps,
        "cosine pairs": len(trials.prompts[:cosine_pairs]),
        "cosine of eps_hat to the exact one": cosines,
        "rows": {name: summary(row, rows[FIXED]) for name, row in rows.items()},
    }
    return notes.finish(content)


def agreement(
    backbone,
    reward,
    prompts: list[str],
    seeds: list[int],
    steps: int,
    kinds: dict | None = None,
    batch: int = 16,
) -> dict:
    """The cosine of eps_hat through each decoder to the exact one, by step: mean and 95 % interval over samples.

    All are taken at the states of the same run with a fixed embedding, so that they differ by the decoder alone.
    """
    kinds = KINDS if kinds is None else kinds
    found: dict[str, list] = {name: [[] for _ in range(steps)] for name in kinds}
    for start in range(0, len(prompts), batch):
        rows = slice(start, start + batch)
        sampler = Sampler(backbone, Fixed(), num_steps=steps)
        state = sampler.init(prompts[rows], seeds=seeds[rows])
        for i in range(steps):
            exact = sampler.look(state, reward).direction.flatten(1)
            for name, kind in kinds.items():
                fast = unit(sampler.look(state, through(reward, kind)).grad).flatten(1)
                found[name][i] += (exact * fast).sum(1).tolist()
            with torch.no_grad():
                state, _ = sampler.step(state)
    rounded = lambda values: [round(x, 4) for x in bootstrap(values)]
    return {
        name: {
            "by step": [rounded(values) for values in by_step],
            "all steps": rounded([sum(sample) / steps for sample in zip(*by_step, strict=True)]),
        }
        for name, by_step in found.items()
    }


def _first(trials: Trials, rho: float) -> Iterator[tuple[str, Callable]]:
    yield FIXED, lambda: trials.sample(Fixed())
    yield "exact, all steps", lambda: trials.sample(DATE(trials.guide, rho=rho))
    for name, kind in KINDS.items():
        yield (
            f"{name}, all steps",
            lambda kind=kind: trials.sample(DATE(trials.guide, rho=rho, decoder=kind)),
        )


def _equal_time(trials: Trials, rho: float, rows: dict) -> Iterator[tuple[str, Callable]]:
    """The exact update on as many steps, and a fixed embedding with as many more steps, as take a cheap decoder's processor time."""
    fixed, exact = (rows[name][COST] for name in (FIXED, "exact, all steps"))
    for cheap in EQUAL_TIME:
        fast = rows[f"{cheap}, all steps"][COST]
        share = min(1.0, max(1 / trials.steps, (fast - fixed) / max(exact - fixed, 1e-9)))
        few = DATE(trials.guide, rho=rho, when=fraction(share))
        yield f"exact, {share:.0%} of steps (time of {cheap})", lambda few=few: trials.sample(few)
        more = max(trials.steps, round(trials.steps * fast / fixed))
        yield (
            f"fixed, {more} steps (time of {cheap})",
            lambda more=more: trials.sample(Fixed(), num_steps=more),
        )


def markdown(content: dict) -> str:
    """Both measurements as Markdown tables."""
    cosines = content["cosine of eps_hat to the exact one"]
    steps = len(next(iter(cosines.values()))["by step"])
    shown = sorted({0, steps // 4, steps // 2, 3 * steps // 4, steps - 1})
    lines = [
        f"| decoder | all steps | {' | '.join(f'step {i}' for i in shown)} |",
        "|---" * (2 + len(shown)) + "|",
    ]
    for name, row in cosines.items():
        mean, low, high = row["all steps"]
        by_step = " | ".join(f"{row['by step'][i][0]:.3f}" for i in shown)
        lines.append(f"| {name} | {mean:.3f} [{low:.3f}, {high:.3f}] | {by_step} |")
    return "\n".join([*lines, "", table(content["rows"], price="processor s / picture")])
