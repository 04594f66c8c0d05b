"""CLIP score: cosine of image and text features of a CLIP model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .clip_towers import TowerReward, towers


class CLIPScore(TowerReward):
    """cos(image features, text features), (B,) in [-1, 1]; float32, weights frozen (Hessel et al. 2021, unscaled).

    model, tag: an open_clip model and its tag, ("ViT-L-14", "openai"), or, without a tag, a folder in open_clip's or
    transformers' layout, the hub id of a transformers `CLIPModel`, or open_clip's own "local-dir:folder" and
    "hf-hub:owner/name"; antialias, interpolation: how images are resized to the model's input: antialias False as the authors' code
    did, interpolation "bicubic" as the library's own preprocessing of files does (`datekit evaluate` asks for it). Prompts that are
    too long are cut by the library's tokenizer.
    """

    def __init__(
        self,
        model: str | Path,
        tag: str | None = None,
        *,
        device: str | None = None,
        antialias: bool = True,
        interpolation: str = "bilinear",
        name: str | None = None,
    ) -> None:
        model = str(model)
        settings = {
            "model": model,
            "tag": tag,
            "antialias": antialias,
            "interpolation": interpolation,
        }
        super().__init__(
            towers(model, tag),
            name=name or f"CLIPScore({model!r}{'' if tag is None else f', {tag!r}'})",
            device=device,
            antialias=antialias,
            interpolation=interpolation,
            settings=settings,
        )

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The cosines, (B,); carries gradient to the images."""
        return self.cosine(images, prompts)
