"""Stable Diffusion 1.x and 2.x: a U-Net; c is CLIP's last hidden state, (B, 77, D)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..types import Conditioning
from .base import DiffusersBackbone
from .text import Window


class UNetBackbone(DiffusersBackbone):
    """A `StableDiffusionPipeline`: epsilon or v prediction; every token position moves."""

    pipelines = ("StableDiffusionPipeline",)
    tiny = "madebyollin/taesd"

    def __init__(self, pipe, **kwargs) -> None:
        super().__init__(pipe, **kwargs)
        config = self.network.config
        if config.in_channels != config.out_channels:
            raise ValueError(
                "this U-Net takes more channels than it predicts, as for inpainting; "
                "only text-to-image works"
            )
        if config.time_cond_proj_dim is not None:
            raise ValueError(
                "guidance-distilled U-Nets (LCM) have no second branch and are not supported"
            )

    def windows(self) -> list[Window]:
        tokenizer = self.pipe.tokenizer
        return [Window(tokenizer, tokenizer.model_max_length)]

    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        return Conditioning(self.pipe.encode_prompt(texts, self.device, 1, False)[0])

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        sequence = cond.sequence.to(xt.dtype)
        return self.network(xt, t, encoder_hidden_states=sequence, return_dict=False)[0]
