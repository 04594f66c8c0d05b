"""Lumina-Image 2.0: a single-stream transformer trained by flow matching.

c is the last but one hidden state of a Gemma 2 that reads a system prompt first, (B, 256, 2304).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..types import Conditioning
from .base import DiffusersBackbone, Prompts, Recommended, Shape
from .latents import as_long_as


class Lumina2Backbone(DiffusersBackbone):
    """A `Lumina2Pipeline`. Padding is masked and never moves.

    Its velocity is x0 - eps, which `predict` turns into eps - x0, and its time runs from 0 to 1.
    The pipeline's guidance_scale is w of uncond + w (cond - uncond), where each row of cells of
    the result is then as long as that of cond. Gemma reads the pipeline's system prompt before a
    prompt, but not before a negative one. text_length: the number of positions.
    """

    pipelines = ("Lumina2Pipeline",)
    tiny = "madebyollin/taef1"
    load_settings = ("text_length",)
    text_length = 256
    one_batch = False
    even_sigmas = True
    recommended = Recommended(num_steps=30, guidance_scale=4.0, solver="own")

    def encode(self, prompts: Prompts, *, negative: bool = False) -> Conditioning | None:
        opening = "" if negative else f"{self.pipe.system_prompt} <Prompt Start> "
        return super().encode([opening + (prompt or "") for prompt in prompts])

    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        sequence, mask = self.pipe._get_gemma_prompt_embeds(
            list(texts), device=self.device, max_sequence_length=self.text_length
        )
        return Conditioning(sequence, extras={"attention": mask})

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The transformer's velocity as eps - x0, (B, C, h, w)."""
        return -self.network(
            hidden_states=xt,
            timestep=torch.full((len(xt),), 1 - t / 1000, device=xt.device),
            encoder_hidden_states=cond.sequence.to(xt.dtype),
            encoder_attention_mask=cond.extras["attention"],
            return_dict=False,
        )[0]

    def guide(self, out_u: Tensor, out_c: Tensor, w: float) -> Tensor:
        """out_u + w (out_c - out_u), with each row of cells as long as that of out_c."""
        return as_long_as(super().guide(out_u, out_c, w), out_c)

    def schedule(self, scheduler: Any, num_steps: int, shape: Shape) -> dict:
        """The shift for as many tokens as there are channels, as the pipeline counts them."""
        patch = self.geometry()[2]
        return super().schedule(scheduler, num_steps, (shape[0], shape[0] * patch, patch))
