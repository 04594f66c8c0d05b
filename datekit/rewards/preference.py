"""A small ImageReward: a CLIP with a head, trained on which of two pictures is preferred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..registry import option
from .towers import OpenCLIP, TowerReward

HIDDEN = 64
HEAD = "head.safetensors"


@dataclass(repr=False, eq=False)
class PreferenceScore(TowerReward):
    """h(image, prompt), (B,), with P(a preferred to b) = sigmoid(h(a) - h(b)) (Bradley-Terry)."""

    SHIPPED: ClassVar = {"shapes-preference": "preference"}
    name = "PreferenceScore"

    folder: str | Path = option(
        help="An open_clip folder with head.safetensors, or a shipped name."
    )

    def __post_init__(self) -> None:
        from safetensors.torch import load_file

        folder = self.located(self.folder)
        weights = load_file(Path(folder) / HEAD)
        pair = OpenCLIP(f"local-dir:{folder}")
        head = PreferenceHead(weights["first.weight"].shape[1] // 3)
        head.load_state_dict(weights)
        pair.network.add_module("preference_head", head)
        self.hold_towers(pair)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        z, y = self.image_features(images), self.text_features(prompts)
        return self.network.preference_head(z, y)


class PreferenceHead(nn.Module):
    """scale cos(z, y) + mlp(z, y, z y) of unit features z of an image and y of a prompt."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3 * features, HIDDEN), nn.Linear(HIDDEN, 1, bias=False)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        both = z * y
        size = z.shape[1] ** 0.5  # entries of unit features are small; this makes them near 1
        features = torch.cat([z * size, y * size, both * size**2], 1)
        free = self.second(nn.functional.silu(self.first(features)))
        return self.scale * both.sum(1) + free[:, 0]
