"""A small aesthetic score: a network that rates the look of a picture; the prompt plays no part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from .network import NetworkReward

SIZE = 64  # pixels a side
WIDTHS = (16, 32, 48, 64)
GRID = 4  # cells a side after the last convolution
WEIGHTS = "look.safetensors"


class StyleScore(NetworkReward):
    """A rating, (B,), of images alone, on the scale of the raters that it was trained on.

    path: a file of weights, or a folder with look.safetensors, as `load("shapes-aesthetic")` has
    it; antialias: as for `CLIPScore`. Raises FileNotFoundError where there is no such file.
    """

    SHIPPED: ClassVar = {"shapes-aesthetic": "aesthetic"}

    def __init__(
        self, path: str | Path, *, device: str | None = None, antialias: bool = True
    ) -> None:
        from safetensors.torch import load_file

        file = Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} does not exist; for the shipped one, dk.rewards.load('shapes-aesthetic')"
            )
        network = StyleNetwork()
        network.load_state_dict(load_file(file))
        super().__init__(
            network,
            name=f"StyleScore({str(path)!r})",
            settings=dict(path=str(path), antialias=antialias),
            device=device,
            size=(SIZE, SIZE),
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            antialias=antialias,
        )

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The ratings, (B,), whatever the prompts; carries gradient to the images."""
        return self.model(self.pixels(images)).to(images.device)


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
