"""PixArt-alpha and PixArt-Sigma: a diffusion transformer with cross-attention to T5; c is T5's last hidden state, (B, 120 or 300, D)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Conditioning
from .base import DiffusersBackbone, Recommended, quiet, t5_mask, t5_words, warn_truncated

LENGTHS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}


class PixArtBackbone(DiffusersBackbone):
    """A `PixArtAlphaPipeline` or `PixArtSigmaPipeline`; padding is masked in the attention and never moves.

    The network predicts its own variance beside the noise, which no solver here reads: it is dropped. text_length: T5 positions, the
    pipeline's own number by default. Image sizes are taken as given, without the pipeline's rounding to a trained ratio.
    """

    recommended = Recommended(num_steps=20, guidance_scale=4.5, solver="dpm++")

    def __init__(self, pipe, *, text_length: int | None = None, **kwargs) -> None:
        super().__init__(pipe, **kwargs)
        self.text_length = text_length or LENGTHS[type(pipe).__name__]

    def encode(self, prompts: Sequence[str | None], *, negative: bool = False) -> Conditioning:
        """The pipeline's own text encoding, (B, L, D), float32 at least, with its mask; warns once about words beyond the window."""
        tokenizer, length = self.pipe.tokenizer, self.text_length
        with quiet("transformers", "diffusers"):
            # lower case, and freed of web addresses and the like where beautifulsoup4 and ftfy are installed
            texts = self.pipe._text_preprocessing(
                ["" if p is None else p for p in prompts], clean_caption=True
            )
            warn_truncated(texts, (tokenizer, length))
            sequence, mask, _, _ = self.pipe.encode_prompt(
                texts,
                do_classifier_free_guidance=False,
                device=self.device,
                clean_caption=False,
                max_sequence_length=length,
            )
        exact = torch.promote_types(self.dtype, torch.float32)
        return Conditioning(
            sequence.to(exact),
            mask=t5_mask(tokenizer, texts, length).to(sequence.device),
            tokens=t5_words(tokenizer, texts, length),
            extras={"attention": mask.to(exact)},
        )

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The transformer's predicted noise, (B, C, h, w); carries gradient to xt and to the embedding."""
        added = {"resolution": None, "aspect_ratio": None}
        if self.network.config.sample_size == 128 and self.network.use_additional_conditions:
            height, width = (side * self.pipe.vae_scale_factor for side in xt.shape[-2:])
            each = lambda *values: torch.tensor([values], dtype=xt.dtype, device=xt.device).repeat(
                len(xt), 1
            )
            added = {"resolution": each(height, width), "aspect_ratio": each(height / width)}
        out = self.network(
            xt,
            encoder_hidden_states=cond.sequence.to(xt.dtype),
            encoder_attention_mask=cond.extras["attention"].to(xt.dtype),
            timestep=torch.full((len(xt),), t, device=xt.device),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return out[:, : xt.shape[1]]
