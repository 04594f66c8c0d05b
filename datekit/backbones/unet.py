"""Stable Diffusion 1.x and 2.x: a U-Net with cross-attention; c is CLIP's last hidden state, (B, 77, D)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Conditioning
from .base import DiffusersBackbone, check_unet, clip_words, quiet, warn_truncated


class UNetBackbone(DiffusersBackbone):
    """A `StableDiffusionPipeline`: epsilon or v prediction, every token position moves."""

    def __init__(self, pipe, **kwargs) -> None:
        super().__init__(pipe, **kwargs)
        check_unet(pipe.unet.config)

    def encode(self, prompts: Sequence[str | None], *, negative: bool = False) -> Conditioning:
        """The pipeline's own text encoding, (B, L, D), float32 at least; warns once about words beyond the window."""
        tokenizer, prompts = self.pipe.tokenizer, ["" if p is None else p for p in prompts]
        with quiet("transformers", "diffusers"):
            warn_truncated(prompts, (tokenizer, tokenizer.model_max_length))
            sequence, _ = self.pipe.encode_prompt(prompts, self.device, 1, False)
        exact = torch.promote_types(self.dtype, torch.float32)
        return Conditioning(
            sequence.to(exact), tokens=clip_words(tokenizer, prompts, sequence.shape[1])
        )

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The U-Net's raw output, (B, C, h, w); carries gradient to xt and to the embedding."""
        return self.pipe.unet(
            xt, t, encoder_hidden_states=cond.sequence.to(xt.dtype), return_dict=False
        )[0]
