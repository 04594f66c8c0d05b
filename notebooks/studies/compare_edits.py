"""Edits with ground truth: each way to edit, with the fixed embedding and with DATE, same pictures, same noise, paired differences.

`datekit compare-edits --out FILE` makes the table and the trade-off curves. The guiding reward is optimised; the held-out reward, the
oracle and the ideal result only judge. On edits that the test never uses, skip and guidance are chosen for the fixed embedding by the
distance to the ideal result, over the kinds of edit (`ONE_IDEAL`) that have one right picture only: a thing may be moved or added to many
places. Then rho is chosen by the held-out reward. As such a choice holds on to the source, all is measured again at the other end, where
no step is skipped, with a rho of its own.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from datekit import editing
from datekit.errors import unknown
from datekit.methods import DATE, Fixed, RandomDirection
from datekit.rewards.base import score
from datekit.schedules import every
from datekit.shapes.edits import EDITS, Edit, pictures, sample_edits
from datekit.evaluation import edits as measures
from datekit.evaluation.machine import facts, flags
from studies.trials import COST, FIXED, Notes, Trials, best, cell, fingerprint, intervals

EDITORS = {
    "ddpm": "shapes",
    "ddim": "shapes",
    "sdedit": "shapes",
    "flowedit": "shapes-flow",
}  # each with the model that it edits with
SKIPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # to choose from
GUIDANCE = (1.0, 2.0, 3.0)  # in units of what the backbone recommends: to choose from
SHARES = (1 / 512, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8)  # of ||c_org||: the rho_rules to choose from
ONE_IDEAL = ("recolour", "reshape", "remove")
EVERY = 2  # steps between updates of DATE
CURVE = (
    0.0,
    0.2,
    0.4,
    0.6,
)  # skips of the trade-off, each with the fixed embedding and with these multiples of the chosen rho:
MULTIPLES = (1.0, 4.0)
CURVE_GUIDANCE = (
    0.5,
    1.0,
    2.0,
)  # and guidance along it, each with the fixed embedding and with the chosen rho
MEASURES = ("ideal", "background", "pixels", "features", "guide", "heldout", "statements", "oracle")
WHOLE = ", nothing skipped"
SOURCE, IDEAL = (
    "the source itself",
    "the ideal through the autoencoder",
)  # no edit at all, and the floor of every edit


class EditTrials(Trials):
    """The fixed parts of a comparison of edits with one editor (`EDITORS`); inversions are made once."""

    def __init__(
        self,
        editor: str,
        edits: list[Edit],
        seed: int,
        *,
        steps: int | None = None,
        batch: int = 20,
    ) -> None:
        super().__init__(
            EDITORS[editor], [edit.target for edit in edits], seed, steps=steps, batch=batch
        )
        self.editor, self.edits = editor, edits
        self._inversions: dict[int, editing.Inversion] = {}
        self._inverting = 0.0  # seconds of the processor

    def draw(
        self, *, skip: float, guidance: float, rho: float | None = None, random: bool = False
    ) -> Callable:
        """A function from a batch, its first number, edits, seeds and sources (B, 3, H, W), to the edited pictures.

        guidance: in units of what the backbone recommends; rho: of DATE, None for the fixed embedding; random: in a random direction.
        """
        w = guidance * self.backbone.recommended.guidance_scale
        method = Fixed() if rho is None else DATE(self.guide, rho=rho, when=every(EVERY))
        if random:
            method = RandomDirection(rho, when=every(EVERY))

        def edited(
            start: int, edits: list[Edit], seeds: list[int], images: torch.Tensor
        ) -> torch.Tensor:
            source, target = [edit.source for edit in edits], [edit.target for edit in edits]
            common = dict(num_steps=self.steps, seeds=seeds)
            if self.editor == "sdedit":
                run = editing.sdedit(
                    self.backbone, images, target, method, guidance_scale=w, skip=skip, **common
                )
            elif self.editor == "flowedit":
                taken = self.steps - round(skip * self.steps)
                run = editing.flowedit(
                    self.backbone,
                    images,
                    source,
                    target,
                    method,
                    guidance_scale=w,
                    n_max=taken,
                    **common,
                )
            else:
                run = self._inverted(start, source, images, common).edit(
                    target, method, guidance_scale=w, skip=skip
                )
            return run.finish(progress=False).pixels

        return edited

    def judge(self, draw: Callable) -> dict[str, list[float]]:
        """Every measure of every edit, and the processor's seconds of editing, without the inversion, which all edits of an image share."""
        result: dict[str, list[float]] = {name: [] for name in MEASURES}
        seconds = 0.0
        for start in range(0, len(self.edits), self.batch):
            part = slice(start, start + self.batch)
            edits, targets, seeds = self.edits[part], self.prompts[part], self.seeds[part]
            sources, ideals, changed = pictures(edits)
            began, inverting = time.process_time(), self._inverting
            images = draw(start, edits, seeds, sources).cpu()
            seconds += time.process_time() - began - (self._inverting - inverting)
            with torch.no_grad():
                found = {
                    "guide": score(self.guide, images, targets),
                    "heldout": score(self.heldout, images, targets),
                }
            found |= {
                "ideal": measures.pixel_distance(images, ideals),
                "pixels": measures.pixel_distance(images, sources),
                "background": measures.background_distance(images, sources, changed),
                "features": measures.feature_distance(images, sources, self.heldout),
            }
            found["statements"], found["oracle"] = measures.statements(images, targets)
            for name in MEASURES:
                result[name] += found[name].tolist()
        return result | {"seconds": seconds}

    def _inverted(
        self, start: int, source: list[str], images: torch.Tensor, common: dict
    ) -> editing.Inversion:
        if start not in self._inversions:
            began, invert = (
                time.process_time(),
                {"ddpm": editing.ddpm_inversion, "ddim": editing.ddim_inversion}[self.editor],
            )
            self._inversions[start] = invert(self.backbone, images, source, **common)
            self._inverting += time.process_time() - began
        return self._inversions[start]


def compare_edits(
    out: str | Path,
    *,
    editors: Sequence[str] = tuple(EDITORS),
    pairs: int = 240,
    tuning_pairs: int = 40,
    curve_pairs: int = 60,
    split: str = "train",
    steps: int = 20,
    seed: int = 0,
) -> dict:
    """Run the whole comparison and write it to `out` (JSON); goes on where it was interrupted.

    pairs: edits of the test, the five kinds in turn; curve_pairs: of the trade-off curves, the first of the test, 0 for no curves. Raises
    ValueError for an unknown editor or split.
    """
    out = Path(out)
    for editor in editors:
        if editor not in EDITORS:
            raise unknown("editor", editor, EDITORS)
    settings = {
        "editors": list(editors),
        "pairs": pairs,
        "tuning_pairs": tuning_pairs,
        "curve_pairs": curve_pairs,
        "split": split,
        "steps": steps,
        "seed": seed,
    }
    weights = {
        model: fingerprint(model) for model in dict.fromkeys(EDITORS[editor] for editor in editors)
    }
    notes = Notes(out, settings | {"weights": weights})
    test, tuning = (
        sample_edits(n, seed + offset, split=split)
        for offset, n in enumerate((pairs, tuning_pairs))
    )
    content = {
        "command": f"datekit compare-edits {flags(settings)}",
        **facts(),
        **settings,
        "weights": weights,
        "every": EVERY,
        "tuning": _budget(tuning_pairs),
        "editors": {},
        "references": {},
        "rows": {},
        "curves": {},
    }
    for editor in editors:
        trials = EditTrials(editor, test, seed, steps=steps)
        chosen = _tune(EditTrials(editor, tuning, seed + 1, steps=steps), notes)
        content["editors"][editor] = _made_with(trials) | chosen
        if not content["references"]:
            content["references"] = {
                name: _summary(
                    notes.get(f"reference: {name}", lambda d=draw: trials.judge(d)), test
                )  # noqa: B023
                for name, draw in _references(trials.backbone).items()
            }
        content["rows"] |= _rows(trials, chosen, notes)
        if curve_pairs:
            content["curves"][editor] = _curves(
                EditTrials(editor, test[:curve_pairs], seed, steps=steps), chosen, notes
            )
    return notes.finish(content)


def _budget(pairs: int) -> str:
    return (
        f"on {pairs} other edits: of {len(SKIPS) * len(GUIDANCE)} pairs of skip and guidance the one with the least mean distance to the "
        f"ideal ({', '.join(ONE_IDEAL)}), fixed embedding; then of {len(SHARES)} rho_rules the one with the highest mean held-out reward, "
        f"again for the rows where nothing is skipped"
    )


def _made_with(trials: EditTrials) -> dict:
    return {
        "model": EDITORS[trials.editor],
        "guidance recommended": trials.backbone.recommended.guidance_scale,
        "norm of c_org": round(trials.norm(), 2),
    }


def _rows(trials: EditTrials, chosen: dict, notes: Notes) -> dict[str, dict]:
    """The fixed embedding, a random direction and DATE at the chosen settings; the fixed embedding and DATE with nothing skipped."""
    rows, guidance = {}, chosen["guidance"]
    for part, skip, rho in (
        ("", chosen["skip"], chosen["rho"]),
        (WHOLE, 0.0, chosen["rho, nothing skipped"]),
    ):
        methods = {FIXED: {}, "random": {"rho": rho, "random": True}, "DATE": {"rho": rho}}
        base = None
        for name in (FIXED, "DATE") if part else methods:
            draw = trials.draw(skip=skip, guidance=guidance, **methods[name])
            row = notes.get(
                f"test: {trials.editor}, {name}{part}", lambda draw=draw: trials.judge(draw)
            )
            rows[f"{trials.editor}, {name}{part}"] = _summary(row, trials.edits, base)
            base = base or row
    return rows


def _references(backbone) -> dict[str, Callable]:
    def through(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return backbone.decode(backbone.encode_images(images)).clamp(0, 1)

    return {
        SOURCE: lambda start, edits, seeds, images: images,
        IDEAL: lambda start, edits, seeds, images: through(pictures(edits)[1]),
    }


def _tune(trials: EditTrials, notes: Notes) -> dict:
    plain = {}
    for skip, guidance in itertools.product(SKIPS, GUIDANCE):
        row = notes.get(
            f"tune: {trials.editor}, skip {skip:g}, guidance x {guidance:g}",
            lambda s=skip, g=guidance: trials.judge(trials.draw(skip=s, guidance=g)),
        )
        plain[skip, guidance] = sum(
            value
            for value, edit in zip(row["ideal"], trials.edits, strict=True)
            if edit.kind in ONE_IDEAL
        )
    skip, guidance = min(plain, key=plain.get)
    rhos, found = [float(f"{share * trials.norm():.2g}") for share in SHARES], {}
    for part, left_out in (("", skip), (WHOLE, 0.0)):
        row = lambda rho, s=left_out: notes.get(
            f"tune: {trials.editor}, skip {s:g}, rho {rho:g}",
            lambda: trials.judge(trials.draw(skip=s, guidance=guidance, rho=rho)),
        )
        found[f"rho{part}"] = best({rho: row(rho) for rho in rhos})
    ends = ["skip"] * (skip == SKIPS[-1]) + ["guidance"] * (guidance in (GUIDANCE[0], GUIDANCE[-1]))
    ends += [name for name, rho in found.items() if rho in (rhos[0], rhos[-1])]
    return {"skip": skip, "guidance": guidance, **found, "at an end of the grid": ends}


def _curves(trials: EditTrials, chosen: dict, notes: Notes) -> dict[str, list[dict]]:
    """Means and intervals over the grid of skip and rho (0: the fixed embedding), and along guidance, the rest as chosen; of DATE
    paired differences to the fixed embedding there, too."""
    rho, curves, base = chosen["rho"], {"skip": [], "guidance": []}, {}
    grid = [
        ("skip", skip, rho * share) for skip, share in itertools.product(CURVE, (0, *MULTIPLES))
    ]
    for axis, value, radius in grid + [
        ("guidance", w, r) for w, r in itertools.product(CURVE_GUIDANCE, (0, rho))
    ]:
        settings = {"skip": chosen["skip"], "guidance": chosen["guidance"]} | {axis: value}
        row = notes.get(
            f"curve: {trials.editor}, {axis} {value:g}, rho {radius:g}",
            lambda s=settings, r=radius: trials.judge(trials.draw(**s, rho=r or None)),
        )
        if not radius:
            base = row
        curves[axis].append(settings | {"rho": radius, **_part(row, base if radius else None)})
    return curves


def _summary(row: dict, edits: list[Edit], base: dict | None = None) -> dict:
    """Means and, given the fixed row, paired differences to it, over all edits, over those with one ideal, and over each kind."""
    result: dict = {"all": _part(row, base), COST: round(row["seconds"] / len(edits), 3)}
    for part, kinds in {"one ideal": ONE_IDEAL, **{kind: (kind,) for kind in EDITS}}.items():
        if rows := [n for n, edit in enumerate(edits) if edit.kind in kinds]:
            result[part] = {"edits": len(rows)} | _part(row, base, rows)
    return result


def _part(row: dict, base: dict | None = None, rows: Sequence[int] | None = None) -> dict:
    pick = lambda row: {
        name: row[name] if rows is None else [row[name][n] for n in rows] for name in MEASURES
    }
    return intervals(pick(row), MEASURES, None if base is None else pick(base))


SHOWN = (
    ("ideal", "distance to the ideal*", ".3f"),
    ("background", "background moved*", ".3f"),
    ("guide", "guiding reward", ".3f"),
    ("heldout", "held-out reward", ".3f"),
    ("statements", "oracle: statements", ".1%"),
    ("oracle", "oracle: all right", ".1%"),
)


def markdown(content: dict, part: str = "all") -> str:
    """The comparison as a Markdown table: means, and DATE's paired differences to the fixed embedding with 95 % intervals.

    part: "all", or a kind of edit of which alone it is. Of all, the columns with a star are over `ONE_IDEAL` alone.
    """
    lines = [
        "| edit | s / picture | " + " | ".join(title for _, title, _ in SHOWN) + " |",
        "|---" * (len(SHOWN) + 2) + "|",
    ]
    for name, row in (content["references"] | content["rows"]).items():
        seconds = "" if name in content["references"] else f"{row[COST]:.2f}"
        parts = [
            row["one ideal" if part == "all" and title[-1] == "*" else part]
            for _, title, _ in SHOWN
        ]
        cells = [
            cell(name, found, measure, form)
            for found, (measure, _, form) in zip(parts, SHOWN, strict=True)
        ]
        lines.append("| " + " | ".join([name, seconds, *cells]) + " |")
    return "\n".join(lines)
