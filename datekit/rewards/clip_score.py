"""CLIP score: cosine of image and text features of a CLIP model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ..registry import option
from .clip_towers import TowerReward, towers


@dataclass(repr=False, eq=False)
class CLIPScore(TowerReward):
    """cos(image features, text features), (B,) in [-1, 1], unscaled (Hessel et al. 2021).

    DATE's authors resized with antialias=False; interpolation="bicubic" is what the library's own
    preprocessing of files does (`datekit evaluate` asks for it). The library's tokenizer cuts
    prompts that are too long.
    """

    SHIPPED: ClassVar = {"shapes-clip": "clip", "shapes-clip-heldout": "clip-heldout"}

    model: str | Path = option(
        help="An open_clip model that has a tag, or without one a folder in open_clip's or "
        "transformers' layout, the hub id of a transformers `CLIPModel`, or open_clip's own "
        "'local-dir:folder' and 'hf-hub:owner/name'."
    )
    tag: str | None = option(None, help="Which of open_clip's weights, 'openai' for instance.")

    def __post_init__(self) -> None:
        names = [str(name) for name in (self.model, self.tag) if name is not None]
        self.name = f"CLIPScore({', '.join(map(repr, names))})"
        self.hold(towers(self.model, self.tag))

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The cosines, (B,); carries gradient to the images."""
        return self.cosine(images, prompts)
