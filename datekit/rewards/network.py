"""What rewards by a network share: weights frozen in float32, pictures resized as tensors and normalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Reward

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def default_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else CUDA where there is one, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


class NetworkReward(Reward):
    """A reward by a frozen network; `model` is the network, and `model.double()` makes everything float64.

    size: (height, width) that the network takes; mean, std: of its normalisation; antialias: how images are resized to
    that size, True as today's preprocessing does (lower frequencies are kept, higher ones averaged away), False as
    torchvision did on tensors when the published methods were written; interpolation: "bilinear" or "bicubic". Images
    that are not square are squeezed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        device: str | torch.device | None,
        size: tuple[int, int],
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        antialias: bool = True,
        interpolation: str = "bilinear",
        settings: dict | None = None,
    ) -> None:
        if interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f'interpolation must be "bilinear" or "bicubic", got {interpolation!r}'
            )
        self.name, self.device, self.settings = name, default_device(device), settings
        self.model = model.to(self.device).float().eval().requires_grad_(False)
        self.size, self.antialias, self.interpolation = tuple(size), antialias, interpolation
        as_pixel = lambda values: torch.tensor(
            values, dtype=torch.float64, device=self.device
        ).view(1, 3, 1, 1)
        self.mean, self.std = as_pixel(mean), as_pixel(std)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights, in which everything is computed."""
        return next(self.model.parameters()).dtype

    def pixels(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] as the network takes them: its device, precision and size, normalised."""
        x = images.to(self.device, self.dtype)
        if tuple(x.shape[-2:]) != self.size:
            x = F.interpolate(x, self.size, mode=self.interpolation, antialias=self.antialias)
        return (x - self.mean.to(x)) / self.std.to(x)
