"""A reward with a known shape: how near a picture is to the one that its prompt names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import noise
from ..registry import option
from .base import Reward

GRID = 3  # cells of a target on a side, before it is enlarged


@dataclass(repr=False, eq=False)
class TargetReward(Reward):
    """h = 1 / (1 + d^2 / width^2), (B,) in (0, 1], for models without a trained reward.

    d^2 is the mean squared distance to a smooth picture that the prompt fixes. Smooth and bounded
    but not quadratic, and in the images' own precision.
    """

    SHIPPED: ClassVar = {"target": None}
    name = "target"

    width: float = option(0.25, help="the distance in pixel values at which the reward is one half")

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        targets = self.targets(prompts, tuple(images.shape[-2:])).to(images)
        return 1 / (1 + ((images - targets) ** 2).mean((1, 2, 3)) / self.width**2)

    def targets(self, prompts: Sequence[str], size: tuple[int, int]) -> Tensor:
        """The pictures at which h is 1, (B, 3, *size), float64."""
        draw = partial(noise.normal, [0], 0, (3, GRID, GRID), torch.float64)
        cells = [draw(purpose=f"target {prompt}") for prompt in prompts]
        smooth = torch.sigmoid(torch.cat(cells))
        return F.interpolate(smooth, size, mode="bilinear", align_corners=False)
