"""Small, randomly initialised pipelines of diffusers' real classes."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from studies.training import tokenizer as small_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

UNET = {"sample_size": 16, "block_out_channels": (16, 32)}
UNET |= {"layers_per_block": 1, "norm_num_groups": 8}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def clip(cls=CLIPTextModel, width: int = 32, layers: int = 2):
    """A CLIP text encoder for the words of the shapes world."""
    tokens = small_tokenizer.build()
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    size = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    size |= {"num_hidden_layers": layers, "num_attention_heads": 4, "vocab_size": len(tokens)}
    size |= {name: getattr(tokens, name) for name in special}
    return cls(CLIPTextConfig(max_position_embeddings=tokens.model_max_length, **size))


def vae(cls=AutoencoderKL, widths=(8, 16, 16), **config):
    """An untrained autoencoder, to latents of a quarter of the side for three widths."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * len(widths)}
    blocks |= {"up_block_types": ("UpDecoderBlock2D",) * len(widths)}
    size = {"block_out_channels": widths, "layers_per_block": 1}
    return cls(latent_channels=4, norm_num_groups=4, **size, **blocks, **config)


def stable_diffusion(
    prediction_type: str = "epsilon", seed: int = 0, width: int = 32
) -> StableDiffusionPipeline:
    """A Stable-Diffusion-shaped pipeline: 64 px images, 4 x 16 x 16 latents, text width `width`."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        **UNET,
        cross_attention_dim=width,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    ending = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    pipe = StableDiffusionPipeline(
        unet=unet,
        vae=vae(),
        text_encoder=clip(width=width),
        tokenizer=small_tokenizer.build(),
        scheduler=DDIMScheduler(**SCHEDULE, **ending, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The relative difference, of the worst sample."""
    distance = (found - expected).flatten(1).norm(dim=1)
    return (distance / expected.flatten(1).norm(dim=1)).max().item()


def guided(pipe, state, xt, t, w: float) -> torch.Tensor:
    """uncond + w (cond - uncond) of what the network itself says under c_org."""
    texts = (state.uncond.sequence, state.c_org)
    out_u, out_c = (pipe.unet(xt, t, encoder_hidden_states=c).sample for c in texts)
    return out_u + w * (out_c - out_u)


class Brightness:
    """A smooth reward: how well the means of the colours match a target that the prompt sets."""

    name = "brightness"

    def __call__(self, images: torch.Tensor, prompts) -> torch.Tensor:
        rows = [[len(p) % 7, len(p) % 5, len(p) % 3] for p in prompts]
        target = torch.tensor(rows).to(images) / 7
        centre = images[..., images.shape[-2] // 4 :, :].mean((2, 3))
        stripes = torch.tanh(images[:, 0, ::2].mean((1, 2)))
        return 1 - ((centre - target) ** 2).sum(1) + 0.1 * stripes
