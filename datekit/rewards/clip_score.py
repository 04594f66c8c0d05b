"""CLIP score: cosine of image and text features of a CLIP model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from .clip_towers import TowerReward, towers


class CLIPScore(TowerReward):
    """cos(image features, text features), (B,) in [-1, 1], unscaled (Hessel et al. 2021).

    model, tag: an open_clip model and its tag, ("ViT-L-14", "openai"), or, without a tag, a folder
    in open_clip's or transformers' layout, the hub id of a transformers `CLIPModel`, or open_clip's
    own "local-dir:folder" and "hf-hub:owner/name"; antialias, interpolation: how images are resized
    to the model's input. antialias=False is what DATE's authors did, and interpolation="bicubic"
    what the library's own preprocessing of files does (`datekit evaluate` asks for it). The
    library's tokenizer cuts prompts that are too long.
    """

    SHIPPED: ClassVar = {"shapes-clip": "clip", "shapes-clip-heldout": "clip-heldout"}

    def __init__(
        self,
        model: str | Path,
        tag: str | None = None,
        *,
        device: str | None = None,
        antialias: bool = True,
        interpolation: str = "bilinear",
    ) -> None:
        model = str(model)
        resize = dict(antialias=antialias, interpolation=interpolation)
        super().__init__(
            towers(model, tag),
            name=f"CLIPScore({model!r})" if tag is None else f"CLIPScore({model!r}, {tag!r})",
            settings=dict(model=model, tag=tag, **resize),
            device=device,
            **resize,
        )

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The cosines, (B,); carries gradient to the images."""
        return self.cosine(images, prompts)
