"""Stable Diffusion 3: a joint transformer trained by flow matching.

c is [CLIP states, T5 states], (B, 77 + 256, 4096), and one pooled vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Conditioning
from .base import DiffusersBackbone, Recommended, dynamic_shift
from .text import as_texts, clip_words, quiet, t5_positions, warn_truncated


class SD3Backbone(DiffusersBackbone):
    """A `StableDiffusion3Pipeline`, with or without its T5 encoder.

    The two CLIPs' states stand side by side, padded with zeros to T5's width, and their projections
    make the pooled vector. T5's padding never moves, nor do the zeros that stand for a missing T5.
    text_length: the number of T5 positions, 256 by default as in the pipeline.
    """

    pipelines = ("StableDiffusion3Pipeline",)
    tiny = "madebyollin/taesd3"
    load_settings = ("text_length",)
    pooled = True
    recommended = Recommended(num_steps=28, guidance_scale=7.0, solver="own")

    def __init__(self, pipe, *, text_length: int = 256, **kwargs) -> None:
        super().__init__(pipe, **kwargs)
        self.text_length = text_length

    def encode(self, prompts: Sequence[str | None], *, negative: bool = False) -> Conditioning:
        """The pipeline's own text encoding, (B, L, D) and (B, P), float32 at least.

        Warns once about words beyond a window.
        """
        texts, length = as_texts(prompts), self.text_length
        clip, window = self.pipe.tokenizer, self.pipe.tokenizer_max_length
        t5 = self.pipe.tokenizer_3
        has_t5 = self.pipe.text_encoder_3 is not None
        windows = [(clip, window), (t5, length)] if has_t5 else [(clip, window)]
        with quiet():
            warn_truncated(texts, *windows)
            sequence, _, pooled, _ = self.pipe.encode_prompt(
                texts,
                None,
                None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=length,
            )
        if has_t5:
            read, words = t5_positions(t5, texts, length)
        else:
            read = torch.zeros(len(texts), length, dtype=torch.bool)
            words = (("<none>",) * length,) * len(texts)
        mask = torch.cat([torch.ones(len(texts), window, dtype=torch.bool), read], 1)
        pairs = zip(clip_words(clip, texts, window), words, strict=True)
        tokens = tuple(first + second for first, second in pairs)
        return Conditioning(
            self.exact(sequence), self.exact(pooled), mask.to(sequence.device), tokens
        )

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The transformer's velocity eps - x0, (B, C, h, w).

        Carries gradient to xt and to both embeddings.
        """
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
        tokens = (shape[1] // patch) * (shape[2] // patch)
        return {"mu": dynamic_shift(scheduler.config, tokens, 1.16)}
