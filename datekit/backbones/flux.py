"""FLUX.1: a joint transformer trained by flow matching and distilled from guidance.

c is T5's last hidden state, (B, 512, 4096), and one pooled vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Conditioning
from .base import Recommended
from .packed import PackedBackbone
from .text import Window


class FluxBackbone(PackedBackbone):
    """A `FluxPipeline`.

    The pooled vector is CLIP's; T5's padding never moves. Without a negative prompt there is one
    branch, and the network is told the sampler's guidance_scale, which it was distilled with.
    With one there are two: guidance_scale is then w of uncond + w (cond - uncond), and the network
    is told distilled_guidance. text_length: the number of T5 positions.
    """

    pipelines = ("FluxPipeline",)
    tiny = "madebyollin/taef1"
    load_settings = ("text_length", "distilled_guidance", "sample_size")
    text_length = 512
    distilled_guidance = 3.5
    pooled = True
    two_branches = False
    recommended = Recommended(num_steps=28, guidance_scale=3.5, solver="own")

    def windows(self) -> list[Window]:
        clip = Window(self.pipe.tokenizer, self.pipe.tokenizer_max_length, in_sequence=False)
        return [clip, Window(self.pipe.tokenizer_2, self.text_length, padded=True)]

    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        sequence, pooled, _ = self.pipe.encode_prompt(
            texts, device=self.device, max_sequence_length=self.text_length
        )
        return Conditioning(sequence, pooled)

    @property
    def distilled(self) -> bool:
        """Whether it is schnell, whose network is told no scale."""
        return not self.network.config.guidance_embeds

    def with_guidance(self, cond: Conditioning, guidance_scale: float) -> Conditioning:
        scale = torch.full((len(cond),), guidance_scale, device=cond.sequence.device)
        return cond.replace(extras=cond.extras | {"guidance": scale})

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The transformer's velocity eps - x0, (B, 16, h, w)."""
        b, _, h, w = xt.shape
        guidance = None
        if self.network.config.guidance_embeds:
            told = torch.full((b,), self.distilled_guidance, device=xt.device)
            guidance = cond.extras.get("guidance", told)
        out = self.network(
            hidden_states=self.pack(xt),
            timestep=torch.full((b,), t, device=xt.device).to(xt.dtype) / 1000,
            guidance=guidance,
            pooled_projections=cond.pooled.to(xt.dtype),
            encoder_hidden_states=cond.sequence.to(xt.dtype),
            txt_ids=torch.zeros(cond.sequence.shape[1], 3, device=xt.device, dtype=xt.dtype),
            img_ids=self.pipe._prepare_latent_image_ids(b, h // 2, w // 2, xt.device, xt.dtype),
            return_dict=False,
        )[0]
        return self.unpack(out, xt.shape)
