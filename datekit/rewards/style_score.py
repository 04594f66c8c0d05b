"""A small aesthetic score: a network that rates the look of a picture; the prompt plays no part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from ..registry import option
from .network import NetworkReward

SIZE = 64  # pixels a side
WIDTHS = (16, 32, 48, 64)
WEIGHTS = "look.safetensors"


@dataclass(repr=False, eq=False)
class StyleScore(NetworkReward):
    """A rating, (B,), of images alone, on the scale of the raters that it was trained on."""

    SHIPPED: ClassVar = {"shapes-aesthetic": "aesthetic"}
    name = "StyleScore"

    folder: str | Path = option(help="A folder with look.safetensors, or a shipped name.")

    def __post_init__(self) -> None:
        from safetensors.torch import load_file

        network = StyleNetwork()
        network.load_state_dict(load_file(Path(self.located(self.folder)) / WEIGHTS))
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
