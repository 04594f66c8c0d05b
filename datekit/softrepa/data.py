"""Image-caption pairs to learn from: lists, or files of captions."""

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

from ..backbones import Backbone
from ..editing.images import as_images
from ..texts import TEXT, read_pictures


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images and a caption of each; one with several captions stands there once for each.

    images: anything that `dk.editing.as_images` reads; negatives: for each image, captions that are
    nearly right and false of it; name: what the data are called.
    """

    images: Sequence[Any]
    captions: Sequence[str]
    negatives: Sequence[Sequence[str]] = ()
    name: str = "pairs"

    def __post_init__(self) -> None:
        count = len(self.captions)
        if len(self.images) != count or len(self.negatives) not in (0, count):
            raise ValueError(
                f"{self.name}: {len(self.images)} images, {count} captions and "
                f"{len(self.negatives)} lists of negatives do not go together"
            )
        if not all(caption.strip() for caption in self.captions):
            raise ValueError(f"{self.name}: a caption is empty")
        if len(set(self.captions)) < 2:
            raise ValueError(f"{self.name}: contrast needs at least two different captions")

    def __len__(self) -> int:
        return len(self.captions)

    @torch.no_grad()
    def latents(self, backbone: Backbone, numbers: Sequence[int]) -> Tensor:
        """Some images as latents (B, C, h, w), resized and cropped to the model's own size."""
        return backbone.encode_images(as_images([self.images[n] for n in numbers], backbone))

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of captions and images: of a file its name, size and time of change."""
        texts = list(self.captions), [list(texts) for texts in self.negatives]
        digest = hashlib.blake2b(repr(texts).encode(), digest_size=12)
        for image in self.images:
            if isinstance(image, (str, Path)):
                facts = Path(image).stat()
                digest.update(f"{image}/{facts.st_size}/{facts.st_mtime_ns}".encode())
            else:
                digest.update(np.asarray(image).tobytes())
        return digest.hexdigest()


def read_pairs(source: str | Path, *, images: str | Path | None = None) -> Pairs:
    """Pairs from captions of pictures.

    source: a file that `texts.read_records` reads, such as COCO's captions, or a folder with such a
    metadata.csv or metadata.jsonl; images: the folder that file names are relative to, by default
    the file's own.
    """
    files, records = zip(*read_pictures(source, images), strict=True)
    return Pairs(files, [record.text(*TEXT) for record in records], name=str(source))
