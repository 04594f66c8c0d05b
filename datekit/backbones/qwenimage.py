"""Qwen-Image: a joint transformer trained by flow matching.

c is the last hidden state of a Qwen2.5-VL that reads the prompt in a template, (B, 512, 3584).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..types import Conditioning
from .base import Prompts, Recommended, Shape
from .latents import as_long_as
from .packed import PackedBackbone
from .text import Window


class QwenImageBackbone(PackedBackbone):
    """A `QwenImagePipeline`.

    The network is fed the positions after the template's opening, up to the longest prompt's end;
    padding is masked and never moves. The pipeline's true_cfg_scale is w of uncond + w (cond -
    uncond), where each token of the result is then as long as that of cond. The pipeline guides
    where it is given a negative prompt; here a missing one is " ". text_length: the number of
    positions.
    """

    pipelines = ("QwenImagePipeline",)
    load_settings = ("text_length", "sample_size")
    text_length = 512
    recommended = Recommended(num_steps=50, guidance_scale=4.0, solver="own")

    def windows(self) -> list[Window]:
        opening = range(self.pipe.prompt_template_encode_start_idx)
        length = len(opening) + self.text_length
        return [Window(self.pipe.tokenizer, length, padded=True, dropped=opening)]

    def spell(self, text: str, tokenizer: Any) -> str:
        """A text in the template that the encoder reads."""
        return self.pipe.prompt_template_encode.format(text)

    def encode(self, prompts: Prompts, *, negative: bool = False) -> Conditioning | None:
        missing = " " if negative else ""
        return super().encode([missing if prompt is None else prompt for prompt in prompts])

    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        sequence, mask = self.pipe.encode_prompt(
            list(texts), device=self.device, max_sequence_length=self.text_length
        )
        count, longest, _ = sequence.shape
        lengths = torch.full((count,), longest) if mask is None else mask.sum(1).cpu()
        padded = pad(sequence, (0, 0, 0, self.text_length - longest))
        return Conditioning(padded, extras={"lengths": lengths})

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The transformer's velocity eps - x0, (B, 16, h, w)."""
        (b, _, h, w), told, lengths = xt.shape, self.call_arguments(cond), cond.extras["lengths"]
        mask = None if lengths.min() == lengths.max() else told["prompt_embeds_mask"]
        out = self.network(
            hidden_states=self.pack(xt),
            timestep=torch.full((b,), t, device=xt.device).to(xt.dtype) / 1000,
            encoder_hidden_states=told["prompt_embeds"],
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, h // 2, w // 2)]] * b,
            return_dict=False,
        )[0]
        return self.unpack(out, xt.shape)

    def call_arguments(self, cond: Conditioning) -> dict[str, Any]:
        """The positions up to the longest prompt's end, and which of them each prompt has."""
        lengths = cond.extras["lengths"]
        longest = int(lengths.max())
        rows = cond.sequence[:, :longest].to(self.dtype)
        read = torch.arange(longest, device=rows.device) < lengths.to(rows.device)[:, None]
        return {"prompt_embeds": rows, "prompt_embeds_mask": read}

    def guide(self, out_u: Tensor, out_c: Tensor, w: float) -> Tensor:
        """out_u + w (out_c - out_u), with each token as long as that of out_c."""
        mixed = self.pack(super().guide(out_u, out_c, w))
        return self.unpack(as_long_as(mixed, self.pack(out_c)), out_c.shape)

    def _decode(self, latents: Tensor) -> Tensor:
        films, vae = latents[:, :, None], self.vae  # each of one picture
        if vae.use_tiling:
            return vae.decode(films, return_dict=False)[0][:, :, 0]
        return vae.decoder(vae.post_quant_conv(films))[:, :, 0]  # as `decode`, but not clamped

    def _encode(self, images: Tensor) -> Tensor:
        return super()._encode(images[:, :, None])[:, :, 0]

    def schedule(self, scheduler: Any, num_steps: int, shape: Shape) -> dict:
        # The network keeps tables of angles: made now, `dk.estimate` leaves none without numbers.
        cells = (1, shape[1] // 2, shape[2] // 2)
        self.network.pos_embed([cells], max_txt_seq_len=1, device=self.device)
        return super().schedule(scheduler, num_steps, shape)
