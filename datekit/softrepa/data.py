"""Image-caption pairs to learn from: lists, files of captions, folders, or the shapes world."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..editing.images import as_images
from ..shapes import caption, families, hard_negatives, render, sample_scenes
from ..texts import FILE, PICTURES, TEXT, read_records


@dataclass(frozen=True, eq=False)
class Pairs:
    """N images and R captions of them; an image may have several captions.

    images: anything that `dk.editing.as_images` reads; negatives: for each caption, captions that
    are nearly right and false of its image; rows: (R,), the number of the image that each caption
    is of, by default one an image in order; name: what the data are called.
    """

    images: Sequence[Any]
    captions: Sequence[str]
    negatives: Sequence[Sequence[str]] = ()
    rows: Sequence[int] | None = None
    name: str = "pairs"

    def __post_init__(self) -> None:
        if self.rows is None:
            object.__setattr__(self, "rows", range(len(self.images)))
        count = len(self.captions)
        if len(self.rows) != count or len(self.negatives) not in (0, count):
            raise ValueError(
                f"{self.name}: {len(self.rows)} images, {count} captions and "
                f"{len(self.negatives)} lists of negatives do not go together"
            )
        if len(set(self.captions)) < 2:
            raise ValueError(f"{self.name}: contrast needs at least two different captions")

    def __len__(self) -> int:
        return len(self.captions)

    @torch.no_grad()
    def latents(self, backbone, numbers: Sequence[int]) -> Tensor:
        """Some images as latents (B, C, h, w), resized and cropped to the model's own size."""
        images = as_images([self.images[n] for n in numbers], backbone)
        return backbone.encode_images(images)

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of captions and images: of a file its name, size and time of change."""
        texts = list(self.captions), [list(texts) for texts in self.negatives]
        digest = hashlib.blake2b(repr((list(self.rows), texts)).encode(), digest_size=12)
        for image in self.images:
            if isinstance(image, (str, Path)):
                facts = Path(image).stat()
                digest.update(f"{image}/{facts.st_size}/{facts.st_mtime_ns}".encode())
            else:
                image = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
                digest.update(image.tobytes())
        return digest.hexdigest()


def read_pairs(source: str | Path, *, images: str | Path | None = None, seed: int = 0) -> Pairs:
    """Pairs from a file of captions, a folder, or "shapes[:N]", N scenes of that world.

    A file is one that `texts.read_records` reads, with a file_name or image and a caption, prompt
    or text of each, and may have a column negative, false captions with "|" between. A folder holds
    such a metadata.csv, or images each with a text file of the same name, one caption a line.
    images: the folder that file names are relative to; by default the file's own, and of COCO's
    captions_SPLIT.json the SPLIT beside its folder. seed: of the shapes world.
    """
    path, (kind, _, number) = Path(source), str(source).partition(":")
    if kind == "shapes":
        if not (number or "2000").isdigit():
            raise ValueError(f"pairs of the shapes world are written shapes:N, got {source!r}")
        return shapes_pairs(int(number or 2000), seed)
    table = path / "metadata.csv" if path.is_dir() else path
    if table.is_file():
        found = _of_file(table, images)
    else:
        found = []
        for image in sorted(path.iterdir()):
            if image.suffix.lower() in PICTURES:
                records = read_records(image.with_suffix(".txt"))
                if not records:
                    raise ValueError(f"{image.with_suffix('.txt')} holds no caption")
                found += [(image, record.text(*TEXT), ()) for record in records]
    files = list(dict.fromkeys(image for image, _, _ in found))
    missing = [str(image) for image in files if not image.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} names {len(missing)} images that are not there: {', '.join(missing[:3])}"
        )
    number = {image: n for n, image in enumerate(files)}
    rows = [number[image] for image, _, _ in found]
    captions, negatives = [text for _, text, _ in found], [wrong for _, _, wrong in found]
    return Pairs(files, captions, negatives, rows, str(path))


def _of_file(path: Path, folder: str | Path | None) -> list[tuple[Path, str, tuple[str, ...]]]:
    """Image, caption and false captions of each record."""
    if folder is None:
        coco = path.parent.parent / path.stem.removeprefix("captions_")
        folder = coco if path.suffix == ".json" else path.parent
    found = []
    for record in read_records(path):
        wrong = [text.strip() for text in (record.cells.get("negative") or "").split("|")]
        image = Path(folder) / record.text(*FILE)
        found.append((image, record.text(*TEXT), tuple(filter(None, wrong))))
    return found


def shapes_pairs(n: int = 2000, seed: int = 0, *, negatives: int = 4) -> Pairs:
    """n training scenes of the shapes world, each with a true caption of any family that fits.

    negatives: how many false captions, one edit away from the true one, each gets.
    """
    rng = np.random.default_rng([seed, 1])
    scenes, captions, wrong = sample_scenes(n, seed), [], []
    for scene in scenes:
        fitting = families(scene)
        captions.append(caption(scene, fitting[rng.integers(len(fitting))], rng))
        if negatives:
            wrong.append(hard_negatives(captions[-1], scene.things, negatives, rng))
    images = [render([scene])[0] for scene in scenes]
    return Pairs(images, captions, wrong, name=f"shapes:{n}")
