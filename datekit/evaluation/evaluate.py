"""Folders of pictures judged, each picture by itself, and folders against each other in pairs.

evaluation = evaluate(["pictures/fixed", "pictures/date"])
print(evaluation.table())
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..backbones import CLOSED_FORM, SHIPPED
from ..errors import whole
from ..rewards.base import score
from ..texts import PICTURES
from . import metrics as measures
from .folders import Pictures, images
from .results import FID, ORACLE, Evaluation, Scores

HELDOUT = "shapes-clip-heldout"
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
    out: str | Path | None = None,
) -> Evaluation:
    """Judge folders of pictures; the first is the baseline of paired differences.

    metrics: "oracle" (of the shapes world, also by task family), "fid", and rewards as
    `reward_named` takes them, resized as for files (bicubic); by default what `automatic` finds.
    fid_reference: a folder of pictures; in the shapes world by default true pictures of the same
    prompts. out: a file (JSON) for the results. Raises ValueError for folders that do not share
    prompts and seeds.
    """
    whole("batch_size", batch_size, 1)
    for name, given in (("folders", folders), ("metrics", metrics)):
        if isinstance(given, (str, Path)) or (given is not None and not len(given)):
            raise ValueError(f"{name} must be a list with one entry at least, got {given!r}")
    sets = _paired(folders)
    first = next(iter(sets.values()))
    metrics = automatic(first, fid_reference) if metrics is None else list(dict.fromkeys(metrics))
    judges = {name: _judge_named(name, device) for name in metrics if name != FID}
    extract = true = reference = None
    if FID in metrics:
        extract, true, reference = _reference(first, fid_reference, batch_size, device)
    scores = []
    for label, pictures in sets.items():
        values, seen = _judge(label, pictures, judges, extract, batch_size)
        fid = None if extract is None else measures.frechet_distance(torch.cat(seen), true)
        scores.append(Scores(label, str(pictures.folder), values, fid))
    families = tuple(row.family for row in first.rows) if ORACLE in metrics else None
    evaluation = Evaluation(tuple(scores), len(first.files), families, reference)
    if out is not None:
        evaluation.write(out)
    return evaluation


def _paired(folders: Sequence[str | Path]) -> dict[str, Pictures]:
    """The folders by their labels. Raises ValueError where prompts or seeds differ."""
    sets = [Pictures.read(folder) for folder in folders]
    for other in sets:
        if other.pairs != sets[0].pairs:
            raise ValueError(
                f"{sets[0].folder} and {other.folder} cannot be paired: prompts or seeds differ"
            )
    labels = [pictures.folder.resolve().name for pictures in sets]
    if len(set(labels)) < len(labels):
        labels = [str(pictures.folder) for pictures in sets]
    if len(set(labels)) < len(labels):
        raise ValueError(f"a folder is named twice: {', '.join(labels)}")
    return dict(zip(labels, sets, strict=True))


def _judge_named(name: str, device: str | None) -> Callable:
    if name == ORACLE:
        return measures.oracle
    return measures.reward_named(name, device=device, interpolation="bicubic")


def automatic(pictures: Pictures, fid_reference: str | Path | None = None) -> list[str]:
    """The metrics that fit the model that made the pictures; with a reference, fid among them."""
    fid = [] if fid_reference is None else [FID]
    if pictures.model in SHIPPED:
        return [*SHAPES]
    return ["target", *fid] if pictures.model in CLOSED_FORM else [*PUBLISHED, *fid]


@torch.no_grad()
def _judge(
    label: str,
    pictures: Pictures,
    judges: dict[str, Callable],
    extract: Callable[[Tensor], Tensor] | None,
    batch_size: int,
) -> tuple[dict[str, list[float]], list[Tensor]]:
    """Each judge's value of each picture, and the pictures' features, (B, F) of each batch."""
    values: dict[str, list[float]] = {name: [] for name in judges}
    features, start = [], 0
    with tqdm(total=len(pictures.files), desc=f"evaluate {label}", unit="picture") as bar:
        for batch in images(pictures.files, batch_size):
            prompts = [row.prompt for row in pictures.rows[start : start + len(batch)]]
            for name, judge in judges.items():
                h = score(judge, batch, prompts, f" of {pictures.folder}", start)
                values[name] += h.tolist()
            if extract is not None:
                features.append(extract(batch).float().cpu())
            start += len(batch)
            bar.update(len(batch))
    return values, features


def _reference(
    pictures: Pictures, folder: str | Path | None, batch_size: int, device: str | None
) -> tuple[Callable[[Tensor], Tensor], Tensor, str]:
    """What the Frechet distance is taken to: extractor, its features (N, F), and both in words."""
    if folder is not None:
        files = [file for file in Path(folder).rglob("*") if file.suffix.lower() in PICTURES]
        batches = images(sorted(files), batch_size)
    elif pictures.model in SHIPPED:
        batches = measures.real_pictures([row.prompt for row in pictures.rows])
    else:
        raise ValueError("FID needs a reference: give --fid-reference, a folder of pictures")
    name = HELDOUT if pictures.model in SHIPPED else measures.INCEPTION
    extract = measures.extractor(name, device=device)
    true = measures.features(batches, extract)
    against = folder or "true pictures of the same prompts"
    text = f"{name}, {true.shape[1]} features, against {against}"
    if len(pictures.files) <= true.shape[1]:
        few = f"biased upwards with {len(pictures.files)} pictures"
        text = f"{text}; {few}: compare equal numbers only"
    return extract, true, text
