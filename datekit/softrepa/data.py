"""Image-caption pairs to learn from: lists, files of captions, or the shapes world."""

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
from ..texts import TEXT, read_pictures


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
                digest.update(np.asarray(image).tobytes())
        return digest.hexdigest()


def read_pairs(source: str | Path, *, images: str | Path | None = None, seed: int = 0) -> Pairs:
    """Pairs from captions of pictures, or "shapes:N", which is N scenes of the shapes world.

    source: a file that `texts.read_records` reads, such as COCO's captions, or a folder with such a
    metadata.csv or metadata.jsonl; images: the folder that file names are relative to, by default
    the file's own; seed: of the shapes world.
    """
    kind, _, number = str(source).partition(":")
    if kind == "shapes":
        return shapes_pairs(int(number), seed)
    named = read_pictures(source, images)
    numbers = {file: n for n, file in enumerate(dict.fromkeys(file for file, _ in named))}
    captions = [record.text(*TEXT) for _, record in named]
    rows = [numbers[file] for file, _ in named]
    return Pairs(list(numbers), captions, rows=rows, name=str(source))


def shapes_pairs(n: int = 2000, seed: int = 0) -> Pairs:
    """n training scenes of the shapes world, each with a true caption of any family that fits.

    Each caption comes with four false ones, an edit away from it.
    """
    rng = np.random.default_rng([seed, 1])
    scenes, captions, wrong = sample_scenes(n, seed), [], []
    for scene in scenes:
        fitting = families(scene)
        captions.append(caption(scene, fitting[rng.integers(len(fitting))], rng))
        wrong.append(hard_negatives(captions[-1], scene.things, 4, rng))
    images = [render([scene])[0] for scene in scenes]
    return Pairs(images, captions, wrong, name=f"shapes:{n}")
