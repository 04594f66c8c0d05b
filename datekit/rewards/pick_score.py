"""PickScore: a CLIP trained on which of two pictures people pick."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .clip_towers import TowerReward, TransformersCLIP

PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # what the model card names


class PickScore(TowerReward):
    """exp(logit_scale) cos(image features, text features), (B,), about 15 to 25.

    Kirstain et al. 2023, Eq. 1. model: hub id or folder of a transformers `CLIPModel`; processor:
    hub id or folder of its tokenizer and normalisation, by default the one that the model card
    names, or the model's own folder; antialias, interpolation: how images are resized, by default
    as the published preprocessing does.
    """

    def __init__(
        self,
        model: str | Path = "yuvalkirstain/PickScore_v1",
        *,
        processor: str | None = None,
        device: str | None = None,
        antialias: bool = True,
        interpolation: str = "bicubic",
    ) -> None:
        model = str(model)
        resize = dict(antialias=antialias, interpolation=interpolation)
        beside = None if Path(model).is_dir() else PROCESSOR
        super().__init__(
            TransformersCLIP(model, processor or beside),
            name="PickScore",
            settings=dict(model=model, processor=processor, **resize),
            device=device,
            **resize,
        )

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scaled cosines, (B,); carries gradient to the images."""
        return self.model.logit_scale.exp().to(images.device) * self.cosine(images, prompts)
