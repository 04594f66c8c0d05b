"""Stable Diffusion 1.x, 2.x and XL: a U-Net.

c is CLIP's last hidden state, (B, 77, D); for XL the penultimate states of two CLIPs side by side,
and one pooled vector.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Conditioning
from .base import DiffusersBackbone, Prompts, Recommended
from .text import Window


class UNetBackbone(DiffusersBackbone):
    """A `StableDiffusionPipeline`: epsilon or v prediction; every token position moves.

    A network distilled as LCM is told guidance_scale - 1, and has no branch for negative prompts.
    """

    pipelines = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
    tiny = "madebyollin/taesd"

    def __init__(self, pipe, **kwargs) -> None:
        super().__init__(pipe, **kwargs)
        config = self.network.config
        if config.in_channels != config.out_channels:
            raise ValueError("this U-Net takes more than a latent, as for inpainting")
        if not self.two_branches:
            self.recommended = kwargs.get("recommended") or Recommended(4, 8.5, "own")

    @property
    def two_branches(self) -> bool:
        return self.network.config.time_cond_proj_dim is None

    def windows(self) -> list[Window]:
        tokenizer = self.pipe.tokenizer or self.pipe.tokenizer_2
        return [Window(tokenizer, tokenizer.model_max_length)]

    def encode(self, prompts: Prompts, *, negative: bool = False) -> Conditioning | None:
        cond = super().encode(prompts, negative=negative)
        if negative and cond is not None and not self.two_branches:
            raise ValueError(f"{self.name} was distilled with its guidance: leave negative_prompts")
        return cond

    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        return Conditioning(self.pipe.encode_prompt(texts, self.device, 1, False)[0])

    def with_guidance(self, cond: Conditioning, guidance_scale: float) -> Conditioning:
        if self.two_branches:
            return cond
        width, w = self.network.config.time_cond_proj_dim, torch.tensor(guidance_scale - 1)
        told = self.pipe.get_guidance_scale_embedding(w.repeat(len(cond)), embedding_dim=width)
        return cond.replace(extras=cond.extras | {"guidance": told.to(cond.sequence)})

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        if self.network.encoder_hid_proj is not None:
            raise ValueError("an IP-Adapter was loaded after dk.wrap; pipe.unload_ip_adapter()")
        told = {"encoder_hidden_states": cond.sequence.to(xt.dtype)}
        if not self.two_branches:
            if "guidance" not in cond.extras:
                cond = self.with_guidance(cond, self.recommended.guidance_scale)
            told["timestep_cond"] = cond.extras["guidance"].to(xt.dtype)
        return self.network(xt, t, **told, **self.added_cond_kwargs(xt, cond), return_dict=False)[0]

    def added_cond_kwargs(self, xt: Tensor, cond: Conditioning) -> dict:
        """What the network is told beside the sequence."""
        return {}


class SDXLBackbone(UNetBackbone):
    """A `StableDiffusionXLPipeline`, told of the sizes that it tells its network by default.

    The pooled vector is the second CLIP's projection. A missing negative prompt is zeros where the
    pipeline is configured so, else the embedding of "".
    """

    pipelines = ("StableDiffusionXLPipeline",)
    tiny = "madebyollin/taesdxl"
    pooled = True
    recommended = Recommended(num_steps=50, guidance_scale=5.0)

    def __init__(self, pipe, **kwargs) -> None:
        super().__init__(pipe, **kwargs)
        if pipe.config.get("requires_aesthetics_score"):
            raise ValueError("a refiner starts from a picture; wrap the base model instead")
        if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            # In half precision it overflows; the pipeline's own stays as it is.
            self.exact_vae = copy.deepcopy(self.vae).to(torch.float32)

    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        sequence, _, pooled, _ = self.pipe.encode_prompt(
            texts, device=self.device, do_classifier_free_guidance=False
        )
        return Conditioning(sequence, pooled)

    def encode(self, prompts: Prompts, *, negative: bool = False) -> Conditioning:
        cond = super().encode(prompts, negative=negative)
        if cond is not None and negative and self.pipe.config.force_zeros_for_empty_prompt:
            given = torch.tensor([[prompt is not None] for prompt in prompts], device=self.device)
            sequence = torch.where(given[..., None], cond.sequence, 0)
            cond = cond.replace(sequence=sequence, pooled=torch.where(given, cond.pooled, 0))
        return cond

    def added_cond_kwargs(self, xt: Tensor, cond: Conditioning) -> dict:
        size = [side * self.factor for side in xt.shape[-2:]]
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=xt.dtype, device=xt.device)
        added = {"text_embeds": cond.pooled.to(xt.dtype), "time_ids": time_ids.expand(len(xt), -1)}
        return {"added_cond_kwargs": added}
