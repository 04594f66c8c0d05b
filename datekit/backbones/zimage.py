"""Z-Image and Z-Image-Turbo: a single-stream transformer trained by flow matching.

c is the last but one hidden state of a Qwen3 that reads the prompt as a chat, (B, 512, 2560).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..types import Conditioning
from .base import DiffusersBackbone, Recommended, Shape
from .text import as_chat


class ZImageBackbone(DiffusersBackbone):
    """A `ZImagePipeline`. The network is fed each prompt's own positions; padding never moves.

    Its velocity is x0 - eps, which `predict` turns into eps - x0, and its time runs from 0 to 1.
    The pipeline's guidance_scale g is cond + g (cond - uncond), which is w = g + 1 here: its 0 for
    Turbo, with 8 or 9 steps, is guidance_scale=1, and its default of 5 the 6 recommended here.
    text_length: the number of positions; sample_size: the side of the latent where the user names
    no size, by default that of a picture of 1024 pixels.
    """

    pipelines = ("ZImagePipeline",)
    tiny = "madebyollin/taef1"
    load_settings = ("text_length", "sample_size")
    text_length = 512
    sample_size = None
    even_sigmas = True
    noise_dtype = torch.float32
    unguided_scale = 0.0
    recommended = Recommended(num_steps=50, guidance_scale=6.0, solver="own")

    def __init__(self, pipe, **kwargs) -> None:
        super().__init__(pipe, **kwargs)
        # Its tables of angles are made at once, so that `dk.estimate` leaves none without numbers.
        axes = len(self.network.config.axes_dims)
        self.network.rope_embedder(torch.zeros(1, axes, dtype=torch.int32, device=self.device))

    def spell(self, text: str, tokenizer: Any) -> str:
        return as_chat(text, tokenizer, thinking=True)

    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        rows, _ = self.pipe.encode_prompt(
            list(texts),  # in which the pipeline writes
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
        )
        padded = [pad(row, (0, 0, 0, self.text_length - len(row))) for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        return Conditioning(torch.stack(padded), extras={"lengths": lengths})

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The transformer's velocity as eps - x0, (B, C, h, w)."""
        out = self.network(
            list(xt[:, :, None]),  # each a film of one picture
            torch.full((len(xt),), 1 - t / 1000, device=xt.device),
            self.call_arguments(cond)["prompt_embeds"],
            return_dict=False,
        )[0]
        return -torch.stack(out)[:, :, 0]

    def call_arguments(self, cond: Conditioning) -> dict[str, Any]:
        """Each embedding of its own length."""
        rows = zip(cond.sequence.to(self.dtype), cond.extras["lengths"].tolist(), strict=True)
        return {"prompt_embeds": [row[:length] for row, length in rows]}

    def guide(self, out_u: Tensor, out_c: Tensor, w: float) -> Tensor:
        """out_u + w (out_c - out_u) as the pipeline adds it up, to the same bits."""
        return out_c + (w - 1) * (out_c - out_u)

    def geometry(self) -> Shape:
        """Of the latent before four cells become one token."""
        side = self.sample_size or 1024 // self.factor
        return self.network.config.in_channels, side, self.network.config.all_patch_size[0]
