"""Two decoders for `dk.DATE(reward, decoder=...)` that need no weights, of the studies' own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datekit import noise
from datekit.registry import option
from datekit.rewards.decoders import Decode, Decoder


@dataclass(frozen=True)
class Resized(Decoder):
    """The latent made smaller before the backbone decodes it."""

    label: ClassVar[str] = "resized"
    scale: float = option(0.5, help="The share of the latent's sides that is left.")

    def fit(self, backbone) -> Decode:
        return self.make(backbone)  # which holds the backbone, and so is not kept

    def make(self, backbone) -> Decode:
        def decode(latents: Tensor) -> Tensor:
            size = [max(1, round(side * self.scale)) for side in latents.shape[-2:]]
            small = F.interpolate(latents.float(), size, mode="bilinear", antialias=True)
            return backbone.decode(small.to(latents.dtype))

        return decode


@dataclass(frozen=True)
class Linear(Decoder):
    """A linear map from each latent cell and its eight neighbours to the pixels it becomes.

    It is fitted to the backbone's own decoder by least squares, over 16 random latents.
    """

    label: ClassVar[str] = "linear"

    @torch.no_grad()
    def make(self, backbone) -> Decode:
        """image = pixel_shuffle(conv_{3 x 3}(latent)), in float32 at least."""
        shape, exact = backbone.latent_shape(), torch.promote_types(backbone.dtype, torch.float32)
        latents = noise.normal(range(16), 0, shape, exact, purpose="linear decoder")
        squares = products = torch.zeros(())
        for row in latents.to(backbone.device).split(1):
            image = backbone.decode(row).double()
            factor = image.shape[-1] // shape[2]
            cells = F.unfold(F.pad(row.double(), [1] * 4, mode="replicate"), 3)[0]
            x = torch.cat([cells, torch.ones_like(cells[:1])])
            y = F.pixel_unshuffle(image, factor)[0].flatten(1)
            squares, products = squares + x @ x.T, products + x @ y.T
        solution = torch.linalg.solve(squares, products).T
        edges = {"padding": 1, "padding_mode": "replicate"}
        conv = nn.utils.skip_init(nn.Conv2d, shape[0], len(solution), 3, **edges)
        conv.to(backbone.device, exact)
        conv.weight.copy_(solution[:, :-1].view_as(conv.weight))
        conv.bias.copy_(solution[:, -1])
        return nn.Sequential(conv, nn.PixelShuffle(factor)).requires_grad_(False)
