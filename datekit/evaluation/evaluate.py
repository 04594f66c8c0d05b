"""Folders of pictures judged, each picture by itself, and folders against each other in pairs.

evaluation = evaluate(["pictures/fixed", "pictures/date"])
print(evaluation.table())
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..backbones import CLOSED_FORM, SHIPPED
from ..errors import whole
from ..rewards.base import score
from . import metrics as measures
from .folders import Pictures, images
from .machine import facts
from .metrics import Statistics
from .options import reward_named
from .results import FID, ORACLE, Evaluation, Reference, Scores

HELDOUT = "shapes-clip-heldout"
# the judges of the shapes world, which stand for the published ones; then the guide
SHAPES = (HELDOUT, "shapes-preference", "shapes-aesthetic", "shapes-clip")
PUBLISHED = ("CLIPScore:ViT-g-14,laion2b_s12b_b42k", "ImageReward", "AestheticScore")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


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
) -> Evaluation:
    """Judge folders of pictures; the first is the baseline of paired differences.

    metrics: "oracle" (of the shapes world, also by task family), "fid", and rewards as
    `reward_named` takes them; by default those that `automatic` finds. fid_reference: an .npz of mu
    and sigma, or a folder of pictures; in the shapes world by default true pictures of the same
    prompts, `reference_pictures` at least. fid_features: as `metrics.extractor` takes them; by
    default the held-out CLIP in the shapes world and Inception elsewhere. out: a file (JSON) for
    the results. Published rewards see pictures as their own preprocessing of files brings them to
    size (bicubic). Raises ValueError for folders that do not share prompts and seeds.
    """
    whole("batch_size", batch_size, 1)
    sets = _labelled([Pictures.read(folder) for folder in folders])
    first = next(iter(sets.values()))
    metrics = automatic(first, fid_reference) if metrics is None else list(dict.fromkeys(metrics))
    judges: dict[str, Callable] = {}
    for name in metrics:
        if name == ORACLE:
            judges[name] = measures.oracle
        elif name != FID:
            judges[name] = reward_named(name, device=device, interpolation="bicubic")
    extract = statistics = reference = None
    if FID in metrics:
        name = fid_features or (HELDOUT if first.model in SHIPPED else measures.INCEPTION)
        extract = measures.extractor(name, device=device)
        statistics = _statistics(first, fid_reference, extract, batch_size, reference_pictures)
        source = str(fid_reference or "true pictures of the same prompts")
        reference = Reference(name, len(statistics.mu), statistics.count, source)
    scores = []
    for label, pictures in sets.items():
        scores.append(_judge(label, pictures, judges, extract, statistics, batch_size))
    evaluation = Evaluation(
        folders=tuple(scores),
        pairs=len(first.files),
        made=facts(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        families=_families(first) if ORACLE in metrics else None,
        reference=reference,
    )
    if out is not None:
        evaluation.write(out)
    return evaluation


def automatic(pictures: Pictures, fid_reference: str | Path | None = None) -> list[str]:
    """The metrics that fit the model that made the pictures.

    In the shapes world they are the held-out CLIP, preference, look, the guide and, where it can
    read all prompts, the oracle and fid. For the closed forms it is "target", for other models the
    CLIP score of ViT-g-14, ImageReward and the aesthetic score. With a reference, fid comes along.
    """
    fid = [] if fid_reference is None else [FID]
    if pictures.model in CLOSED_FORM:
        return ["target", *fid]
    if pictures.model not in SHIPPED:
        return [*PUBLISHED, *fid]
    try:
        _families(pictures)
    except ValueError as error:
        print(f"without the oracle: {error}", file=sys.stderr)
        return [*SHAPES, *fid]
    return [*SHAPES, ORACLE, FID]


def _labelled(sets: Sequence[Pictures]) -> dict[str, Pictures]:
    """The folders by their labels. Raises ValueError where they cannot be compared in pairs."""
    labels = [pictures.folder.resolve().name for pictures in sets]
    if len(set(labels)) < len(labels):
        labels = [str(pictures.folder) for pictures in sets]
    if len(set(labels)) < len(labels):
        raise ValueError(f"a folder is named twice: {', '.join(labels)}")
    for pictures in sets[1:]:
        pairs = itertools.zip_longest(sets[0].pairs, pictures.pairs)
        for n, (one, other) in enumerate(pairs):
            if one != other:
                raise ValueError(
                    f"{sets[0].folder} and {pictures.folder} cannot be paired: picture {n} is "
                    f"{one} there and {other} here; generate both from the same prompts with the "
                    "same --seed"
                )
    return dict(zip(labels, sets, strict=True))


@torch.no_grad()
def _judge(
    label: str,
    pictures: Pictures,
    judges: dict[str, Callable],
    extract: Callable[[Tensor], Tensor] | None,
    reference: Statistics | None,
    batch_size: int,
) -> Scores:
    """Each judge's value of each picture, and the distance of their features to the reference."""
    values: dict[str, list[float]] = {name: [] for name in judges}
    features, start = [], 0
    hidden = "TQDM_DISABLE" in os.environ
    total = len(pictures.files)
    with tqdm(total=total, desc=f"evaluate {label}", unit="picture", disable=hidden) as bar:
        for batch in images(pictures.files, batch_size):
            prompts = pictures.prompts[start : start + len(batch)]
            for name, judge in judges.items():
                if name == ORACLE:
                    values[name] += judge(batch, prompts)
                else:
                    h = score(judge, batch, prompts, f" of {pictures.folder}", start)
                    values[name] += h.tolist()
            if extract is not None:
                features.append(extract(batch).float().cpu())
            start += len(batch)
            bar.update(len(batch))
    fid = None
    if reference is not None:
        statistics = Statistics.of(torch.cat(features).numpy())
        fid = measures.frechet_distance(statistics, reference)
    return Scores(label, str(pictures.folder), values, fid)


def _families(pictures: Pictures) -> tuple[str, ...]:
    """The task family of each picture: what its row says, or its prompt."""
    return tuple(row.family or measures.family(row.prompt) for row in pictures.rows)


def _statistics(
    pictures: Pictures,
    source: str | Path | None,
    extract: Callable[[Tensor], Tensor],
    batch_size: int,
    least: int,
) -> Statistics:
    """The reference of the Frechet distance."""
    if source is None:
        if pictures.model not in SHIPPED:
            raise ValueError(
                "FID needs a reference: give --fid-reference, an .npz of mu and sigma or a folder "
                "of pictures"
            )
        true = measures.real_pictures(pictures.prompts, least=least)
        return Statistics.of(measures.features(true, extract))
    if not Path(source).is_dir():
        return Statistics.read(source)
    files = sorted(file for file in Path(source).rglob("*") if file.suffix.lower() in ENDINGS)
    if len(files) < 2:
        raise ValueError(f"{source} holds {len(files)} pictures; a reference needs two at least")
    return Statistics.of(measures.features(images(files, batch_size), extract))
