"""What FLUX.1 and Qwen-Image share: the network is fed four cells of the latent as one token."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .base import DiffusersBackbone, Shape


class PackedBackbone(DiffusersBackbone):
    """Latents stay (B, C, h, w) and are packed only for the network.

    sample_size: the side of the latent where the user names no size, by default the pipeline's 128,
    as no file of a saved pipeline says it.
    """

    sample_size: int | None = None
    one_batch = False
    even_sigmas = True

    def pack(self, xt: Tensor) -> Tensor:
        return self.pipe._pack_latents(xt, *xt.shape)

    def unpack(self, latents: Tensor, shape: Sequence[int]) -> Tensor:
        height, width = (side * self.factor for side in shape[-2:])
        return self.pipe._unpack_latents(latents, height, width, self.factor).reshape(shape)

    def geometry(self) -> Shape:
        """Of the latent before four cells are packed into one token."""
        channels = self.network.config.in_channels // 4
        return channels, self.sample_size or self.pipe.default_sample_size, 2
