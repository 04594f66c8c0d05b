"""How strong an attack, how many x0bars and how long: settings of the robust guide's training.

Each guide moves the embedding of tuning prompts as the demo does, by Eq. 14. Those trained for this
had half of the recipe's steps, and are to be compared with its own settings at as many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datekit as dk
from datekit.methods import DATE, Fixed
from studies.results import FIXED, TITLES, cell, grid
from studies.study import Row, Study
from studies.unshipped_guides import SETTINGS
from studies.what_guides import GuideTrials

GUIDES = {"as it ships": "guide"} | {name: name for name in SETTINGS}
RHO = 1.0
MEASURES = ("plain", "heldout", "oracle")


def texts(n: int, seed: int, part: str) -> list[str]:
    """Tuning prompts alone: what is chosen here is judged elsewhere."""
    return dk.shapes.prompts("heldout", n, seed, part="tune")


def _guided(h: Any, rho: float) -> DATE:
    return DATE(h, rho, decoder="tiny")


STUDY = Study(
    "guide-recipe",
    (
        Row(FIXED, lambda h, s: Fixed()),
        *(Row(name, _guided, (RHO,), guide=guide) for name, guide in GUIDES.items()),
    ),
    MEASURES,
    judges=("guide", "plain", "heldout"),
    prompts=texts,
    trials=GuideTrials,
    steps=20,
    pairs=192,
    seed=70,
)


def markdown(content: Mapping) -> str:
    """What each guide gains."""
    titles = TITLES | {"plain": "plain CLIP"}
    forms = {"oracle": ".1%"}
    rows = content["rows"].items()
    lines = [
        [name, *(cell(name, row, m, forms.get(m, ".3f")) for m in MEASURES)] for name, row in rows
    ]
    return grid(["guide", *(titles[measure] for measure in MEASURES)], lines)
