"""The rho of the quickstart, whose reward sees its pictures through a small decoder.

It is chosen by the held-out reward on other prompts, for both anchors; then the rows are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from datekit.methods import DATE, Fixed
from studies.results import FIXED, MEASURES, grid, table
from studies.study import Row, Study

RHOS = (0.25, 0.5, 1.0, 2.0)
ADDED = (0.075, 0.15, 0.3, 0.6)  # where the displacements of all steps add up


def _date(anchor: str) -> Callable[[Any, float], DATE]:
    return lambda h, s: DATE(h, s, anchor=anchor, decoder="tiny")


ROWS = (
    Row(FIXED, lambda h, s: Fixed()),
    Row("DATE, Eq. 14", _date("original"), RHOS, words="rho {0:g}"),
    Row("DATE, running", _date("running"), ADDED, words="rho {0:g}"),
)
STUDY = Study("quickstart", ROWS, MEASURES, steps=20, tuning_pairs=256, seed=60)


def markdown(content: Mapping) -> str:
    """The rows as judged, and the held-out reward of each rho on the tuning pairs."""
    rows, lines = {}, []
    for name, row in content["rows"].items():
        rows[f"{name} ({row['setting']})" if row["setting"] else name] = row
    for name, tried in content["tuning"]["mean held-out reward"].items():
        lines += [[name, rho, f"{reward:.4f}"] for rho, reward in tried.items()]
    return f"{table(rows)}\n\n{grid(['on tuning pairs', 'rho', 'held-out reward'], lines)}"
