"""PixArt-alpha and PixArt-Sigma: a diffusion transformer with cross-attention to T5.

c is T5's last hidden state, (B, 120 or 300, D).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Conditioning
from .base import DiffusersBackbone, Recommended
from .text import as_texts, quiet, t5_positions, warn_truncated


class PixArtBackbone(DiffusersBackbone):
    """A `PixArtAlphaPipeline` or `PixArtSigmaPipeline`.

    Padding is masked in the attention and never moves. The network predicts its own variance beside
    the noise; no solver here reads it, so it is dropped. text_length: the number of T5 positions,
    by default the pipeline's own. Image sizes are taken as given, not rounded to a trained ratio.
    """

    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    load_settings = ("text_length",)
    recommended = Recommended(num_steps=20, guidance_scale=4.5, solver="dpm++")

    def __init__(self, pipe, *, text_length: int | None = None, **kwargs) -> None:
        super().__init__(pipe, **kwargs)
        is_alpha = type(pipe).__name__ == "PixArtAlphaPipeline"
        self.text_length = text_length or (120 if is_alpha else 300)
        self.tiny = "madebyollin/taesd" if is_alpha else "madebyollin/taesdxl"

    def encode(self, prompts: Sequence[str | None], *, negative: bool = False) -> Conditioning:
        """The pipeline's own text encoding, (B, L, D), float32 at least, with its mask."""
        tokenizer, length = self.pipe.tokenizer, self.text_length
        with quiet():
            # Lower case, and no web addresses where beautifulsoup4 and ftfy are installed.
            texts = self.pipe._text_preprocessing(as_texts(prompts), clean_caption=True)
            warn_truncated(texts, (tokenizer, length))
            sequence, mask, _, _ = self.pipe.encode_prompt(
                texts,
                do_classifier_free_guidance=False,
                device=self.device,
                clean_caption=False,
                max_sequence_length=length,
            )
        read, words = t5_positions(tokenizer, texts, length)
        attention = {"attention": self.exact(mask)}
        return Conditioning(self.exact(sequence), None, read.to(sequence.device), words, attention)

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The predicted noise, (B, C, h, w); carries gradient to xt and to the embedding."""
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
        height, width = (side * self.pipe.vae_scale_factor for side in xt.shape[-2:])
        resolution = torch.tensor([[height, width]], dtype=xt.dtype, device=xt.device)
        ratio = torch.tensor([[height / width]], dtype=xt.dtype, device=xt.device)
        return {
            "resolution": resolution.repeat(len(xt), 1),
            "aspect_ratio": ratio.repeat(len(xt), 1),
        }
