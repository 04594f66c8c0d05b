"""Stable Diffusion 1.x and 2.x: a U-Net with cross-attention; c is CLIP's last hidden state, (B, 77, D)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Conditioning
from .base import DiffusersBackbone, quiet, warn_truncated


class UNetBackbone(DiffusersBackbone):
    """A `StableDiffusionPipeline`: epsilon or v prediction, every token position moves."""

    def __init__(self, pipe, **kwargs) -> None:
        super().__init__(pipe, **kwargs)
        if pipe.unet.config.in_channels != pipe.unet.config.out_channels:
            raise ValueError("this U-Net takes more channels than it predicts (inpainting?); only text-to-image works")
        if pipe.unet.config.time_cond_proj_dim is not None:
            raise ValueError("guidance-distilled U-Nets (LCM) have no second branch and are not supported")

    @property
    def network(self):
        """The `UNet2DConditionModel`."""
        return self.pipe.unet

    def encode(self, prompts: Sequence[str | None], *, negative: bool = False) -> Conditioning:
        """The pipeline's own text encoding, (B, L, D), float32 at least; warns once about words beyond the window."""
        tokenizer, prompts = self.pipe.tokenizer, ["" if p is None else p for p in prompts]
        with quiet("transformers", "diffusers"):
            warn_truncated(tokenizer, prompts)
            sequence, _ = self.pipe.encode_prompt(prompts, self.device, 1, False)
        ids = tokenizer(prompts, padding="max_length", truncation=True, max_length=sequence.shape[1]).input_ids
        return Conditioning(sequence.to(torch.promote_types(self.dtype, torch.float32)), tokens=tuple(_words(tokenizer, row) for row in ids))

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The U-Net's raw output, (B, C, h, w); carries gradient to xt and to the embedding."""
        return self.pipe.unet(xt, t, encoder_hidden_states=cond.sequence.to(xt.dtype), return_dict=False)[0]


def _words(tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    """What each position holds, for people: words, '<start>', '<end>' once, then '<pad>'."""
    words, ended = [], False
    for token, piece in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if token == tokenizer.bos_token_id and not words:
            words.append("<start>")
        elif token == tokenizer.eos_token_id and not ended:
            words.append("<end>")
            ended = True
        else:
            words.append("<pad>" if ended else piece.replace("</w>", ""))
    return tuple(words)
