"""Folders of pictures judged, one by one and, where they share prompts and seeds, pair by pair.

results = evaluate(["pictures/fixed", "pictures/date"])
print(table(results))
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import whole
from ..rewards.base import score
from . import metrics as measures
from .generate import MANIFEST, SETTINGS, read_settings
from .machine import facts, write_json
from .metrics import Statistics
from .options import reward_named

ORACLE, FID = "oracle", "fid"
HELDOUT = "shapes-clip-heldout"
SHAPES = (
    HELDOUT,
    "shapes-preference",
    "shapes-aesthetic",
    "shapes-clip",
)  # the counterparts of the published ones, then the guide
PUBLISHED = ("CLIPScore:ViT-g-14,laion2b_s12b_b42k", "ImageReward", "AestheticScore")


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures: their files with prompts and seeds, in order, and the model that made them, if it is known."""

    folder: Path
    files: tuple[Path, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int | None, ...]
    families: tuple[str, ...] | None = None
    model: str | None = None

    @staticmethod
    def read(folder: str | Path) -> Pictures:
        """From its manifest. Raises FileNotFoundError where there is none, ValueError where pictures are missing."""
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(
                f"{folder} has no {MANIFEST} (lines of file_name, prompt, seed), as datekit generate writes it"
            )
        rows = [
            json.loads(line)
            for line in (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
        if wrong := [
            n
            for n, row in enumerate(rows)
            if not isinstance(row, dict) or not {"file_name", "prompt"} <= set(row)
        ]:
            raise ValueError(
                f"{folder / MANIFEST}, line {wrong[0] + 1}, has no file_name or no prompt"
            )
        files = tuple(folder / row["file_name"] for row in rows)
        if missing := [file.name for file in files if not file.is_file()]:
            raise ValueError(
                f"{len(missing)} of the {len(files)} pictures of {folder} are missing, {missing[0]} first; "
                "the same datekit generate command makes them"
            )
        if not files:
            raise ValueError(f"{folder} holds no pictures")
        families = (
            tuple(row["family"] for row in rows) if all("family" in row for row in rows) else None
        )
        return Pictures(
            folder,
            files,
            tuple(row["prompt"] for row in rows),
            tuple(row.get("seed") for row in rows),
            families,
            _model(folder),
        )

    @property
    def pairs(self) -> list[tuple[str, int | None]]:
        """(prompt, seed) of each picture."""
        return list(zip(self.prompts, self.seeds, strict=True))


def evaluate(
    folders: Sequence[str | Path],
    *,
    metrics: Sequence[str] | None = None,
    fid_reference: str | Path | None = None,
    fid_features: str | None = None,
    batch_size: int = 16,
    device: str | None = None,
    out: str | Path | None = None,
    reference_pictures: int = 2048,
) -> dict[str, Any]:
    """Judge folders of pictures, the first being the baseline of paired differences; also written to `out` (JSON).

    metrics: "oracle" (the shapes world's, and per family), "fid", and rewards as `reward_named` takes them. By default, for models
    of the shapes world, the held-out CLIP, preference, look, the guide, oracle and fid; for the closed forms "target"; else the CLIP
    score of ViT-g-14, ImageReward, aesthetic score and, with a reference, fid. fid_reference: an .npz of mu and sigma or a folder
    of pictures; in the shapes world, by default, true pictures of the same prompts, `reference_pictures` at least;
    fid_features: see `metrics.extractor`. Published rewards see pictures at the size that their own preprocessing brings files to
    (bicubic). Raises ValueError for folders that do not share prompts and seeds.
    """
    whole("batch_size", batch_size, 1)
    sets = _labelled([Pictures.read(folder) for folder in folders])
    first = next(iter(sets.values()))
    metrics = automatic(first, fid_reference) if metrics is None else list(dict.fromkeys(metrics))
    judges = {
        name: reward_named(name, device=device, interpolation="bicubic")
        for name in metrics
        if name not in (ORACLE, FID)
    }
    values: dict[str, dict[str, list[float]]] = {}
    extract, reference, about = None, None, {}
    if FID in metrics:
        name = fid_features or _features(first)
        extract = measures.extractor(name, device=device)
        reference = _reference(first, fid_reference, extract, batch_size, reference_pictures)
        about = {
            "fid": {
                "features": name,
                "width": len(reference.mu),
                "pictures": len(first.files),
                "of pictures": reference.count,
                "reference": str(fid_reference or "true pictures of the same prompts"),
            }
        }
    single: dict[str, dict[str, float]] = {}
    for label, pictures in sets.items():
        values[label], found = _judged(
            pictures, judges, ORACLE in metrics, extract, batch_size, label
        )
        if reference is not None:
            single[label] = {"FID": measures.frechet_distance(Statistics.of(found), reference)}
    content = {
        **facts(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        "pairs": len(first.files),
        "baseline": next(iter(sets)),
        "metrics": metrics,
        **about,
        "folders": {label: str(pictures.folder) for label, pictures in sets.items()},
        "values": values,
        "single": single,
    }
    if ORACLE in metrics:
        content["weights of the oracle"] = (
            measures.equal_weights(_families(first)).round(6).tolist()
        )  # over all, families weigh the same
    if out is not None:
        write_json(out, content)
    return content


def automatic(pictures: Pictures, fid_reference=None) -> list[str]:
    """The metrics that fit the model that made the pictures, of those whose weights are there."""
    from ..backbones import CLOSED_FORM, SHIPPED, shipped_folder
    from ..rewards import SHIPPED as REWARDS

    fid = [FID] if fid_reference else []
    if pictures.model in CLOSED_FORM:
        return ["target", *fid]
    if pictures.model not in SHIPPED:
        return [*PUBLISHED, *fid]
    there = [name for name in SHAPES if shipped_folder(REWARDS[name][1]).is_dir()]
    if absent := set(SHAPES) - set(there):
        print(
            f"without {', '.join(sorted(absent))}, whose weights are missing from this installation",
            file=sys.stderr,
        )
    try:
        for prompt in pictures.prompts:
            measures.family(prompt)
    except ValueError as error:
        print(f"without the oracle: {error}", file=sys.stderr)
        return [*there, *fid]
    return [*there, ORACLE, FID]


def frame(content: dict):
    """The results as a DataFrame, as `tables.frame` makes it."""
    from .tables import frame

    weights = content.get("weights of the oracle")
    weighed = lambda rows: (
        rows if weights is None else rows | {ORACLE: np.multiply(rows[ORACLE], weights)}
    )
    return frame(
        {label: weighed(rows) for label, rows in content["values"].items()},
        content["baseline"],
        single=content["single"],
    )


def table(content: dict, style: str = "markdown") -> str:
    """The results as text: "markdown", "latex" (both with the task families in a table of their own) or "csv"."""
    from . import tables

    rows = frame(content)
    if style == "csv":
        return rows.to_csv()
    known = list(dict.fromkeys(rows.index.get_level_values("metric")))
    families = [metric for metric in known if metric.startswith(f"{ORACLE}:")]
    shown = [[metric for metric in known if metric not in families], families]
    parts = [getattr(tables, style)(rows, names) for names in shown if names]
    note = f"{content['pairs']} prompt-seed pairs; in brackets the difference to {content['baseline']} with its 95 % bootstrap interval."
    if len(content["values"]) == 1:
        note = f"{content['pairs']} prompt-seed pairs."
    if "fid" in content:
        fid = content["fid"]
        note += f" FID (lower is better): {fid['features']}, {fid['width']} features, against {fid['reference']}."
        if fid["pictures"] <= fid["width"]:
            note += f" It is biased upwards with {fid['pictures']} pictures: compare only equal numbers of them."
    return "\n\n".join([*parts, f"% {note}" if style == "latex" else note])


def images(files: Sequence[Path], batch_size: int) -> Iterator[Tensor]:
    """Pictures as tensors (B, 3, H, W) in [0, 1], up to `batch_size` of one size at a time, in order."""
    from PIL import Image

    def read(file: Path) -> Tensor:
        with Image.open(file) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255

    for _, group in itertools.groupby(map(read, files), key=lambda picture: picture.shape):
        while batch := list(itertools.islice(group, batch_size)):
            yield torch.stack(batch)


def _labelled(sets: Sequence[Pictures]) -> dict[str, Pictures]:
    names = [pictures.folder.resolve().name for pictures in sets]
    labels = names if len(set(names)) == len(names) else [str(pictures.folder) for pictures in sets]
    if len(set(labels)) < len(labels):
        raise ValueError(f"a folder is named twice: {', '.join(labels)}")
    for pictures in sets[1:]:
        for n, (one, other) in enumerate(itertools.zip_longest(sets[0].pairs, pictures.pairs)):
            if one != other:
                raise ValueError(
                    f"{sets[0].folder} and {pictures.folder} cannot be paired: picture {n} is {one} there and {other} here; "
                    "generate both from the same prompts with the same --seed"
                )
    return dict(zip(labels, sets, strict=True))


@torch.no_grad()
def _judged(
    pictures: Pictures,
    judges: dict[str, Callable],
    oracle: bool,
    extract: Callable | None,
    batch_size: int,
    label: str,
) -> tuple[dict[str, list[float]], np.ndarray]:
    """Each metric's value of each picture, and the features."""
    from tqdm.auto import tqdm

    values: dict[str, list[float]] = {name: [] for name in judges} | (
        {ORACLE: []} if oracle else {}
    )
    found, start = [np.zeros((0, 1))], 0
    hidden = {"disable": True} if os.environ.get("TQDM_DISABLE") else {}
    with tqdm(total=len(pictures.files), desc=f"evaluate {label}", unit="picture", **hidden) as bar:
        for batch in images(pictures.files, batch_size):
            prompts = list(pictures.prompts[start : start + len(batch)])
            for name, judge in judges.items():
                values[name] += score(
                    judge, batch, prompts, f" of {pictures.folder}", start
                ).tolist()
            if oracle:
                values[ORACLE] += measures.oracle(batch, prompts)
            if extract is not None:
                found.append(extract(batch).float().cpu().numpy())
            start += len(batch)
            bar.update(len(batch))
    return values | (
        _by_family(values[ORACLE], _families(pictures)) if oracle else {}
    ), np.concatenate(found[1:] or found)


def _families(pictures: Pictures) -> list[str]:
    return list(pictures.families or map(measures.family, pictures.prompts))


def _by_family(right: list[float], families: list[str]) -> dict[str, list[float]]:
    """The oracle's values for each task family, where there are several."""
    names = list(dict.fromkeys(families))
    part = lambda name: [value for value, own in zip(right, families, strict=True) if own == name]
    return {f"{ORACLE}: {name}": part(name) for name in names} if len(names) > 1 else {}


def _features(pictures: Pictures) -> str:
    from ..backbones import SHIPPED

    return HELDOUT if pictures.model in SHIPPED else measures.INCEPTION


def _reference(
    pictures: Pictures, source: str | Path | None, extract: Callable, batch_size: int, least: int
) -> Statistics:
    from ..backbones import SHIPPED

    if source is None:
        if pictures.model not in SHIPPED:
            raise ValueError(
                "FID needs a reference: give --fid-reference, an .npz of mu and sigma or a folder of pictures"
            )
        return Statistics.of(
            measures.features(measures.real_pictures(pictures.prompts, least=least), extract)
        )
    if Path(source).is_dir():
        files = sorted(
            file
            for file in Path(source).rglob("*")
            if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp")
        )
        if len(files) < 2:
            raise ValueError(
                f"{source} holds {len(files)} pictures; a reference needs two at least, and as many thousands as there are"
            )
        return Statistics.of(measures.features(images(files, batch_size), extract))
    return Statistics.read(source)


def _model(folder: Path) -> str | None:
    """What `dk.load` took to load the model, by the folder's settings."""
    if not (folder / SETTINGS).is_file():
        return None
    return read_settings(folder / SETTINGS).get("sampler", {}).get("backbone", {}).get("backbone")
