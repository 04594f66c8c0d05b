"""One small, randomly initialised pipeline of each family: diffusers' real classes and tokenizers.

`backbone` and `fresh` load them with `dk.load` from what `save_pretrained` saved.
"""

from __future__ import annotations

import functools
import string
import tempfile
from pathlib import Path

import diffusers
import pipelines
import torch
from studies.training import tokenizer as clip_tokenizer
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from datekit.shapes.captions import WORDS

WIDTH = 32
SIZES = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2}  # of the language models
PACKED = {"in_channels": 16, "attention_head_dim": 16, "num_attention_heads": 2}  # cells of four
BLOCKS = {"num_layers": 1, "num_single_layers": 1}
PLAIN = {"in_channels": 4, "out_channels": 4, "attention_head_dim": 8, "num_attention_heads": 4}
SCALED = {"shift_factor": 0.1, "scaling_factor": 0.4}  # of autoencoders
TEMPLATE = """the image by detailing color shape size texture quantity text spatial relationships of
 objects and background"""  # words of Qwen-Image's
SYSTEM = """are an assistant designed to generate superior images with the superior degree of
 image-text alignment based on textual prompts or user prompts. <Prompt Start>"""  # of Lumina2's
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
    told = {"extra_ids": 0, "additional_special_tokens": ["<extra_id_0>"], "model_max_length": 24}
    tokens = T5Tokenizer(vocab=pieces, **told)
    size = {"d_model": width, "d_kv": 8, "d_ff": 2 * width, "num_layers": 2, "num_heads": 4}
    torch.manual_seed(1)
    return T5EncoderModel(T5Config(vocab_size=len(tokens), dropout_rate=0.0, **size)), tokens


def merges_of(words) -> tuple[list, list]:
    """All beginnings of some words, and the merges of a BPE tokenizer that make them."""
    starts = [word[:n] for word in words for n in range(1, len(word) + 1)]
    merges = [(start[:-1], start[-1]) for start in starts if len(start) > 1]
    return list(dict.fromkeys(starts)), list(dict.fromkeys(merges))


def qwen_tokens():
    """Qwen's tokenizer of bytes, with a token for each word that follows a space."""
    words = [f"\u0120{word}" for word in (*WORDS, *TEMPLATE.split())]
    starts, merges = merges_of([*words, "user", "assistant", "system", "Describe"])
    pieces = [*bytes_to_unicode().values(), *starts, "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}
    special = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    tokens = Qwen2Tokenizer(vocab=vocab, merges=merges, **special)
    tokens.chat_template = CHAT
    return tokens


def qwen3(cls=Qwen3Model, layers: int = 3):
    """A Qwen3 and its tokenizer."""
    tokens = qwen_tokens()
    torch.manual_seed(1)
    config = Qwen3Config(vocab_size=len(tokens), num_hidden_layers=layers, head_dim=8, **SIZES)
    return cls(config), tokens


def gemma():
    """A Gemma 2 and its tokenizer, with a token for each word that follows a space."""
    starts, merges = merges_of([f"\u2581{word}" for word in (*WORDS, *SYSTEM.split())])
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *string.printable, *starts]
    vocab = {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}
    tokens = GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
    torch.manual_seed(1)
    config = Gemma2Config(vocab_size=len(tokens), num_hidden_layers=2, head_dim=8, **SIZES)
    return Gemma2Model(config), tokens


def vae(**config):
    """The autoencoder of the families."""
    torch.manual_seed(2)
    return pipelines.vae(**config)


def sdxl(zeros: bool = True):
    """Stable Diffusion XL: two encoders, a pooled vector, size conditioning."""
    torch.manual_seed(0)
    size = pipelines.UNET | {"cross_attention_dim": 2 * WIDTH, "attention_head_dim": (2, 4)}
    size |= {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    size |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    size |= {"transformer_layers_per_block": (1, 2), "use_linear_projection": True}
    size |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    size |= {"projection_class_embeddings_input_dim": 6 * 8 + WIDTH}
    unet = diffusers.UNet2DConditionModel(**size)
    steps = {"timestep_spacing": "leading", "steps_offset": 1}
    schedule = diffusers.EulerDiscreteScheduler(**pipelines.SCHEDULE, **steps)
    parts = two_clips(CLIPTextModel) | {"vae": vae(), "unet": unet, "scheduler": schedule}
    options = {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
    return diffusers.StableDiffusionXLPipeline(**parts, **options)


def pixart(cls=diffusers.PixArtAlphaPipeline, sample_size: int = 16):
    """PixArt-alpha or -Sigma: T5, an attention mask, learned variance."""
    torch.manual_seed(0)
    size = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 3}
    size |= {"cross_attention_dim": 3 * 8, "caption_channels": WIDTH}
    transformer = diffusers.PixArtTransformer2DModel(sample_size=sample_size, **size)
    for block in transformer.transformer_blocks:
        block.scale_shift_table.data *= 0.3  # else float32 loses the comparison
    encoder, tokens = t5()
    betas = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
    return cls(tokens, encoder, vae(), transformer, diffusers.DPMSolverMultistepScheduler(**betas))


def sd3(with_t5: bool = True, dynamic: bool = False):
    """Stable Diffusion 3: two CLIPs, an optional T5, a pooled vector, flow matching."""
    torch.manual_seed(0)
    size = PLAIN | {"num_layers": 2, "joint_attention_dim": 2 * WIDTH, "pos_embed_max_size": 32}
    size |= {"caption_projection_dim": 32, "pooled_projection_dim": 2 * WIDTH}
    transformer = diffusers.SD3Transformer2DModel(sample_size=16, **size)
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
    size = PACKED | BLOCKS | {"joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH}
    size |= {"guidance_embeds": guidance, "axes_dims_rope": (4, 4, 8)}
    transformer = diffusers.FluxTransformer2DModel(**size)
    encoder, tokens = t5()
    return diffusers.FluxPipeline(
        scheduler=_flow_schedule(use_dynamic_shifting=True),
        vae=vae(**SCALED),
        text_encoder=clip(CLIPTextModel),
        tokenizer=clip_tokenizer.build(),
        text_encoder_2=encoder,
        tokenizer_2=tokens,
        transformer=transformer,
    )


def z_image():
    """Z-Image: a Qwen3 that reads a chat, embeddings of each prompt's own length."""
    torch.manual_seed(0)
    size = {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2}
    size |= {"n_kv_heads": 2, "cap_feat_dim": WIDTH}
    size |= {"axes_dims": [8, 4, 4], "axes_lens": [256, 32, 32]}
    transformer = diffusers.ZImageTransformer2DModel(**size)
    for name in ("x_pad_token", "cap_pad_token"):
        getattr(transformer, name).data.normal_()
    encoder, tokens = qwen3()
    schedule = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.ZImagePipeline(schedule, vae(**SCALED), encoder, tokens, transformer)


def qwen_image():
    """Qwen-Image: a Qwen2.5-VL that reads a template, an autoencoder of films, renormalised."""
    torch.manual_seed(0)
    size = PACKED | {"out_channels": 4, "num_layers": 2, "joint_attention_dim": WIDTH}
    transformer = diffusers.QwenImageTransformer2DModel(**size, axes_dims_rope=(8, 4, 4))
    size = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1}
    size |= {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.7, 1.0, 2.0]}
    autoencoder = diffusers.AutoencoderKLQwenImage(**size, temperal_downsample=[False, True])
    tokens = qwen_tokens()
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1000000.0}
    text = {"num_hidden_layers": 2, "vocab_size": len(tokens), "rope_parameters": rope, **SIZES}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision | {"out_hidden_size": WIDTH})
    encoder = Qwen2_5_VLForConditionalGeneration(config)
    schedule = _flow_schedule(use_dynamic_shifting=True, max_shift=0.9, shift_terminal=0.02)
    return diffusers.QwenImagePipeline(schedule, autoencoder, encoder, tokens, transformer)


def flux2_klein(distilled: bool = False):
    """FLUX.2-klein: three layers of a Qwen3, cells of four, normalised by batch statistics."""
    torch.manual_seed(0)
    size = PACKED | BLOCKS | {"joint_attention_dim": 3 * WIDTH, "axes_dims_rope": (4, 4, 4, 4)}
    transformer = diffusers.Flux2Transformer2DModel(**size, guidance_embeds=False)
    encoder, tokens = qwen3(Qwen3ForCausalLM, layers=27)
    autoencoder = vae(cls=diffusers.AutoencoderKLFlux2)
    autoencoder.bn.running_mean.normal_()
    autoencoder.bn.running_var.uniform_(0.5, 2.0)
    schedule = _flow_schedule(use_dynamic_shifting=True)
    parts = schedule, autoencoder, encoder, tokens, transformer
    return diffusers.Flux2KleinPipeline(*parts, is_distilled=distilled)


def sana():
    """Sana: a Gemma 2 that reads an instruction, an autoencoder of deep compression."""
    torch.manual_seed(0)
    size = PLAIN | {"num_layers": 2, "num_cross_attention_heads": 4, "cross_attention_head_dim": 8}
    size |= {"cross_attention_dim": WIDTH, "caption_channels": WIDTH}
    transformer = diffusers.SanaTransformer2DModel(sample_size=16, **size)
    ways = {"block_types": ("ResBlock", "ResBlock", "EfficientViTBlock")}
    ways |= {"block_out_channels": (8, 16, 16), "layers_per_block": (1, 1, 1)}
    ways |= {"qkv_multiscales": ((), (), (5,))}
    size = {"latent_channels": 4, "attention_head_dim": 8, "scaling_factor": 0.41407}
    for way in ("encoder", "decoder"):
        size |= {f"{way}_{name}": value for name, value in ways.items()}
    autoencoder = diffusers.AutoencoderDC(**size)
    encoder, tokens = gemma()
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    schedule = diffusers.DPMSolverMultistepScheduler(**flow)
    return diffusers.SanaPipeline(tokens, encoder, autoencoder, transformer, schedule)


def lumina2():
    """Lumina-Image 2.0: a Gemma 2 that reads a system prompt, renormalised guidance."""
    torch.manual_seed(0)
    size = {"sample_size": 8, "in_channels": 4, "hidden_size": 32, "num_layers": 2}
    size |= {"num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 2}
    size |= {"axes_dim_rope": (8, 4, 4), "axes_lens": (300, 32, 32), "cap_feat_dim": WIDTH}
    transformer = diffusers.Lumina2Transformer2DModel(multiple_of=16, **size)
    encoder, tokens = gemma()
    autoencoder = vae(widths=(8, 8, 16, 16), **SCALED)
    schedule = diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0)
    return diffusers.Lumina2Pipeline(transformer, schedule, autoencoder, encoder, tokens)


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
    "qwen-image": qwen_image,
    "flux2-klein": flux2_klein,
    "sana": sana,
    "lumina2": lumina2,
}
KINDS = ("sd", "sd-sample", "sdxl", "pixart-alpha", "sd3", "flux", "z-image", "qwen-image")
KINDS += ("flux2-klein", "sana", "lumina2")  # one of each forward pass
TEXT_LENGTH = 20  # positions of T5 and the language models in the tests
SIDES = {"flux": 16, "flux-schnell": 16, "z-image": 16, "qwen-image": 16, "flux2-klein": 8}
_SAVED = tempfile.TemporaryDirectory(prefix="datekit-families-")  # gone with the process


def settings(name: str) -> dict:
    """What datekit is told of a family beside its pipeline, such as a side that no file says."""
    if name.startswith("sd-") or name in ("sd", "sdxl"):
        return {}
    told = {"text_length": TEXT_LENGTH + (28 if name == "lumina2" else 0)}  # after its instruction
    return told | {"sample_size": SIDES[name]} if name in SIDES else told


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
