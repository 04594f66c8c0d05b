"""PickScore: a CLIP trained on which of two pictures people pick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from torch import Tensor

from ..registry import option
from .clip_score import TowerReward, TransformersCLIP

PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # what the model card names


@dataclass(repr=False, eq=False)
class PickScore(TowerReward):
    """exp(logit_scale) cos(image features, text features), (B,), about 15 to 25.

    Kirstain et al. 2023, Eq. 1. Images are resized as the published preprocessing does.
    """

    name = "PickScore"

    model: str | Path = option(
        "yuvalkirstain/PickScore_v1",
        help="Hub id of a transformers `CLIPModel`, or a folder that holds its tokenizer too.",
    )
    _: KW_ONLY
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        beside = None if Path(self.model).is_dir() else PROCESSOR
        self.hold_towers(TransformersCLIP(str(self.model), beside))

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.network.logit_scale.exp() * super().forward(images, prompts)
