"""A small aesthetic score: a network that rates the look of a picture; the prompt plays no part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from ..registry import option
from .network import Loaded, NetworkReward

SIZE = 64  # pixels a side
WIDTHS = (16, 32, 48, 64)
GRID = 4  # cells a side after the last convolution
WEIGHTS = "look.safetensors"


@dataclass(repr=False, eq=False)
class StyleScore(NetworkReward):
    """A rating, (B,), of images alone, on the scale of the raters that it was trained on.

    Raises FileNotFoundError where there are no weights.
    """

    SHIPPED: ClassVar = {"shapes-aesthetic": "aesthetic"}

    path: str | Path = option(help="A file of weights, or a folder with look.safetensors.")

    def __post_init__(self) -> None:
        from safetensors.torch import load_file

        file = Path(self.path) / WEIGHTS if Path(self.path).is_dir() else Path(self.path)
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} does not exist; for the shipped one, dk.rewards.load('shapes-aesthetic')"
            )
        self.name = f"StyleScore({str(self.path)!r})"
        network = StyleNetwork()
        network.load_state_dict(load_file(file))
        self.hold(Loaded(network, (SIZE, SIZE), mean=(0.5,) * 3, std=(0.5,) * 3))

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The ratings, (B,), whatever the prompts; carries gradient to the images."""
        return self.network(self.pixels(images)).to(images.device)


class StyleNetwork(nn.Module):
    """Four convolutions of stride 2 and two linear maps on what is left, 4 x 4 cells."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for below, width in zip((3, *WIDTHS), WIDTHS):
            layers += [nn.Conv2d(below, width, 3, stride=2, padding=1), nn.SiLU()]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * GRID**2, 32), nn.SiLU(), nn.Linear(32, 1)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, 64, 64) to ratings (B,)."""
        return self.layers(pixels)[:, 0]
