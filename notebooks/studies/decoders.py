"""What cheaper decoders cost in accuracy and bring in time, in the shapes world.

Does the update point where the exact one does, step by step; and what does held-out quality do at
equal time?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

import datekit as dk
from datekit.methods import DATE, Fixed
from datekit.rewards.decoders import Tiny, through
from datekit.schedules import fraction
from datekit.statistics import bootstrap
from datekit.types import unit
from studies.cheap_decoders import Linear, Resized
from studies.results import COST, FIXED, MEASURES, grid, rounded, table, with_settings
from studies.runner import Course
from studies.study import Row, Study
from studies.trials import Trials

KINDS = {
    "resized (half)": Resized(0.5),
    "resized (quarter)": Resized(0.25),
    "linear": Linear(),
    "tiny": Tiny(),
}
EQUAL_TIME = ("linear", "tiny")  # beside which the exact update stands, on fewer steps
EXACT = "exact, all steps"
RHO = 0.6  # the same for all
COSINE_PAIRS = 32
COSINES = "cosine of eps_hat to the exact one"


def cosines(trials: Trials, kinds: Mapping = KINDS) -> dict:
    """The cosine of eps_hat through each decoder to the exact one: mean and interval, by step.

    All are taken at the states of one run with a fixed embedding, so that they differ by the
    decoder alone.
    """
    by_step = {name: [[] for _ in range(trials.steps)] for name in kinds}
    sampler = dk.Sampler(trials.backbone, Fixed(), num_steps=trials.steps)
    for batch in trials.batches(min(COSINE_PAIRS, len(trials.prompts))):
        state = sampler.init(batch.prompts, seeds=batch.seeds)
        for i in range(trials.steps):
            with sampler.pause(state) as denoiser:
                exact = unit(denoiser.value_and_grad(trials.guide).grad).flatten(1)
                for name, kind in kinds.items():
                    seen = denoiser.value_and_grad(through(trials.guide, kind))
                    cosine = (exact * unit(seen.grad).flatten(1)).sum(1)
                    by_step[name][i] += cosine.tolist()
            with torch.no_grad():
                state, _ = sampler.step(state)
    result = {}
    for name, rows in by_step.items():
        mean = [sum(sample) / trials.steps for sample in zip(*rows, strict=True)]
        by_row = [rounded(bootstrap(row)) for row in rows]
        result[name] = {"by step": by_row, "all steps": rounded(bootstrap(mean))}
    return result


def fewer(cheap: str) -> Callable[[Course], list[float]]:
    """The share of steps that the exact update can have in the time of a cheap decoder."""

    def grid(course: Course) -> list[float]:
        fixed, exact, fast = (
            course.rows[name][COST] for name in (FIXED, EXACT, f"{cheap}, all steps")
        )
        share = (fast - fixed) / max(exact - fixed, 1e-9)
        return [min(1.0, max(1 / course.trials().steps, share))]

    return grid


def more(cheap: str) -> Callable[[Course], list[int]]:
    """As many steps as the fixed embedding can have in the time of a cheap decoder."""

    def grid(course: Course) -> list[int]:
        steps = course.trials().steps
        ratio = course.rows[f"{cheap}, all steps"][COST] / course.rows[FIXED][COST]
        return [max(steps, round(steps * ratio))]

    return grid


def longer(trials: Trials, steps: int):
    """The fixed embedding at so many steps."""
    return trials.sample(Fixed(), num_steps=steps)


def date_at(h: Any, share: float) -> DATE:
    """The exact update at a share of the steps."""
    return DATE(h, RHO, fraction(share))


def through_kind(kind: Any) -> Callable[[Any, None], DATE]:
    """The update at all steps through a decoder."""
    return lambda h, s: DATE(h, RHO, decoder=kind)


def _rows() -> list[Row]:
    rows = [Row(FIXED, lambda h, s: Fixed()), Row(EXACT, lambda h, s: DATE(h, RHO))]
    for name, kind in KINDS.items():
        rows.append(Row(f"{name}, all steps", through_kind(kind), tags=("cheap",)))
    for cheap in EQUAL_TIME:
        name = f"exact, in the time of {cheap}"
        rows.append(Row(name, date_at, fewer(cheap), words="{0:.0%} of steps"))
        rows.append(
            Row(f"fixed, in the time of {cheap}", make=longer, grid=more(cheap), words="{0} steps")
        )
    return rows


def _extra(course: Course) -> dict:
    trials = course.trials()
    about = {"rho": RHO, "cosine pairs": min(COSINE_PAIRS, len(trials.prompts))}
    return about | {COSINES: cosines(trials)}


STUDY = Study("decoders", tuple(_rows()), MEASURES, steps=20, tuning_pairs=16, extra=_extra)


def markdown(content: Mapping) -> str:
    """Both measurements as Markdown tables."""
    rows = content[COSINES]
    steps = len(next(iter(rows.values()))["by step"])
    shown = sorted({0, steps // 4, steps // 2, 3 * steps // 4, steps - 1})
    lines = []
    for name, row in rows.items():
        mean, low, high = row["all steps"]
        by_step = [f"{row['by step'][i][0]:.3f}" for i in shown]
        lines.append([name, f"{mean:.3f} [{low:.3f}, {high:.3f}]", *by_step])
    head = ["decoder", "all steps", *(f"step {i}" for i in shown)]
    judged = table(with_settings(content["rows"]), price="processor s / picture")
    return f"{grid(head, lines)}\n\n{judged}"
