"""Sana: a transformer of linear attention trained by flow matching, with cross-attention to Gemma.

c is Gemma 2's last hidden state, (B, 300, 2304), of a prompt that follows an instruction.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..types import Conditioning
from .base import DiffusersBackbone, Prompts, Recommended
from .text import Window


class SanaBackbone(DiffusersBackbone):
    """A `SanaPipeline`. Padding is masked in the attention and never moves.

    Gemma reads the instruction before each prompt, but not before a negative one; the network is
    fed the first position and the last text_length - 1. The pipeline's guidance_scale is w. Image
    sizes are taken as given. text_length: the number of positions; instruction: the pipeline's own
    complex human instruction by default, "" for none.
    """

    pipelines = ("SanaPipeline",)
    load_settings = ("text_length", "instruction")
    text_length = 300
    instruction = None
    noise_dtype = torch.float32
    recommended = Recommended(num_steps=20, guidance_scale=4.5, solver="own")

    def __init__(self, pipe: Any, **kwargs) -> None:
        super().__init__(pipe, **kwargs)
        if self.instruction is None:
            call = inspect.signature(pipe.__call__).parameters
            self.instruction = "\n".join(call["complex_human_instruction"].default)

    def windows(self) -> list[Window]:
        length, dropped = self.text_length, range(0)
        if self.instruction:
            told = len(self.pipe.tokenizer.encode(self.instruction))
            length, dropped = told + self.text_length - 2, range(1, told - 1)
        return [Window(self.pipe.tokenizer, length, padded=True, dropped=dropped)]

    def spell(self, text: str, tokenizer: Any) -> str:
        """A text in lower case, after the instruction."""
        return self.instruction + text.lower().strip()

    def encode(self, prompts: Prompts, *, negative: bool = False) -> Conditioning | None:
        reader = copy.copy(self)
        reader.instruction = "" if negative else self.instruction
        return super(SanaBackbone, reader).encode(prompts)

    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        sequence, mask, _, _ = self.pipe.encode_prompt(
            list(texts),
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.text_length,
            complex_human_instruction=[self.instruction] if self.instruction else None,
        )
        return Conditioning(sequence, extras={"attention": self.exact(mask)})

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The transformer's velocity eps - x0, (B, 32, h, w)."""
        time = t * self.network.config.timestep_scale
        out = self.network(
            xt,
            encoder_hidden_states=cond.sequence.to(xt.dtype),
            encoder_attention_mask=cond.extras["attention"].to(xt.dtype),
            timestep=torch.full((len(xt),), time, device=xt.device),
            return_dict=False,
        )[0]
        return out[:, : xt.shape[1]]

    def binned(self, height: int, width: int) -> tuple[int, int]:
        """The size that the pipeline draws for another, to which it then brings the picture."""
        from diffusers.pipelines.sana import pipeline_sana

        usual = 32 * self.network.config.sample_size
        sizes = getattr(pipeline_sana, f"ASPECT_RATIO_{usual}_BIN")
        return self.pipe.image_processor.classify_height_width_bin(height, width, ratios=sizes)

    def _encode(self, images: Tensor) -> Tensor:
        return self.vae.encode(images).latent
