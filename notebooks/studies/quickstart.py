"""The methods of the quickstart on more pairs, and which mistakes they mend.

Rewards see their pictures through a small decoder there. rho and steps are those of the quickstart,
and for both anchors also those that the held-out reward chooses on other prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from datekit.methods import DATE, Fixed, RandomDirection
from datekit.schedules import every
from studies.mistakes import FAILURES
from studies.results import FIXED, TITLES, cell, grid, with_settings
from studies.study import Row, Study

RHOS = (0.25, 0.5, 1.0, 2.0, 4.0)
ADDED = (0.075, 0.15, 0.3, 0.6, 1.2)  # where the displacements of all steps add up
EVERY = (1, 2, 4)  # how many steps there are from update to update


def _date(anchor: str) -> Callable[[Any, float], DATE]:
    return lambda h, s: DATE(h, s, anchor=anchor, decoder="tiny")


def _at(rho: float, anchor: str) -> Callable[[Any, int], DATE]:
    return lambda h, s: DATE(h, rho, every(s), anchor=anchor, decoder="tiny")


EQ14, RUNNING = _date("original"), _date("running")
ROWS = (
    Row(FIXED, lambda h, s: Fixed()),
    Row("random direction", lambda h, s: RandomDirection(s), (1.0,), words="rho {0:g}"),
    Row("DATE, Eq. 14", EQ14, (1.0,), words="rho {0:g}"),
    Row("DATE, running", RUNNING, (0.3,), words="rho {0:g}"),
    Row("plain CLIP, Eq. 14", EQ14, (1.0,), guide="plain", words="rho {0:g}"),
    Row("too far, Eq. 14", EQ14, (16.0,), words="rho {0:g}"),
    Row("DATE, Eq. 14, rho chosen", EQ14, RHOS, words="rho {0:g}"),
    Row("DATE, running, rho chosen", RUNNING, ADDED, words="rho {0:g}"),
    Row("DATE, Eq. 14, rho 1, steps chosen", _at(1.0, "original"), EVERY, words="every {0:g}"),
    Row("DATE, running, rho 0.3, steps chosen", _at(0.3, "running"), EVERY, words="every {0:g}"),
)
JUDGES = ("guide", "plain", "heldout")
COLUMNS = dict.fromkeys(JUDGES, ".3f") | dict.fromkeys(("oracle", *FAILURES), ".1%")
STUDY = Study(
    "quickstart",
    ROWS,
    tuple(COLUMNS),
    judges=JUDGES,
    steps=20,
    tuning_pairs=256,
    seed=60,
)


def markdown(content: Mapping) -> str:
    """The rows as judged, and the held-out reward of what each chose from on the tuning pairs."""
    lines, tried = [], []
    for name, row in with_settings(content["rows"]).items():
        lines.append([name, *(cell(name, row, measure, COLUMNS[measure]) for measure in COLUMNS)])
    for name, by_value in content["tuning"]["mean held-out reward"].items():
        tried += [[name, value, f"{reward:.4f}"] for value, reward in by_value.items()]
    head = ["method", *(TITLES.get(measure, measure) for measure in COLUMNS)]
    return f"{grid(head, lines)}\n\n{grid(['on tuning pairs', 'value', 'held-out reward'], tried)}"
