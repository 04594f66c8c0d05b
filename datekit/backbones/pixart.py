"""PixArt-alpha and PixArt-Sigma: a diffusion transformer with cross-attention to T5.

c is T5's last hidden state, (B, 120 or 300, D).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Conditioning
from .base import DiffusersBackbone, Prompts, Recommended
from .text import quiet


class PixArtBackbone(DiffusersBackbone):
    """A `PixArtAlphaPipeline`.

    Padding is masked in the attention and never moves; the variance that the network predicts is
    dropped. text_length: the number of T5 positions. Image sizes are taken as given.
    """

    pipelines = ("PixArtAlphaPipeline",)
    tiny = "madebyollin/taesd"
    load_settings = ("text_length",)
    text_length = 120
    recommended = Recommended(num_steps=20, guidance_scale=4.5, solver="dpm++")

    def encode(self, prompts: Prompts, *, negative: bool = False) -> Conditioning:
        with quiet():  # Lower case, and no web addresses where bs4 and ftfy are installed.
            texts = self.pipe._text_preprocessing([p or "" for p in prompts], clean_caption=True)
        return super().encode(texts)

    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        sequence, mask, _, _ = self.pipe.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            device=self.device,
            clean_caption=False,
            max_sequence_length=self.text_length,
        )
        return Conditioning(sequence, extras={"attention": self.exact(mask)})

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        out = self.network(
            xt,
            encoder_hidden_states=cond.sequence.to(xt.dtype),
            encoder_attention_mask=cond.extras["attention"].to(xt.dtype),
            timestep=torch.full((len(xt),), t, device=xt.device),
            added_cond_kwargs=self._size_conditioning(xt),
            return_dict=False,
        )[0]
        return out[:, : xt.shape[1]]

    def _size_conditioning(self, xt: Tensor) -> dict[str, Tensor | None]:
        """The picture's size and its ratio, for the networks that were trained with them."""
        if self.network.config.sample_size != 128 or not self.network.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self.factor for side in xt.shape[-2:])
        told = {"resolution": [[height, width]], "aspect_ratio": [[height / width]]}
        return {name: xt.new_tensor(row).repeat(len(xt), 1) for name, row in told.items()}


class PixArtSigmaBackbone(PixArtBackbone):
    """A `PixArtSigmaPipeline`, with longer texts and the autoencoder of Stable Diffusion XL."""

    pipelines = ("PixArtSigmaPipeline",)
    tiny = "madebyollin/taesdxl"
    text_length = 300
