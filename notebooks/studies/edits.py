"""Edits with ground truth: each way to edit, with the fixed embedding and with DATE.

The guiding reward is optimised; the held-out reward, the oracle and the ideal result only judge. On
edits that no row is judged on, skip and guidance are chosen for the fixed embedding by the distance
to the ideal result, over the kinds of edit that have one right picture only (`ONE_IDEAL`): a thing
may be moved or added to many places. Then rho is chosen by the held-out reward. As such a choice
holds on to the source, all is measured again where no step is skipped.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from datekit import editing
from datekit.methods import DATE, Fixed, Method, RandomDirection
from datekit.rewards.base import score
from datekit.schedules import every
from studies import edit_measures as measures
from studies.edit_truth import EDITS, pictures, sample_edits
from studies.results import COST, cell, grid
from studies.runner import Course
from studies.study import Row, Study
from studies.trials import Batch, Draw, Trials

EDITORS = {"ddpm": "shapes", "ddim": "shapes", "sdedit": "shapes", "flowedit": "shapes-flow"}
SKIPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # to choose from
GUIDANCE = (0.25, 0.5, 1.0)  # in units of what the backbone recommends: to choose from
SHARES = (1 / 512, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8)  # of ||c_org||: rho to choose from
ONE_IDEAL = ("recolour", "reshape", "remove")
EVERY = 2  # steps between updates of DATE
MEASURES = ("ideal", "background", "pixels", "features", "guide", "heldout", "statements", "oracle")
WHOLE = ", nothing skipped"
SOURCE, IDEAL = "the source itself", "the ideal through the autoencoder"


class EditTrials(Trials):
    """Trials whose prompts are edits: targets are drawn and judged; inversions are made once."""

    def __init__(self, model: str, edits: list, seed: int, **settings) -> None:
        super().__init__(model, [edit.target for edit in edits], seed, batch=20, **settings)
        self.edits = edits
        self._inversions: dict[tuple[str, int, int], editing.Inversion] = {}

    def of(self, batch: Batch) -> list:
        """The edits of a batch."""
        return self.edits[batch.start : batch.start + len(batch.prompts)]

    def edit(self, editor: str, method: Method, skip: float, guidance: float) -> Draw:
        """What edits a batch; guidance is in units of what the backbone recommends."""
        w = guidance * self.backbone.recommended.guidance_scale

        def draw(batch: Batch) -> Tensor:
            images, _, _ = pictures(self.of(batch))
            sources = [edit.source for edit in self.of(batch)]
            settings = {"num_steps": self.steps, "seeds": batch.seeds}
            given = (self.backbone, images)
            if editor == "sdedit":
                run = editing.sdedit(
                    *given, batch.prompts, method, guidance_scale=w, skip=skip, **settings
                )
            elif editor == "flowedit":
                last = self.steps - round(skip * self.steps)
                settings |= {"guidance_scale": w, "n_max": last}
                run = editing.flowedit(*given, sources, batch.prompts, method, **settings)
            else:
                inversion = self.inversion(editor, batch, images, sources)
                run = inversion.edit(batch.prompts, method, guidance_scale=w, skip=skip)
            return run.finish(progress=False).pixels

        return draw

    def inversion(self, editor: str, batch: Batch, images: Tensor, sources: list[str]) -> Any:
        """The inversion of a batch, which all edits of its pictures share."""
        key = (editor, batch.start, len(batch.prompts))
        if key not in self._inversions:
            invert = {"ddpm": editing.ddpm_inversion, "ddim": editing.ddim_inversion}[editor]
            settings = {"num_steps": self.steps, "seeds": batch.seeds}
            self._inversions[key] = invert(self.backbone, images, sources, **settings)
        return self._inversions[key]

    def verdicts(self, batch: Batch, images: Tensor) -> dict[str, list]:
        """Rewards, distances and the oracle, of edited pictures."""
        sources, ideals, changed = pictures(self.of(batch))
        with torch.no_grad():
            judged = {name: score(r, images, batch.prompts) for name, r in self.judges.items()}
        judged["ideal"] = measures.pixel_distance(images, ideals)
        judged["pixels"] = measures.pixel_distance(images, sources)
        judged["background"] = measures.background_distance(images, sources, changed)
        judged["features"] = measures.feature_distance(images, sources, self.heldout)
        judged["statements"], judged["oracle"] = measures.statements(images, batch.prompts)
        kinds = [edit.kind for edit in self.of(batch)]
        return {name: values.tolist() for name, values in judged.items()} | {"kind": kinds}

    def timed(self, draw: Draw) -> dict[str, float]:
        """The seconds of editing the first batch, whose inversion is there already."""
        draw(next(self.batches()))
        return super().timed(draw)


def nearest(judged: dict[Any, dict]) -> Any:
    """The option that comes nearest to the ideal, over the edits that have one."""

    def distance(option: Any) -> float:
        row = judged[option]
        pairs = zip(row["ideal"], row["kind"], strict=True)
        return sum(value for value, kind in pairs if kind in ONE_IDEAL)

    return min(judged, key=distance)


def parts(trials: EditTrials) -> dict[str, list[int]]:
    """The numbers of all edits, of those with one ideal, and of each kind."""
    kinds = {"all": EDITS, "one ideal": ONE_IDEAL} | {kind: (kind,) for kind in EDITS}
    numbers = {
        part: [n for n, edit in enumerate(trials.edits) if edit.kind in wanted]
        for part, wanted in kinds.items()
    }
    return {part: rows for part, rows in numbers.items() if rows}


def editor_rows(editor: str, model: str) -> list[Row]:
    """Fixed, a random direction and DATE as chosen; fixed and DATE with nothing skipped.

    A strength is (skip, guidance), of what moves the embedding (skip, guidance, rho).
    """
    plain = f"{editor}, {FIXED_ROW}"

    def fixed(trials: EditTrials, s: tuple) -> Draw:
        return trials.edit(editor, Fixed(), *s[:2])

    def date(trials: EditTrials, s: tuple) -> Draw:
        return trials.edit(editor, DATE(trials.guide, s[2], every(EVERY)), *s[:2])

    def random(trials: EditTrials, s: tuple) -> Draw:
        return trials.edit(editor, RandomDirection(s[2], when=every(EVERY)), *s[:2])

    def rhos(course: Course, skip: float | None) -> list[tuple]:
        chosen, guidance = course.strength(course.by_key[plain])
        scale = course.trials(course.by_key[plain]).scale
        skip = chosen if skip is None else skip
        return [(skip, guidance, float(f"{share * scale:.2g}")) for share in SHARES]

    options = tuple(itertools.product(SKIPS, GUIDANCE))

    def whole(course: Course) -> list[tuple]:
        return [(0.0, course.strength(course.by_key[plain])[1])]

    about = {"model": model, "base": plain, "tags": (editor,)}
    bare = about | {"base": ""}
    whole_about = about | {"base": f"{plain}{WHOLE}"}
    return [
        Row(plain, make=fixed, grid=options, choose=nearest, **bare),
        Row(f"{editor}, random", make=random, of=f"{editor}, DATE", **about),
        Row(f"{editor}, DATE", make=date, grid=lambda course: rhos(course, None), **about),
        Row(f"{plain}{WHOLE}", make=fixed, grid=whole, **bare),
        Row(f"{editor}, DATE{WHOLE}", make=date, grid=lambda c: rhos(c, 0.0), **whole_about),
    ]


def _source(trials: EditTrials, s: None) -> Draw:
    return lambda batch: pictures(trials.of(batch))[0]


def _ideal(trials: EditTrials, s: None) -> Draw:
    def draw(batch: Batch) -> Tensor:
        with torch.no_grad():
            latents = trials.backbone.encode_images(pictures(trials.of(batch))[1])
            return trials.backbone.decode(latents).clamp(0, 1)

    return draw


FIXED_ROW = "fixed"
ROWS = [
    Row(SOURCE, make=_source, base="", group="reference"),
    Row(IDEAL, make=_ideal, base="", group="reference"),
]
for _editor, _model in EDITORS.items():
    ROWS += editor_rows(_editor, _model)

STUDY = Study(
    "edits",
    tuple(ROWS),
    MEASURES,
    prompts=lambda n, seed, part: sample_edits(n, seed + (part == "tune"), split="train"),
    steps=20,
    pairs=240,
    tuning_pairs=256,
    heat=60,
    trials=EditTrials,
    parts=parts,
    extra=lambda course: {"every": EVERY},
)
SHOWN = (
    ("ideal", "distance to the ideal*", ".3f"),
    ("background", "background moved*", ".3f"),
    ("guide", "guiding reward", ".3f"),
    ("heldout", "held-out reward", ".3f"),
    ("statements", "oracle: statements", ".1%"),
    ("oracle", "oracle: all right", ".1%"),
)


def markdown(content: Mapping, part: str = "all") -> str:
    """Means, and DATE's paired differences to the fixed embedding with 95 % intervals.

    part: "all", or a kind of edit of which alone it is. Of all, the columns with a star are over
    `ONE_IDEAL` alone.
    """
    lines = []
    for name, row in content["rows"].items():
        label = row["label"]
        cells = [label, "" if row["group"] == "reference" else f"{row[COST]:.2f}"]
        for measure, title, form in SHOWN:
            own = row["one ideal" if part == "all" and title[-1] == "*" else part]
            cells.append(cell(name, own, measure, form))
        lines.append(cells)
    return grid(["edit", "s / picture", *(title for _, title, _ in SHOWN)], lines)
