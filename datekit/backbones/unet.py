"""Stable Diffusion 1.x and 2.x: a U-Net; c is CLIP's last hidden state, (B, 77, D)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..types import Conditioning
from .base import DiffusersBackbone, check_unet
from .text import as_texts, clip_words, quiet, warn_truncated


class UNetBackbone(DiffusersBackbone):
    """A `StableDiffusionPipeline`: epsilon or v prediction; every token position moves."""

    pipelines = ("StableDiffusionPipeline",)
    tiny = "madebyollin/taesd"

    def __init__(self, pipe, **kwargs) -> None:
        super().__init__(pipe, **kwargs)
        check_unet(pipe.unet.config)

    def encode(self, prompts: Sequence[str | None], *, negative: bool = False) -> Conditioning:
        """The pipeline's own text encoding, (B, L, D), float32 at least."""
        tokenizer, texts = self.pipe.tokenizer, as_texts(prompts)
        with quiet():
            warn_truncated(texts, (tokenizer, tokenizer.model_max_length))
            sequence, _ = self.pipe.encode_prompt(texts, self.device, 1, False)
        words = clip_words(tokenizer, texts, sequence.shape[1])
        return Conditioning(self.exact(sequence), tokens=words)

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The U-Net's raw output, (B, C, h, w); carries gradient to xt and to the embedding."""
        sequence = cond.sequence.to(xt.dtype)
        return self.pipe.unet(xt, t, encoder_hidden_states=sequence, return_dict=False)[0]
