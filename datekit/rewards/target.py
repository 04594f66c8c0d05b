"""A reward with a known shape, for models without a trained one: how near a picture is to the one that its prompt names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import noise
from .base import Reward

_GRID = 3  # cells of a target on a side, before it is enlarged


class TargetReward(Reward):
    """h = 1 / (1 + d^2 / width^2), d^2 the mean squared distance to a smooth picture fixed by the prompt; (B,) in (0, 1].

    Smooth and bounded but not quadratic, and in the images' own precision. width: the distance, in pixel values, at
    which h is one half. Raises ValueError for a width that is not positive.
    """

    name = "target"

    def __init__(self, *, width: float = 0.25, device: str | None = None) -> None:
        if not width > 0:
            raise ValueError(f"width must be a positive distance in pixel values, got {width!r}")
        self.width, self.device = width, torch.device(device or "cpu")
        self.settings = {"width": width}
        if width != type(self).__init__.__kwdefaults__["width"]:
            self.name = f"target of width {width:g}"  # another name, as `load("target")` would not make it again

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] and B prompts to (B,); carries gradient to the images."""
        targets = self.targets(prompts, tuple(images.shape[-2:])).to(images)
        return 1 / (1 + ((images - targets) ** 2).mean((1, 2, 3)) / self.width**2)

    def targets(self, prompts: Sequence[str], size: tuple[int, int]) -> Tensor:
        """The pictures at which h is 1, (B, 3, *size), float64."""
        cells = [
            noise.normal([0], 0, (3, _GRID, _GRID), torch.float64, purpose=f"target {prompt}")
            for prompt in prompts
        ]
        return F.interpolate(
            torch.sigmoid(torch.cat(cells)), size, mode="bilinear", align_corners=False
        )
