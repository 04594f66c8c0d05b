"""Stable Diffusion XL: a U-Net with two text encoders.

c is both encoders' states side by side, (B, 77, D), and one pooled vector.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Conditioning
from .base import DiffusersBackbone, Recommended, check_unet
from .text import as_texts, clip_words, quiet, warn_truncated


class SDXLBackbone(DiffusersBackbone):
    """A `StableDiffusionXLPipeline`.

    The sequence holds the penultimate states of both CLIPs, the pooled vector is the second one's
    projection. The size conditioning says that original and target have the size that is sampled,
    uncropped, as the pipeline does by default. A missing negative prompt is zeros where the
    pipeline is configured so (as the published one is), else the embedding of "".
    """

    pipelines = ("StableDiffusionXLPipeline",)
    tiny = "madebyollin/taesdxl"
    pooled = True
    recommended = Recommended(num_steps=50, guidance_scale=5.0)

    def __init__(self, pipe, **kwargs) -> None:
        super().__init__(pipe, **kwargs)
        check_unet(pipe.unet.config)

    def _decoder(self):
        vae = self.pipe.vae
        if vae.dtype != torch.float16 or not vae.config.force_upcast:
            return vae
        # In half precision this decoder overflows. The pipeline upcasts its own while it decodes;
        # this one is a copy.
        return copy.deepcopy(vae).to(torch.float32)

    def encode(self, prompts: Sequence[str | None], *, negative: bool = False) -> Conditioning:
        """The pipeline's own text encoding, (B, L, D) and (B, P), float32 at least."""
        tokenizer, texts = self.pipe.tokenizer or self.pipe.tokenizer_2, as_texts(prompts)
        with quiet():
            warn_truncated(texts, (tokenizer, tokenizer.model_max_length))
            sequence, _, pooled, _ = self.pipe.encode_prompt(
                texts, device=self.device, do_classifier_free_guidance=False
            )
        sequence, pooled = self.exact(sequence), self.exact(pooled)
        if negative and self.pipe.config.force_zeros_for_empty_prompt:
            given = torch.tensor([p is not None for p in prompts], device=sequence.device)
            sequence = torch.where(given[:, None, None], sequence, 0)
            pooled = torch.where(given[:, None], pooled, 0)
        words = clip_words(tokenizer, texts, sequence.shape[1])
        return Conditioning(sequence, pooled, tokens=words)

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The U-Net's raw output, (B, C, h, w); carries gradient to xt and to both embeddings."""
        size = tuple(side * self.pipe.vae_scale_factor for side in xt.shape[-2:])
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=xt.dtype, device=xt.device)
        added = {
            "text_embeds": cond.pooled.to(xt.dtype),
            "time_ids": time_ids.expand(len(xt), -1),
        }
        sequence = cond.sequence.to(xt.dtype)
        return self.pipe.unet(
            xt, t, encoder_hidden_states=sequence, added_cond_kwargs=added, return_dict=False
        )[0]
