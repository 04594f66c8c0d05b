"""What rewards by a network share: frozen weights, and pictures resized and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Reward

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class NetworkReward(Reward):
    """A reward by a frozen network, `model`; `model.double()` makes all of it float64.

    device: by default CUDA where there is one; size: the (height, width) that the network takes;
    mean, std: of its normalisation; antialias: how images are resized to that size, True as today's
    preprocessing does (lower frequencies are kept, higher ones averaged away), False as torchvision
    did on tensors when the published methods were written; interpolation: "bilinear" or "bicubic".
    Images that are not square are squeezed. Raises ValueError for another interpolation.
    """

    kind = "reward"  # said here, as this class alone is no reward that could be asked for by name

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        settings: dict[str, Any],
        device: str | torch.device | None,
        size: tuple[int, int],
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        antialias: bool = True,
        interpolation: str = "bilinear",
    ) -> None:
        if interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f'interpolation must be "bilinear" or "bicubic", got {interpolation!r}'
            )
        self.name, self.settings, self.size = name, settings, tuple(size)
        self.antialias, self.interpolation = antialias, interpolation
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).float().eval().requires_grad_(False)
        self.mean, self.std = (
            torch.tensor(values, dtype=torch.float64, device=self.device).view(1, 3, 1, 1)
            for values in (mean, std)
        )

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights, in which everything is computed."""
        return next(self.model.parameters()).dtype

    def pixels(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] as the network takes them."""
        x = images.to(self.device, self.dtype)
        if tuple(x.shape[-2:]) != self.size:
            x = F.interpolate(x, self.size, mode=self.interpolation, antialias=self.antialias)
        return (x - self.mean.to(x)) / self.std.to(x)
