"""The published architectures at full size, with random weights, which cost what trained ones do.

Configurations are those of the published checkpoints' own config files. Text encoders are left out:
embeddings of the right shape are drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from datekit.backbones import Backbone, wrap
from datekit.backbones.text import quiet
from datekit.errors import unknown
from datekit.types import Conditioning

_KL = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
_SD_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Architecture:
    """One published model: classes by name, configurations, and the shape of its text embedding.

    length, width: of c; pooled: width of the pooled vector, or None; pixels: the side of its
    images; text: parameters of the text encoders in billions, as published; hub: where its weights
    are.
    """

    pipeline: str
    network: tuple[str, dict]
    vae: dict
    scheduler: tuple[str, dict]
    length: int
    width: int
    pooled: int | None
    pixels: int
    text: float
    hub: str


ARCHITECTURES = {
    "SD v1.5": Architecture(
        "StableDiffusionPipeline",
        (
            "UNet2DConditionModel",
            {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        ),
        _KL | {"latent_channels": 4, "scaling_factor": 0.18215},
        ("DDIMScheduler", _SD_SCHEDULE | {"clip_sample": False, "set_alpha_to_one": False}),
        77,
        768,
        None,
        512,
        0.123,
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    "SDXL": Architecture(
        "StableDiffusionXLPipeline",
        (
            "UNet2DConditionModel",
            {
                "sample_size": 128,
                "block_out_channels": (320, 640, 1280),
                "cross_attention_dim": 2048,
                "attention_head_dim": (5, 10, 20),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10),
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
        ),
        _KL
        | {
            "latent_channels": 4,
            "scaling_factor": 0.13025,
            "sample_size": 1024,
            "force_upcast": True,
        },
        ("EulerDiscreteScheduler", _SD_SCHEDULE | {"timestep_spacing": "leading"}),
        77,
        2048,
        1280,
        1024,
        0.817,
        "stabilityai/stable-diffusion-xl-base-1.0",
    ),
    "PixArt-alpha": Architecture(
        "PixArtAlphaPipeline",
        (
            "PixArtTransformer2DModel",
            {
                "sample_size": 64,
                "num_layers": 28,
                "num_attention_heads": 16,
                "attention_head_dim": 72,
                "in_channels": 4,
                "out_channels": 8,
                "patch_size": 2,
                "cross_attention_dim": 1152,
                "caption_channels": 4096,
                "attention_bias": True,
                "norm_type": "ada_norm_single",
                "norm_elementwise_affine": False,
                "norm_eps": 1e-6,
            },
        ),
        _KL | {"latent_channels": 4, "scaling_factor": 0.18215},
        (
            "DPMSolverMultistepScheduler",
            {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
        ),
        120,
        4096,
        None,
        512,
        4.76,
        "PixArt-alpha/PixArt-XL-2-512x512",
    ),
    "SD3 medium": Architecture(
        "StableDiffusion3Pipeline",
        (
            "SD3Transformer2DModel",
            {
                "sample_size": 128,
                "num_layers": 24,
                "num_attention_heads": 24,
                "attention_head_dim": 64,
                "in_channels": 16,
                "out_channels": 16,
                "patch_size": 2,
                "joint_attention_dim": 4096,
                "caption_projection_dim": 1536,
                "pooled_projection_dim": 2048,
                "pos_embed_max_size": 192,
            },
        ),
        _KL
        | {
            "latent_channels": 16,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "sample_size": 1024,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        77 + 256,
        4096,
        2048,
        1024,
        5.58,
        "stabilityai/stable-diffusion-3-medium-diffusers",
    ),
    "FLUX.1-dev": Architecture(
        "FluxPipeline",
        (
            "FluxTransformer2DModel",
            {
                "in_channels": 64,
                "num_layers": 19,
                "num_single_layers": 38,
                "num_attention_heads": 24,
                "attention_head_dim": 128,
                "joint_attention_dim": 4096,
                "pooled_projection_dim": 768,
                "guidance_embeds": True,
            },
        ),
        _KL
        | {
            "latent_channels": 16,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "sample_size": 1024,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
        512,
        4096,
        768,
        1024,
        4.88,
        "black-forest-labs/FLUX.1-dev",
    ),
}


def build(
    name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, **smaller
) -> Backbone:
    """A published architecture as a backbone with random weights and random text embeddings.

    device: where it is made; "meta" gives shapes without memory. smaller: entries of the network's
    configuration to override, for tests. Raises ValueError for an unknown name.
    """
    import diffusers

    if name not in ARCHITECTURES:
        raise unknown("architecture", name, ARCHITECTURES)
    plan = ARCHITECTURES[name]
    kind, config = plan.network
    with torch.device(device), quiet():
        network = getattr(diffusers, kind)(**config | smaller).to(dtype)
        vae = diffusers.AutoencoderKL(**plan.vae).to(dtype)
    parts = {"vae": vae, "unet" if kind.startswith("UNet") else "transformer": network}
    parts["scheduler"] = getattr(diffusers, plan.scheduler[0])(**plan.scheduler[1])
    pipe = getattr(diffusers, plan.pipeline)(
        **dict.fromkeys(_text_parts(plan.pipeline)) | _flags(plan.pipeline) | parts
    )
    backbone = wrap(pipe, name=name)
    backbone.encode = _random_text(plan, device)
    return backbone


def _text_parts(pipeline: str) -> tuple[str, ...]:
    count = {"StableDiffusionXLPipeline": 2, "StableDiffusion3Pipeline": 3, "FluxPipeline": 2}.get(
        pipeline, 1
    )
    return tuple(
        f"{part}{suffix}"
        for suffix in ("", "_2", "_3")[:count]
        for part in ("tokenizer", "text_encoder")
    )


def _flags(pipeline: str) -> dict:
    if pipeline == "StableDiffusionPipeline":
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return {"add_watermarker": False} if pipeline == "StableDiffusionXLPipeline" else {}


def _random_text(plan: Architecture, device: str) -> Callable:
    def encode(prompts, *, negative: bool = False) -> Conditioning | None:
        if negative and plan.pipeline == "FluxPipeline":
            return None
        draw = torch.Generator().manual_seed(int(negative))

        def each(*shape: int) -> torch.Tensor:
            return torch.randn(len(prompts), *shape, generator=draw).to(device)

        extras = (
            {"attention": torch.ones(len(prompts), plan.length, device=device)}
            if plan.pipeline.startswith("PixArt")
            else {}
        )
        pooled = None if plan.pooled is None else each(plan.pooled)
        return Conditioning(
            each(plan.length, plan.width),
            pooled,
            tokens=(("x",) * plan.length,) * len(prompts),
            extras=extras,
        )

    return encode


def sizes(name: str) -> dict[str, float]:
    """Parameters in billions: of network and decoder counted, of the text encoders as published."""
    backbone = build(name, device="meta")

    def count(module: torch.nn.Module) -> float:
        return sum(p.numel() for p in module.parameters()) / 1e9

    return {
        "network": count(backbone.network),
        "decoder": count(backbone.pipe.vae.decoder),
        "text encoders": ARCHITECTURES[name].text,
    }
