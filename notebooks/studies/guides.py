"""Which reward guides: the one that ranks better, or the one that withstands attacks?

Both are CLIPs with one text tower. The plain one picks the true caption more often; the robust one
has seen x0bars and attacked pictures (`studies.training.robust`). Each with the rho that the
held-out reward chose for it on tuning prompts, and with a large one.
"""

from __future__ import annotations

from collections.abc import Mapping

from datekit.methods import DATE, Fixed, RandomDirection
from studies.results import FIXED, cell, grid
from studies.study import Row, Study

RHOS = (0.25, 0.5, 1.0, 2.0, 4.0)
LARGE, GUIDANCE = 8.0, 5.0
WEAKER = f"fixed, guidance {GUIDANCE:g}"
GUIDES = {"plain": "plain", "robust": "guide"}
MEASURES = {
    "plain": "plain CLIP",
    "guide": "robust CLIP",
    "heldout": "held-out reward",
    "oracle": "oracle: all right",
}


def _rows() -> list[Row]:
    more = {"guidance_scale": GUIDANCE}
    rows = [
        Row(FIXED, lambda h, s: Fixed()),
        Row("random direction", lambda h, s: RandomDirection(s), (1.0,), words="rho {0:g}"),
        Row(WEAKER, lambda h, s: Fixed(), settings=more),
    ]
    for name, guide in GUIDES.items():
        about, title = {"guide": guide, "words": "rho {0:g}"}, f"DATE, {name} CLIP"
        rows.append(Row(title, DATE, RHOS, tags=(name,), **about))
        rows.append(Row(f"{title}, too far", DATE, (LARGE,), **about))
        of = {"of": title, "base": WEAKER, "settings": more}
        rows.append(Row(f"{title}, guidance {GUIDANCE:g}", DATE, **of, **about))
    return rows


STUDY = Study(
    "guides",
    tuple(_rows()),
    tuple(MEASURES),
    judges=("guide", "plain", "heldout"),
    steps=20,
    pairs=304,
    tuning_pairs=256,
    seed=30,
)


def markdown(content: Mapping) -> str:
    """What each judge says of each row, with paired differences."""
    lines = [
        [name, *(cell(name, row, key, ".1%" if key == "oracle" else ".3f") for key in MEASURES)]
        for name, row in content["rows"].items()
    ]
    return grid(["method", *MEASURES.values()], lines)
