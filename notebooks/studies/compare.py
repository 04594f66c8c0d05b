"""Methods against each other on held-out prompts about position: the main table.

Each method that has a strength gets the same budget for it: five strengths on all tuning pairs. A
row is one line of `ROWS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datekit.methods import DATE, EBCA, Fixed, Method, RandomDirection, UniversalGuidance
from datekit.schedules import fraction
from studies.mistakes import KINDS
from studies.results import COST, FIXED, MEASURES, TITLES, cell, grid
from studies.runner import Course
from studies.study import Row, Study

SHARES = (1 / 4096, 1 / 1024, 1 / 256, 1 / 64, 1 / 16)  # of ||c_org||
SCALES = (3.0, 10.0, 30.0, 100.0, 300.0)
GAMMAS = ((0.0025, 0.005), (0.005, 0.01), (0.01, 0.02), (0.02, 0.04), (0.04, 0.08))
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # on rho = ||c_org|| / 64 and scale = 10 together
RHO = "rho {0:.3g}, {share:.2%} of c_org's norm"


def rhos(course: Course) -> list[float]:
    """The rho to choose from."""
    return [share * course.trials().scale for share in SHARES]


def both(course: Course) -> list[tuple[float, float]]:
    """The rho of DATE and the scale of Universal Guidance to choose from."""
    return [(factor * course.trials().scale / 64, 10 * factor) for factor in FACTORS]


def pulled(h: Any, s: float) -> Method:
    """Universal Guidance with its backward step and its recurrence."""
    return UniversalGuidance(h, s, backward_steps=1, backward_rate=s, recurrence=2)


FEW = fraction(0.1)
ROWS = (
    Row(FIXED, lambda h, s: Fixed()),
    Row("fixed, 1.4 times the steps", lambda h, s: Fixed(), longer=1.4),
    Row("random direction", lambda h, s: RandomDirection(s), rhos, words=RHO),
    Row("EBCA", lambda h, s: EBCA(*s), GAMMAS,
        words="gamma_attn {0[0]:.3g}, gamma_norm {0[1]:.3g}"),
    Row("Universal Guidance, forward", UniversalGuidance, SCALES, words="scale {0:.3g}"),
    Row("Universal Guidance, forward, backward, recurrence 2", pulled, SCALES,
        words="scale {0:.3g}, backward_rate {0:.3g}"),
    Row("DATE, 10 % of steps", lambda h, s: DATE(h, s, FEW), rhos, words=RHO),
    Row("DATE, 10 % of steps, running", lambda h, s: DATE(h, s, FEW, "running"), rhos, words=RHO),
    Row("DATE, all steps", DATE, rhos, words=RHO, tags=("date",)),
    Row("DATE, all steps, running", lambda h, s: DATE(h, s, anchor="running"), rhos, words=RHO),
    Row("DATE, all steps, h = preference", DATE, rhos, guide="preference", words=RHO),
    Row("DATE, 10 % of steps, running, h = preference", lambda h, s: DATE(h, s, FEW, "running"),
        rhos, guide="preference", words=RHO),
    Row("DATE, all steps, running, h = preference", lambda h, s: DATE(h, s, anchor="running"),
        rhos, guide="preference", words=RHO),
    Row("DATE + Universal Guidance, all steps",
        lambda h, s: DATE(h, s[0]) + UniversalGuidance(h, s[1]), both,
        words="rho {0[0]:.3g}, {share:.2%} of c_org's norm, scale {0[1]:.3g}"),
    Row("best of 2", lambda h, s: Fixed(), count=2),
    Row("best of 4", lambda h, s: Fixed(), count=4),
    Row("DATE, 10 % of steps, best of 2", lambda h, s: DATE(h, s, FEW), rhos, count=2, words=RHO),
)  # fmt: skip


def _extra(course: Course) -> dict:
    true = course.trials().true_pictures
    return {
        "distance": f"Frechet, {len(true.mu)} features of shapes-clip-heldout, to {true.count} "
        "true pictures"
    }


STUDY = Study(
    "compare",
    ROWS,
    (*MEASURES, *KINDS, "preference"),
    file="heldout",
    judges=("guide", "heldout", "preference"),
    distance=True,
    memory=True,
    extra=_extra,
)
COLUMNS = {"guide": ".3f", "heldout": ".3f", "preference": ".2f", "oracle": ".1%"}


def markdown(content: Mapping) -> str:
    """Means, and paired differences to the fixed embedding with 95 % intervals."""
    titles = [TITLES.get(name, name) for name in COLUMNS]
    lines = []
    for name, row in content["rows"].items():
        label = f"{name} ({row['setting']})" if row["setting"] else name
        cells = [label, f"{row[COST]:.2f}", str(row["peak MiB"]), f"{row['FID']:.3f}"]
        lines.append([*cells, *(cell(name, row, measure, COLUMNS[measure]) for measure in COLUMNS)])
    return grid(["method", "s / picture", "peak MiB", "FID", *titles], lines)


def kinds_table(content: Mapping) -> str:
    """What the oracle says: the shapes are there, in their colours, in their relation."""
    rows = content["rows"].items()
    lines = [[name, *(f"{row[kind][0]:.0%}" for kind in (*KINDS, "oracle"))] for name, row in rows]
    return grid(["method", "shapes there", "and colours", "and relation", "all right"], lines)
