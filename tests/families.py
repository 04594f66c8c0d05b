"""One small, randomly initialised pipeline of each family: diffusers' real classes and tokenizers.

`backbone` and `fresh` load them with `dk.load` from what `save_pretrained` saved.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import diffusers
import pipelines
import torch
from studies.training import tokenizer as clip_tokenizer
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from datekit.shapes.captions import WORDS

WIDTH = 32
CHAT = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def clip(cls, seed: int = 0):
    """A CLIP text encoder of 3 layers."""
    torch.manual_seed(seed)
    return pipelines.clip(cls, WIDTH, layers=3)


def two_clips(first) -> dict:
    """The text encoders of Stable Diffusion XL and 3 with their tokenizers."""
    parts = {"text_encoder": clip(first)}
    parts |= {"text_encoder_2": clip(CLIPTextModelWithProjection, seed=5)}
    return parts | {name: clip_tokenizer.build() for name in ("tokenizer", "tokenizer_2")}


def t5(width: int = WIDTH):
    """A T5 encoder and its tokenizer over the words of the shapes world and the letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("\u2581", -4.0)]
    pieces += [(f"\u2581{word}", -1.0) for word in WORDS]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz,"]
    extra = ["<extra_id_0>"]
    tokens = T5Tokenizer(
        vocab=pieces, extra_ids=0, additional_special_tokens=extra, model_max_length=24
    )
    size = {"d_model": width, "d_kv": 8, "d_ff": 2 * width, "num_layers": 2, "num_heads": 4}
    torch.manual_seed(1)
    return T5EncoderModel(T5Config(vocab_size=len(tokens), dropout_rate=0.0, **size)), tokens


def qwen_tokens():
    """Qwen's tokenizer of bytes, with a token for each word that follows a space."""
    pieces, merges = list(bytes_to_unicode().values()), []
    for word in [*(f"\u0120{word}" for word in WORDS), "user", "assistant"]:
        starts = [word[:n] for n in range(1, len(word) + 1)]
        merges += list(zip(starts, word[1:], strict=False))
        pieces += starts
    pieces += ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = Qwen2Tokenizer(
        vocab={piece: n for n, piece in enumerate(dict.fromkeys(pieces))},
        merges=list(dict.fromkeys(merges)),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokens.chat_template = CHAT
    return tokens


def qwen3():
    """A Qwen3 and its tokenizer."""
    tokens = qwen_tokens()
    size = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "head_dim": 8}
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=len(tokens),
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        **size,
    )
    return Qwen3Model(config), tokens


def vae(**config):
    """The autoencoder of the families."""
    torch.manual_seed(2)
    return pipelines.vae(**config)


def sdxl(zeros: bool = True):
    """Stable Diffusion XL: two encoders, a pooled vector, size conditioning."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    steps = {"timestep_spacing": "leading", "steps_offset": 1}
    return diffusers.StableDiffusionXLPipeline(
        **two_clips(CLIPTextModel),
        vae=vae(),
        unet=unet,
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
        scheduler=diffusers.EulerDiscreteScheduler(**pipelines.SCHEDULE, **steps),
    )


def pixart(cls=diffusers.PixArtAlphaPipeline, sample_size: int = 16):
    """PixArt-alpha or -Sigma: T5, an attention mask, learned variance."""
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=sample_size,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        cross_attention_dim=3 * 8,
        caption_channels=WIDTH,
    )
    for block in transformer.transformer_blocks:
        block.scale_shift_table.data *= 0.3  # else float32 loses the comparison
    encoder, tokens = t5()
    betas = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
    return cls(tokens, encoder, vae(), transformer, diffusers.DPMSolverMultistepScheduler(**betas))


def sd3(with_t5: bool = True, dynamic: bool = False):
    """Stable Diffusion 3: two CLIPs, an optional T5, a pooled vector, flow matching."""
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=32,
    )
    encoder, tokens = t5(2 * WIDTH) if with_t5 else (None, None)
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=_flow_schedule(shift=3.0, use_dynamic_shifting=dynamic),
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        **two_clips(CLIPTextModelWithProjection),
        text_encoder_3=encoder,
        tokenizer_3=tokens,
    )


def flux(guidance: bool = True):
    """FLUX: packed latents, T5 and a pooled CLIP, guidance distilled into the network."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )
    encoder, tokens = t5()
    return diffusers.FluxPipeline(
        scheduler=_flow_schedule(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.1, scaling_factor=0.4),
        text_encoder=clip(CLIPTextModel),
        tokenizer=clip_tokenizer.build(),
        text_encoder_2=encoder,
        tokenizer_2=tokens,
        transformer=transformer,
    )


def z_image():
    """Z-Image: a Qwen3 that reads a chat, embeddings of each prompt's own length."""
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for name in ("x_pad_token", "cap_pad_token"):
        getattr(transformer, name).data.normal_()
    encoder, tokens = qwen3()
    autoencoder = vae(shift_factor=0.1, scaling_factor=0.4)
    return diffusers.ZImagePipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        autoencoder,
        encoder,
        tokens,
        transformer,
    )


def _flow_schedule(**settings):
    lengths = {"base_image_seq_len": 16, "max_image_seq_len": 128}
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings, **lengths)


FAMILIES = {
    "sd": pipelines.stable_diffusion,
    "sd-v": lambda: pipelines.stable_diffusion("v_prediction"),
    "sd-sample": lambda: pipelines.stable_diffusion("sample"),
    "sdxl": sdxl,
    "pixart-alpha": pixart,
    "pixart-sigma": lambda: pixart(diffusers.PixArtSigmaPipeline),
    "sd3": sd3,
    "sd3-no-t5": lambda: sd3(with_t5=False),
    "sd3-dynamic": lambda: sd3(dynamic=True),
    "flux": flux,
    "flux-schnell": lambda: flux(guidance=False),
    "z-image": z_image,
}
TEXT_LENGTH = 20  # T5 positions in the tests
SIDE = 16  # of their latents
_SAVED = tempfile.TemporaryDirectory(prefix="datekit-families-")  # gone with the process


def settings(name: str) -> dict:
    """What datekit is told of a family beside its pipeline."""
    told = {} if name.startswith("sd-") or name in ("sd", "sdxl") else {"text_length": TEXT_LENGTH}
    return told | {"sample_size": SIDE} if name.startswith(("flux", "z-image")) else told


@functools.cache
def folder(name: str) -> Path:
    """Where a family's pipeline lies as `save_pretrained` writes it."""
    path = Path(_SAVED.name) / name
    FAMILIES[name]().save_pretrained(path)
    return path


@functools.cache
def backbone(name: str):
    """The backbone of a family, loaded once."""
    return fresh(name)


def fresh(name: str, dtype: torch.dtype | None = None, device: str = "cpu"):
    """A backbone of a family of its own, with the same weights."""
    import datekit as dk

    loaded = dk.load(folder(name), device=device, dtype=dtype, **settings(name))
    loaded.name = name
    loaded.pipe.set_progress_bar_config(disable=True)
    return loaded
