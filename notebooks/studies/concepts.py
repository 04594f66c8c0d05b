"""Several things at once: what goes wrong, and what DATE mends, by reward and by timestep.

Two things with colours, the same in a relation, and three things, in turn. The guiding reward is of
the whole prompt, or the minimum or the sum of it over the prompt's parts. rho is chosen for each
reward, updating at all steps; parts as texts of their own take that of what parts add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import datekit as dk
from datekit.methods import DATE, Fixed
from datekit.schedules import early, every, late, middle
from studies.mistakes import FAILURES
from studies.results import FIXED, TITLES, cell, grid
from studies.runner import Course
from studies.study import Row, Study

FAMILIES = ("attribution", "position", "three")
REWARDS = ("whole prompt", "min over parts", "sum over parts")
ALONE = "min over parts, each alone"  # a part as a text of its own
WHEN = {"all": every(), "early": early(), "middle": middle(), "late": late()}
SHARES = (1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16)  # of ||c_org||


def texts(n: int, seed: int, part: str) -> list[str]:
    """n prompts, held-out pairs of things only, the families in turn."""
    count = -(-n // len(FAMILIES))
    each = [dk.shapes.prompts("heldout", count, seed, family, part) for family in FAMILIES]
    mixed: list[str] = []
    for row in zip(*each, strict=True):
        mixed.extend(row)
    return mixed[:n]


def rhos(course: Course) -> list[float]:
    """The rho to choose from."""
    return [float(f"{share * course.trials().scale:.3g}") for share in SHARES]


def updates(when: dk.Schedule) -> Callable[[Any, float], DATE]:
    """DATE at these steps."""
    return lambda h, s: DATE(h, s, when)


def _rows() -> list[Row]:
    rows = [Row(FIXED, lambda h, s: Fixed())]
    for stage, when in WHEN.items():
        for name in (*REWARDS, ALONE) if stage == "all" else REWARDS:
            like = REWARDS[1] if name == ALONE else name
            chosen = stage == "all" and name != ALONE
            tuned = {"grid": rhos} if chosen else {"of": f"{like}, all"}
            guide = "guide" if name == REWARDS[0] else name
            about = {"guide": guide, "words": "rho {0:g}", "tags": (name, stage)}
            rows.append(Row(f"{name}, {stage}", updates(when), **tuned, **about))
    return rows


def _extra(course: Course) -> dict:
    return {"families": list(FAMILIES)}


STUDY = Study(
    "concepts",
    tuple(_rows()),
    ("guide", "heldout", *FAILURES, "oracle"),
    prompts=texts,
    steps=20,
    pairs=216,
    tuning_pairs=256,
    heat=64,
    seed=10,
    extra=_extra,
)


def markdown(content: Mapping) -> str:
    """Pictures that are all right and each failure, with paired differences to the fixed."""
    kinds = ("oracle", *FAILURES)
    rows = content["rows"].items()
    lines = [[name, *(cell(name, row, kind, ".1%") for kind in kinds)] for name, row in rows]
    return grid(["reward, steps", *(TITLES.get(kind, kind) for kind in kinds)], lines)
