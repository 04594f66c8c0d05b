"""Aesthetic score: a linear head on the image features of a CLIP; the prompt plays no part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..registry import option
from .network import published_head
from .towers import TowerReward, towers

HEAD = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth"
)


@dataclass(repr=False, eq=False)
class AestheticScore(TowerReward):
    """head(unit image features), (B,), a rating from about 1 to 10; float32, weights frozen.

    The head is 768-1024-128-64-16-1 without activations, hence linear as a function, trained on
    SAC, logos and AVA. Images are resized as CLIP's own preprocessing does.
    """

    name = "AestheticScore"

    model: str | Path | None = option(
        None, help="A folder or hub id of another CLIP than OpenAI's ViT-L-14."
    )
    _: KW_ONLY
    head: str | Path | None = option(
        None, help="A local file in the layout of the published head, which is fetched without one."
    )
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        pair = towers(self.model) if self.model else towers("ViT-L-14", "openai")
        load = torch.load if self.head else torch.hub.load_state_dict_from_url
        weights = load(self.head or HEAD, map_location="cpu", weights_only=True)
        pair.network.add_module("aesthetic_head", published_head(weights, "layers"))
        self.hold_towers(pair)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.network.aesthetic_head(self.image_features(images))[:, 0]
