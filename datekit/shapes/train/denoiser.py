"""The denoiser and its text encoder, trained together on v prediction; then the fine-tuning that leaves room."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from datekit.shapes.captions import caption, families, prompts
from datekit.shapes.negatives import garble
from datekit.shapes.oracle import judge
from datekit.shapes.renderer import render
from datekit.shapes.train import autoencoder, tokenizer
from datekit.shapes.train.loop import Draw, Log, fit
from datekit.shapes.world import Scene, relation, sample_scenes

WIDTH = 96  # of the text embedding
BATCH = 32
SCENES = 24_000
DROPPED = 0.1  # share of empty captions, for classifier-free guidance
MIX = {"single": 1, "colours": 2, "two": 1, "attribution": 3, "position": 6, "counting": 2, "three": 2}  # captions
LAYOUT_MIX = MIX | {"position": 24}  # for the stages that learn where things stand, the last and hardest part
PAIRS, SINGLES = 0.7, 0.2  # shares of scenes with two things and with one that those stages draw on purpose
PLACED = 0.8  # share of single things that are then captioned by their place: "a red circle left"
EARLY = 700  # the timesteps from which on the layout is decided; those stages draw most of theirs there


class Denoiser(torch.nn.Module):
    """UNet and text encoder."""

    def __init__(self):
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(48, 64, 96),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,  # the number of heads, whatever its name says
            norm_num_groups=8,
        )
        self.text = text_encoder("quick_gelu")

    def forward(self, xt: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Predicted v (B, 4, 16, 16)."""
        return self.unet(xt, t, self.text(ids).last_hidden_state).sample


def text_encoder(activation: str) -> CLIPTextModel:
    """An untrained text encoder."""
    tokens = _tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.WINDOW,
            hidden_act=activation,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
            projection_dim=WIDTH,
        )
    )


def text_encoder_of(clip: torch.nn.Module) -> CLIPTextModel:
    """The text tower of an open_clip model as a transformers one, as Stable Diffusion has it."""
    theirs, ours = clip.state_dict(), {}
    ours["embeddings.token_embedding.weight"] = theirs["token_embedding.weight"]
    ours["embeddings.position_embedding.weight"] = theirs["positional_embedding"]
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names |= {"attn.out_proj": "self_attn.out_proj"}
    for kind in ("weight", "bias"):
        ours[f"final_layer_norm.{kind}"] = theirs[f"ln_final.{kind}"]
        for i in range(2):
            here, there = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
            ours |= {f"{here}.{new}.{kind}": theirs[f"{there}.{old}.{kind}"] for old, new in names.items()}
            parts = theirs[f"{there}.attn.in_proj_{kind}"].chunk(3)
            ours |= {f"{here}.self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", parts, strict=True)}
    text = text_encoder("gelu")
    text.load_state_dict(ours, strict=True)
    return text


_tokenizer = cache(tokenizer.build)


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule with v prediction: at this size epsilon prediction does not learn in an hour."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def pipeline(model: Denoiser, vae: AutoencoderKL) -> StableDiffusionPipeline:
    """The pipeline that ships."""
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=model.text, tokenizer=_tokenizer(), unet=model.unet, scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def train(
    path: Path, vae: AutoencoderKL, *, steps: int, seed: int, device: str, peak: float = 1e-3,
    start: Denoiser | None = None, noisy: bool = False, layout: bool = False, scenes: int = SCENES, probes: int = 100,
) -> tuple[Denoiser, Log]:  # fmt: skip
    """Trains on captioned latents, from `start` if given, and returns the moving average.

    With `layout` most captions are of position, most timesteps are noisy ones, and the text encoder is frozen: trained along,
    it forgets which way a relation points before the U-Net has learnt to use it. With `noisy` the captions are garbled as
    web captions are, so that the model draws well and is not always right.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(start) if start else Denoiser()
    model = model.requires_grad_(True).train().to(device)
    model.text.requires_grad_(not layout)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    alphas = scheduler().alphas_cumprod

    @cache  # encoded when the first step asks, so not at all for a stage that is complete
    def data() -> tuple[list[Scene], torch.Tensor]:
        found = sample_scenes(scenes, seed)
        parts = [found[i : i + 256] for i in range(0, scenes, 256)]
        return found, torch.cat([autoencoder.encode(vae, render(part)) for part in parts]) * vae.config.scaling_factor

    @cache
    def scenes_of(count: int) -> np.ndarray:
        fits = [len(scene.things) == count and (count == 1 or "position" in families(scene)) for scene in data()[0]]
        return np.flatnonzero(fits)

    def loss(draw: Draw) -> tuple[torch.Tensor, dict]:
        index = draw.numpy.integers(scenes, size=BATCH)
        captioned, latents = data()
        if layout:
            sort, (one, two) = draw.numpy.random(BATCH), (draw.numpy.choice(scenes_of(n), BATCH) for n in (1, 2))
            index = np.where(sort < PAIRS, two, np.where(sort < PAIRS + SINGLES, one, index))
        ids = tokens([_caption(captioned[i], draw.numpy, noisy, layout) for i in index])
        x0, noise = latents[index], torch.randn(BATCH, *latents.shape[1:], generator=draw.torch)
        t = torch.randint(len(alphas), (BATCH,), generator=draw.torch)
        if layout:
            early = torch.randint(EARLY, len(alphas), (BATCH,), generator=draw.torch)
            t = torch.where(torch.rand(BATCH, generator=draw.torch) < 0.6, early, t)
        a, b = alphas[t, None, None, None].sqrt(), (1 - alphas[t, None, None, None]).sqrt()
        xt, v = a * x0 + b * noise, a * noise - b * x0
        return F.mse_loss(model(xt.to(device), t.to(device), ids.to(device)), v.to(device)), {}

    def probe() -> dict:
        return {"oracle": right(pipeline(ema, vae), prompts(n=probes, part="tune"), guidance_scale=3.0, num_steps=20)}

    log = fit(model, loss, steps=steps, peak=peak, path=path, seed=seed, ema=ema, probe=probe)
    return ema, log


def tokens(texts: list[str]) -> torch.Tensor:
    """Tokens (B, 16)."""
    return _tokenizer()(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def _caption(scene: Scene, rng: np.random.Generator, noisy: bool, layout: bool) -> str:
    options = families(scene)
    weights = np.array([float((LAYOUT_MIX if layout else MIX)[family]) for family in options])
    if rng.random() < DROPPED:
        return ""
    text = caption(scene, options[rng.choice(len(options), p=weights / weights.sum())], rng)
    text = garble(text, rng) if noisy else text
    return f"{text} {_place(scene)}" if layout and len(scene.things) == 1 and rng.random() < PLACED else text


def _place(scene: Scene) -> str:
    """Where the first thing stands, in one word: an easier lesson than relations, and half of what they need."""
    thing = scene.things[0]
    return relation(thing, replace(thing, x=0.5, y=0.5)).removesuffix(" of")


@torch.no_grad()
def draw_images(pipe: StableDiffusionPipeline, texts: list[str], *, guidance_scale: float, num_steps: int, seed: int = 0):
    """Images (B, 3, 64, 64) of prompts, the i-th from noise of seed + i."""
    noise = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(texts))]
    images = []
    for i in range(0, len(texts), 50):
        out = pipe(
            texts[i : i + 50], num_inference_steps=num_steps, guidance_scale=guidance_scale,
            latents=torch.cat(noise[i : i + 50]).to(pipe.device), output_type="pt",
        )  # fmt: skip
        images.append(out.images.cpu())
    return torch.cat(images)


def right(pipe: StableDiffusionPipeline, texts: list[str], *, guidance_scale: float, num_steps: int, seed: int = 0) -> float:
    """Share of prompts whose image the oracle finds right."""
    images = draw_images(pipe, texts, guidance_scale=guidance_scale, num_steps=num_steps, seed=seed)
    return sum(verdict.right for verdict in judge(images, texts)) / len(texts)
