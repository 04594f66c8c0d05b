"""Stable Diffusion 3: a joint transformer trained by flow matching.

c is [CLIP states, T5 states], (B, 77 + 256, 4096), and one pooled vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Conditioning
from .base import DiffusersBackbone, Recommended
from .text import Window


class SD3Backbone(DiffusersBackbone):
    """A `StableDiffusion3Pipeline`, with or without its T5 encoder.

    The two CLIPs' states stand side by side, padded with zeros to T5's width, and their projections
    make the pooled vector. T5's padding never moves, nor do the zeros that stand for a missing T5.
    text_length: the number of T5 positions.
    """

    pipelines = ("StableDiffusion3Pipeline",)
    tiny = "madebyollin/taesd3"
    load_settings = ("text_length",)
    text_length = 256
    pooled = True
    max_shift = 1.16
    recommended = Recommended(num_steps=28, guidance_scale=7.0, solver="own")

    def windows(self) -> list[Window]:
        t5 = self.pipe.tokenizer_3 if self.pipe.text_encoder_3 is not None else None
        clip = Window(self.pipe.tokenizer, self.pipe.tokenizer_max_length)
        return [clip, Window(t5, self.text_length, padded=True)]

    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        sequence, _, pooled, _ = self.pipe.encode_prompt(
            texts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
        )
        return Conditioning(sequence, pooled)

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The transformer's velocity eps - x0, (B, C, h, w)."""
        return self.network(
            hidden_states=xt,
            timestep=torch.full((len(xt),), t, device=xt.device),
            encoder_hidden_states=cond.sequence.to(xt.dtype),
            pooled_projections=cond.pooled.to(xt.dtype),
            return_dict=False,
        )[0]
