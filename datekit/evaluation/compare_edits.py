"""Edits with ground truth: each way to edit, with the fixed embedding and with DATE, same images, same noise, paired differences.

`datekit compare-edits --out FILE` makes the table and the trade-off curves. skip and guidance are chosen for the fixed embedding by
the distance to the ideal result, rho then by the held-out reward, on edits that the test never uses.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .. import editing, rewards
from ..backbones import load
from ..methods import DATE, Fixed
from ..rewards.base import score
from ..schedules import every
from ..shapes.edits import EDITS, Edit, pictures, sample_edits
from . import edits as measures
from .machine import facts, write_json
from .statistics import bootstrap

SKIPS = (0.0, 0.1, 0.2, 0.3, 0.4)  # to choose from
CURVE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)  # of the trade-off over skip
GUIDANCE = (1.0, 2.0, 3.0)  # in units of what the backbone recommends: to choose from
SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8)  # of ||c_org||: the radii to choose from
EVERY = 5  # steps between updates of DATE
MEASURES = ("ideal", "background", "pixels", "features", "guide", "heldout", "statements", "right")
FIXED = "fixed"


class EditBench:
    """The fixed parts of a comparison: backbone, rewards, edits in batches, inversions made once."""

    def __init__(self, backbone, edits: list[Edit], seed: int, batch: int = 16, num_steps: int | None = None) -> None:
        self.backbone, self.edits, self.batch = backbone, edits, batch
        self.steps = num_steps or backbone.recommended.num_steps
        self.guide, self.heldout = rewards.load("shapes-clip"), rewards.load("shapes-clip-heldout")
        self.seeds = [seed * 1_000_003 + n for n in range(len(edits))]
        self._inversions: dict[tuple[str, int], editing.Inversion] = {}
        self._inverting = 0.0  # seconds

    @property
    def editors(self) -> tuple[str, ...]:
        """The ways to edit that the backbone allows."""
        return ("flowedit", "ddim", "sdedit") if editing.base.is_flow(self.backbone) else ("ddpm", "ddim", "sdedit")

    def batches(self) -> Iterator[tuple[int, list[Edit], list[int]]]:
        """The number of the first, edits and seeds, a batch at a time."""
        for start in range(0, len(self.edits), self.batch):
            yield start, self.edits[start:start + self.batch], self.seeds[start:start + self.batch]

    def method(self, rho: float | None):
        """DATE of a radius, or the fixed embedding."""
        return Fixed() if rho is None else DATE(self.guide, rho=rho, when=every(EVERY))

    def draw(self, editor: str, *, skip: float, guidance: float, rho: float | None = None) -> Callable:
        """A function from a batch (first, edits, seeds, sources) to the edited pictures, (B, 3, H, W)."""
        w = guidance * self.backbone.recommended.guidance_scale

        def pictures_of(start: int, edits: list[Edit], seeds: list[int], images: torch.Tensor) -> torch.Tensor:
            target, method = [edit.target for edit in edits], self.method(rho)
            common = dict(num_steps=self.steps, seeds=seeds)
            if editor == "sdedit":
                run = editing.sdedit(self.backbone, images, target, method, guidance_scale=w, skip=skip, **common)
            elif editor == "flowedit":
                run = editing.flowedit(self.backbone, images, [edit.source for edit in edits], target, method, guidance_scale=w,
                                       n_max=self.steps - round(skip * self.steps), **common)
            else:
                run = self._inverted(editor, start, edits, images, common).edit(target, method, guidance_scale=w, skip=skip)
            return run.finish(progress=False).pixels

        return pictures_of

    def judge(self, draw: Callable) -> dict[str, list[float]]:
        """Every measure of every edit, and the seconds that editing took, without the inversion, which all edits of an image share."""
        result: dict[str, list[float]] = {name: [] for name in MEASURES}
        seconds = 0.0
        for start, edits, seeds in self.batches():
            sources, ideals, changed = pictures(edits)
            targets = [edit.target for edit in edits]
            began, inverting = time.perf_counter(), self._inverting
            images = draw(start, edits, seeds, sources).cpu()
            seconds += time.perf_counter() - began - (self._inverting - inverting)
            with torch.no_grad():
                found = {"guide": score(self.guide, images, targets), "heldout": score(self.heldout, images, targets)}
            found |= {"ideal": measures.pixel_distance(images, ideals), "pixels": measures.pixel_distance(images, sources),
                      "background": measures.background_distance(images, sources, changed),
                      "features": measures.feature_distance(images, sources, self.heldout)}
            found["statements"], found["right"] = measures.statements(images, targets)
            for name in MEASURES:
                result[name] += found[name].tolist()
        return result | {"seconds": seconds}

    def _inverted(self, editor: str, start: int, edits: list[Edit], images: torch.Tensor, common: dict) -> editing.Inversion:
        if (editor, start) not in self._inversions:
            began, invert = time.perf_counter(), {"ddpm": editing.ddpm_inversion, "ddim": editing.ddim_inversion}[editor]
            self._inversions[editor, start] = invert(self.backbone, images, [edit.source for edit in edits], **common)
            self._inverting += time.perf_counter() - began
        return self._inversions[editor, start]


def compare_edits(out: str | Path, *, model: str = "shapes", pairs: int = 240, tuning_pairs: int = 40, curve_pairs: int = 60,
                  split: str = "train", num_steps: int | None = None, seed: int = 0) -> dict:
    """Run the whole comparison and write it to `out` (JSON); goes on from `out`.progress if it was interrupted.

    pairs: edits of the test, the five kinds in turn; curve_pairs: how many of them draw the trade-off curves, 0 for none.
    """
    out = Path(out)
    settings = {"model": model, "pairs": pairs, "tuning_pairs": tuning_pairs, "curve_pairs": curve_pairs, "split": split,
                "num_steps": num_steps, "seed": seed}
    notes = _Notes(out.with_name(out.name + ".progress"), settings)
    backbone = load(model, device="cpu")
    make = lambda n, offset: EditBench(backbone, sample_edits(n, seed + offset, split=split), seed + offset, num_steps=num_steps)
    bench, tuning = make(pairs, 0), make(tuning_pairs, 1)
    chosen = {editor: _tune(tuning, editor, notes) for editor in bench.editors}
    rows = {f"{editor}, {name}": notes.get(f"test: {editor}, {name}", lambda e=editor, r=rho: bench.judge(_drawn(bench, e, chosen[e], r)))
            for editor in bench.editors for name, rho in ((FIXED, None), ("DATE", chosen[editor]["rho"]))}
    references = {name: notes.get(f"reference: {name}", lambda f=f: bench.judge(f)) for name, f in _references(backbone).items()}
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items() if value is not None)
    content = {
        "command": f"datekit compare-edits {flags}", **facts(), **settings, "steps": bench.steps, "every": EVERY,
        "guidance recommended": backbone.recommended.guidance_scale, "norm of c_org": round(_norm(bench), 2),
        "chosen on other edits": chosen, "references": {name: _summary(row, bench.edits) for name, row in references.items()},
        "rows": {name: _summary(row, bench.edits, None if name.endswith(FIXED) else rows[f"{name.split(',')[0]}, {FIXED}"])
                 for name, row in rows.items()},
        "curves": _curves(make(curve_pairs, 0), chosen, notes) if curve_pairs else {},
    }
    write_json(out, content)
    notes.path.unlink(missing_ok=True)
    return content


def _drawn(bench: EditBench, editor: str, settings: dict, rho: float | None) -> Callable:
    return bench.draw(editor, skip=settings["skip"], guidance=settings["guidance"], rho=rho)


def _references(backbone) -> dict[str, Callable]:
    """What the measures say of no edit at all, and of the ideal as the autoencoder shows it: the floor of every edit."""
    def through(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return backbone.decode(backbone.encode_images(images)).clamp(0, 1)

    return {"the source itself": lambda start, edits, seeds, images: images,
            "the ideal through the autoencoder": lambda start, edits, seeds, images: through(pictures(edits)[1])}


def _tune(bench: EditBench, editor: str, notes: _Notes) -> dict:
    plain = {}
    for skip, guidance in itertools.product(SKIPS, GUIDANCE):
        row = notes.get(f"tune: {editor}, skip {skip:g}, guidance x {guidance:g}",
                        lambda s=skip, g=guidance: bench.judge(bench.draw(editor, skip=s, guidance=g)))
        plain[skip, guidance] = sum(row["ideal"])
    skip, guidance = min(plain, key=plain.get)
    radii = {}
    for rho in (float(f"{share * _norm(bench):.2g}") for share in SHARES):
        row = notes.get(f"tune: {editor}, rho {rho:g}",
                        lambda r=rho: bench.judge(bench.draw(editor, skip=skip, guidance=guidance, rho=r)))
        radii[rho] = sum(row["heldout"])
    return {"skip": skip, "guidance": guidance, "rho": max(radii, key=radii.get)}


def _curves(bench: EditBench, chosen: dict, notes: _Notes) -> dict:
    """Means and intervals along skip, guidance and rho, one at a time around what was chosen, for fixed and DATE."""
    curves: dict[str, list] = {}
    for editor, best in chosen.items():
        radii = (best["rho"] / 4, best["rho"] / 2, best["rho"], best["rho"] * 2, best["rho"] * 4)
        sweeps = [("skip", CURVE, (None, best["rho"])), ("guidance", (0.5, 1.0, 1.5, 2.0, 3.0), (None, best["rho"])), ("rho", radii, (0,))]
        for axis, values, rhos in sweeps:
            for rho in rhos:
                label = f"{editor}, {axis}, {FIXED if rho is None else 'DATE'}"
                for value in values:
                    settings = {"skip": best["skip"], "guidance": best["guidance"], "rho": rho} | {axis: value}
                    row = notes.get(f"curve: {label} {value:g}", lambda e=editor, s=settings: bench.judge(bench.draw(e, **s)))
                    curves.setdefault(label, []).append({"value": value, **_means(row)})
    return curves


class _Notes:
    """Results so far, one entry a setting, kept in a file so that an interrupted comparison goes on."""

    def __init__(self, path: Path, settings: dict) -> None:
        self.path, self.settings, self.content = path, settings, {}
        if path.is_file():
            known = json.loads(path.read_text())
            self.content = known["results"] if known["settings"] == settings else {}

    def get(self, name: str, measure: Callable[[], dict]) -> dict:
        """The result under a name, measured if it is not there yet."""
        if name not in self.content:
            self.content[name] = row = measure()
            write_json(self.path, {"settings": self.settings, "results": self.content})
            print(f"{name}: " + ", ".join(f"{m} {sum(row[m]) / len(row[m]):.3f}" for m in MEASURES) + f", {row['seconds']:.0f} s", flush=True)
        return self.content[name]


def _means(row: dict) -> dict:
    return {name: [round(x, 4) for x in bootstrap(row[name], resamples=2000)] for name in MEASURES}


def _summary(row: dict, edits: list[Edit], base: dict | None = None) -> dict:
    """Means and, given the fixed row, paired differences to it, over all edits and over each kind."""
    result: dict = {"all": _part(row, base, range(len(edits))), "seconds a picture": round(row["seconds"] / len(edits), 3)}
    for kind in EDITS:
        if rows := [n for n, edit in enumerate(edits) if edit.kind == kind]:
            result[kind] = _part(row, base, rows)
    return result


def _part(row: dict, base: dict | None, rows) -> dict:
    pick = lambda values: [values[n] for n in rows]
    part = {name: [round(x, 4) for x in bootstrap(pick(row[name]))] for name in MEASURES}
    if base is not None:
        part |= {f"{name} - fixed": [round(x, 4) for x in bootstrap(pick(row[name]), minus=pick(base[name]))] for name in MEASURES}
    return part


def _norm(bench: EditBench) -> float:
    return bench.backbone.encode([edit.target for edit in bench.edits[:64]]).sequence.flatten(1).norm(dim=1).mean().item()


def markdown(content: dict) -> str:
    """The comparison as a Markdown table: means, and DATE's paired differences to the fixed embedding with 95 % intervals."""
    shown = (("ideal", "to the ideal"), ("background", "background"), ("heldout", "held-out reward"), ("right", "oracle: all right"))
    lines = ["| edit | s / picture | " + " | ".join(title for _, title in shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for name, row in (content["references"] | content["rows"]).items():
        cells = []
        for measure, _ in shown:
            mean, low, high = row["all"].get(f"{measure} - fixed", (None, None, None))
            gain = "" if mean is None else f" ({mean:+.3f} [{low:+.3f}, {high:+.3f}])"
            cells.append(f"{row['all'][measure][0]:.3f}{gain}")
        lines.append("| " + " | ".join([name, f"{row['seconds a picture']:.2f}", *cells]) + " |")
    return "\n".join(lines)
