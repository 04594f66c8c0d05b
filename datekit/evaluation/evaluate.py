"""Folders of pictures judged, each picture by itself, and folders against each other in pairs.

evaluation = evaluate(["pictures/fixed", "pictures/date"])
print(evaluation.table())
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..backbones import CLOSED_FORM, SHIPPED
from ..errors import check_context, whole
from ..lazy import needs
from ..rewards.base import score
from ..shapes.captions import parse
from ..texts import PICTURES
from . import metrics as measures
from .folders import Pictures, images
from .results import FID, ORACLE, Evaluation, Scores

HELDOUT = "shapes-clip-heldout"
FILES = {"interpolation": "bicubic", "fit": "own"}  # how published scores read files
# the judges of the shapes world, which stand for the published ones; then the guide
SHAPES = (HELDOUT, "shapes-preference", "shapes-aesthetic", "shapes-clip", ORACLE, FID)
PUBLISHED = ("CLIPScore:ViT-g-14,laion2b_s12b_b42k", "ImageReward", "AestheticScore")


def evaluate(
    folders: Sequence[str | Path],
    *,
    metrics: Sequence[str] | None = None,
    fid_reference: str | Path | None = None,
    batch_size: int = 16,
    device: str | None = None,
) -> Evaluation:
    """Judge folders of pictures; the first is the baseline of paired differences.

    metrics: "oracle" (of the shapes world, also by task family), "fid", and rewards as
    `reward_by_name` takes them, with each score's own preprocessing of files; by default those of
    the model, without those of the shapes world where a prompt is not of it.
    fid_reference: a folder of pictures; in the shapes world by default true pictures of the same
    prompts. Raises ValueError for folders that do not share prompts and seeds, and RuntimeError
    inside torch.autocast.
    """
    _check_names("folders", folders)
    _check_names("metrics", [ORACLE] if metrics is None else metrics)
    whole("batch_size", batch_size, 1)
    check_context(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    sets = [Pictures.read(folder) for folder in folders]
    labels = _labels(sets)
    metrics = _metrics(sets[0], metrics, fid_reference)
    judges = {}
    for name in metrics:
        if name == ORACLE:
            judges[name] = measures.oracle
        elif name != FID:
            judges[name] = measures.reward_by_name(name, device=device, **FILES)
    extract = true = reference = None
    if FID in metrics:
        extract, true, reference = _reference(sets[0], fid_reference, batch_size, device)
    scores = []
    for label, pictures in zip(labels, sets, strict=True):
        values, fid = _judge(label, pictures, judges, batch_size), None
        if extract is not None:
            seen = measures.features(images(pictures.files, batch_size), extract)
            fid = measures.frechet_distance(seen, true)
        scores.append(Scores(label, str(pictures.folder), values, fid))
    families = [row.family for row in sets[0].rows]
    known = families if ORACLE in metrics and None not in families else None
    return Evaluation(scores, len(families), known, reference)


def _check_names(what: str, names: Sequence[str | Path]) -> None:
    """Raise ValueError unless these are several names, one at least."""
    one = isinstance(names, (str, Path))
    if one or not names or not all(isinstance(name, (str, Path)) for name in names):
        raise ValueError(f"{what} must be a list of names, one at least, got {names!r}")


def _metrics(pictures: Pictures, names: Sequence[str] | None, reference: Any) -> Sequence[str]:
    """The metrics that were asked for, or else those that fit the model and its prompts.

    Raises ValueError for one that knows the shapes world alone, where a prompt is not of it.
    """
    worldly = {ORACLE} if reference or pictures.model not in SHIPPED else {ORACLE, FID}
    try:
        for row in pictures.rows:
            parse(row.prompt)
    except ValueError as error:
        if asked := ", ".join(worldly.intersection(names or ())):
            told = f"{asked} knows the shapes world alone, so leave it out of the metrics"
            raise ValueError(f"{told}: {error}") from error
    else:
        worldly = set()
    if names is not None:
        return names
    if pictures.model in SHIPPED:
        return [name for name in SHAPES if name not in worldly]
    others = ("target",) if pictures.model in CLOSED_FORM else PUBLISHED
    return others if reference is None else (*others, FID)


def _labels(sets: Sequence[Pictures]) -> list[str]:
    """A name for each folder. Raises ValueError where prompts or seeds differ."""
    for other in sets:
        if other.rows != sets[0].rows:
            raise ValueError(f"{other.folder} has other prompts or seeds than {sets[0].folder}")
    labels = [pictures.folder.resolve().name for pictures in sets]
    if len(set(labels)) < len(labels):
        labels = [str(pictures.folder) for pictures in sets]
    if len(set(labels)) < len(labels):
        raise ValueError(f"a folder is named twice: {', '.join(labels)}")
    return labels


@torch.no_grad()
def _judge(label: str, pictures: Pictures, judges: dict, batch_size: int) -> dict[str, list]:
    """Each judge's value of each picture."""
    values: dict[str, list[float]] = {name: [] for name in judges}
    files, start = tqdm(pictures.files, desc=f"evaluate {label}", unit="picture"), 0
    for batch in images(files, batch_size):
        prompts = [row.prompt for row in pictures.rows[start : start + len(batch)]]
        for name, judge in judges.items():
            values[name] += score(judge, batch, prompts, f" of {pictures.folder}", start).tolist()
        start += len(batch)
    return values


def _reference(
    pictures: Pictures, folder: str | Path | None, batch_size: int, device: str | None
) -> tuple[Callable[[Tensor], Tensor], Tensor, str]:
    """What the Frechet distance is taken to: extractor, its features (N, F), and both in words."""
    needs("torch_fidelity", "fid", "FID")  # before pictures are judged, which takes long
    if folder is not None:
        files = [file for file in Path(folder).rglob("*") if file.suffix.lower() in PICTURES]
        if not files:
            raise ValueError(f"{folder}, the reference of FID, holds no pictures")
        batches = images(sorted(files), batch_size)
    elif pictures.model in SHIPPED:
        batches = measures.real_pictures([row.prompt for row in pictures.rows])
    else:
        raise ValueError("FID needs a reference: give --fid-reference, a folder of pictures")
    if pictures.model in SHIPPED:
        name, extract = HELDOUT, measures.reward_by_name(HELDOUT, device=device).image_features
    else:
        name, extract = "inception", measures.inception(device)
    true, count = measures.features(batches, extract), len(pictures.files)
    against = folder or "true pictures of the same prompts"
    text = f"{name}, {true.shape[1]} features, against {against}"
    if count <= true.shape[1]:
        text += f"; biased upwards with {count} pictures: compare equal numbers only"
    return extract, true, text
