"""FLUX.2-klein: a joint transformer trained by flow matching, distilled to few steps or not.

c is three hidden states of a Qwen3 side by side, (B, 512, 7680 or 12288).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..types import Conditioning
from .base import DiffusersBackbone, Recommended, Shape
from .text import as_chat


class Flux2KleinBackbone(DiffusersBackbone):
    """A `Flux2KleinPipeline` from text. Latents are (B, 128, h, w) in cells of 16 pixels.

    Each cell is four of the autoencoder's, normalised by its batch statistics. The network is fed
    padding as FLUX.1 is; it never moves. The pipeline's guidance_scale is w, but a distilled model
    has one branch, unless a negative prompt is given. text_length: the number of positions;
    sample_size: the side of the latent where the user names no size, 64 by default.
    """

    pipelines = ("Flux2KleinPipeline",)
    load_settings = ("text_length", "sample_size")
    text_length = 512
    sample_size = None
    one_batch = False
    even_sigmas = True
    recommended = Recommended(num_steps=50, guidance_scale=4.0, solver="own")

    def __init__(self, pipe: Any, **kwargs) -> None:
        super().__init__(pipe, **kwargs)
        self.factor *= 2

    @property
    def distilled(self) -> bool:
        return self.pipe.config.is_distilled

    @property
    def two_branches(self) -> bool:
        return not self.distilled

    def spell(self, text: str, tokenizer: Any) -> str:
        return as_chat(text, tokenizer, thinking=False)

    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        sequence, _ = self.pipe.encode_prompt(
            list(texts), device=self.device, max_sequence_length=self.text_length
        )
        return Conditioning(sequence)

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The transformer's velocity eps - x0, (B, 128, h, w)."""
        out = self.network(
            hidden_states=self.pipe._pack_latents(xt),
            timestep=torch.full((len(xt),), t, device=xt.device).to(xt.dtype) / 1000,
            encoder_hidden_states=cond.sequence.to(xt.dtype),
            txt_ids=self.pipe._prepare_text_ids(cond.sequence[:1]).to(xt.device),
            img_ids=self.pipe._prepare_latent_ids(xt[:1]).to(xt.device),
            return_dict=False,
        )[0]
        return self.unpack(out, xt.shape)

    def unpack(self, latents: Tensor, shape: Sequence[int]) -> Tensor:
        return latents.mT.reshape(shape)

    def _decode(self, latents: Tensor) -> Tensor:
        mean, std = self._batch_statistics(latents)
        return super()._decode(self.pipe._unpatchify_latents(latents * std + mean))

    def _encode(self, images: Tensor) -> Tensor:
        latents = self.pipe._patchify_latents(super()._encode(images))
        mean, std = self._batch_statistics(latents)
        return (latents - mean) / std

    def _batch_statistics(self, latents: Tensor) -> list[Tensor]:
        seen, eps = self.vae.bn, self.vae.config.batch_norm_eps
        rows = [seen.running_mean, torch.sqrt(seen.running_var + eps)]
        return [row.view(1, -1, 1, 1).to(latents) for row in rows]

    def schedule(self, scheduler: Any, num_steps: int, shape: Shape) -> dict:
        """The shift mu depends on the number of steps too."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        told = super().schedule(scheduler, num_steps, shape)
        mu = compute_empirical_mu(shape[1] * shape[2], num_steps)
        return told | {"mu": mu} if "mu" in told else told

    def geometry(self) -> Shape:
        """Of the latent in cells of 16 pixels."""
        side = self.sample_size or self.pipe.default_sample_size // 2
        return self.network.config.in_channels, side, 1
