"""Stable Diffusion 3: a joint transformer trained by flow matching; c is [CLIP states, T5 states], (B, 77 + 256, 4096)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Conditioning
from .base import (
    DiffusersBackbone,
    Recommended,
    clip_words,
    dynamic_shift,
    quiet,
    t5_mask,
    t5_words,
    warn_truncated,
)


class SD3Backbone(DiffusersBackbone):
    """A `StableDiffusion3Pipeline`, with or without its T5 encoder. pooled: both CLIPs' projections, side by side.

    The two CLIPs' states stand side by side, padded with zeros to T5's width. T5's padding, and the zeros that stand for a
    missing T5, never move. text_length: T5 positions, 256 by default as in the pipeline.
    """

    pooled = True
    recommended = Recommended(num_steps=28, guidance_scale=7.0, solver="own")

    def __init__(self, pipe, *, text_length: int | None = None, **kwargs) -> None:
        super().__init__(pipe, **kwargs)
        self.text_length = 256 if text_length is None else text_length

    def encode(self, prompts: Sequence[str | None], *, negative: bool = False) -> Conditioning:
        """The pipeline's own text encoding, (B, L, D) and (B, P), float32 at least; warns once about words beyond a window."""
        texts = ["" if p is None else p for p in prompts]
        clip, t5, length = self.pipe.tokenizer, self.pipe.tokenizer_3, self.text_length
        speaks = self.pipe.text_encoder_3 is not None
        with quiet("transformers", "diffusers"):
            warn_truncated(
                texts, (clip, self.pipe.tokenizer_max_length), *([(t5, length)] if speaks else [])
            )
            sequence, _, pooled, _ = self.pipe.encode_prompt(
                texts,
                None,
                None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=length,
            )
        window = self.pipe.tokenizer_max_length
        heard = (
            t5_mask(t5, texts, length)
            if speaks
            else torch.zeros(len(texts), length, dtype=torch.bool)
        )
        mask = torch.cat([torch.ones(len(texts), window, dtype=torch.bool), heard], 1).to(
            sequence.device
        )
        words = t5_words(t5, texts, length) if speaks else (("<none>",) * length,) * len(texts)
        tokens = tuple(a + b for a, b in zip(clip_words(clip, texts, window), words, strict=True))
        exact = torch.promote_types(self.dtype, torch.float32)
        return Conditioning(sequence.to(exact), pooled.to(exact), mask, tokens)

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The transformer's velocity eps - x0, (B, C, h, w); carries gradient to xt and to both embeddings."""
        return self.network(
            hidden_states=xt,
            timestep=torch.full((len(xt),), t, device=xt.device),
            encoder_hidden_states=cond.sequence.to(xt.dtype),
            pooled_projections=cond.pooled.to(xt.dtype),
            return_dict=False,
        )[0]

    def schedule(self, scheduler, num_steps: int, shape: tuple[int, int, int]) -> dict:
        """The shift mu that goes with the number of image tokens, where the scheduler wants one."""
        if not scheduler.config.get("use_dynamic_shifting"):
            return {}
        patch = self.network.config.patch_size
        return {
            "mu": dynamic_shift(scheduler.config, (shape[1] // patch) * (shape[2] // patch), 1.16)
        }
