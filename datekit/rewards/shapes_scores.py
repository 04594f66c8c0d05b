"""The two small scores of the shapes world's raters: which picture they prefer, which look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..registry import option
from .network import NetworkReward
from .towers import OpenCLIP, TowerReward

HEAD, HIDDEN = "head.safetensors", 64  # of the preference
LOOK, SIZE, WIDTHS = "look.safetensors", 64, (16, 32, 48, 64)  # of the look; pixels a side


@dataclass(repr=False, eq=False)
class PreferenceScore(TowerReward):
    """h(image, prompt), (B,), with P(a preferred to b) = sigmoid(h(a) - h(b)) (Bradley-Terry)."""

    SHIPPED: ClassVar = {"shapes-preference": "preference"}
    name = "PreferenceScore"

    folder: str | Path = option(
        help="An open_clip folder with head.safetensors, or a shipped name."
    )

    def __post_init__(self) -> None:
        folder = self.locate(self.folder)
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


@dataclass(repr=False, eq=False)
class StyleScore(NetworkReward):
    """A rating, (B,), of images alone, on the scale of the raters that it was trained on."""

    SHIPPED: ClassVar = {"shapes-aesthetic": "aesthetic"}
    name = "StyleScore"

    folder: str | Path = option(help="A folder with look.safetensors, or a shipped name.")

    def __post_init__(self) -> None:
        network = StyleNetwork()
        network.load_state_dict(load_file(Path(self.locate(self.folder)) / LOOK))
        self.hold(network, SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.network(self.pixels(images))


class StyleNetwork(nn.Module):
    """Four convolutions of stride 2 and two linear maps on what is left, 4 x 4 cells."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for below, width in zip((3, *WIDTHS), WIDTHS):
            layers += [nn.Conv2d(below, width, 3, stride=2, padding=1), nn.SiLU()]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * 4**2, 32), nn.SiLU(), nn.Linear(32, 1)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)[:, 0]
