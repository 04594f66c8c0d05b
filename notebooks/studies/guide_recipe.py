"""How strong an attack, how many x0bars and how long: settings of the robust guide's training.

Each guide moves the embedding of tuning prompts as the demo does, by Eq. 14. Those trained for this
had half of the recipe's steps, and are to be compared with its own settings at as many.
"""

from __future__ import annotations

from collections.abc import Mapping

import datekit as dk
from datekit.methods import Fixed
from studies.results import FIXED, table
from studies.study import Row, Study
from studies.unshipped_guides import SETTINGS
from studies.what_guides import RHO, GuideTrials, guided

GUIDES = {"as it ships": "guide"} | {name: name for name in SETTINGS}
MEASURES = ("plain", "heldout", "oracle")


def texts(n: int, seed: int, part: str) -> list[str]:
    """Tuning prompts alone: what is chosen here is judged elsewhere."""
    return dk.shapes.prompts("heldout", n, seed, part="tune")


STUDY = Study(
    "guide-recipe",
    (
        Row(FIXED, lambda h, s: Fixed()),
        *(Row(name, guided, (RHO,), guide=guide) for name, guide in GUIDES.items()),
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
    return table(content["rows"], MEASURES, head="guide")
