"""The denoiser and its text encoder, trained together on v prediction; then the fine-tuning that leaves room."""

from __future__ import annotations

import copy
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
from datekit.shapes.train.loop import Draw, Log, fit, reading
from datekit.shapes.world import Scene, sample_scenes

WIDTH = 96  # of the text embedding
BATCH = 32
SCENES = 24_000
DROPPED = 0.1  # share of empty captions, for classifier-free guidance
MIX = {"single": 1, "colours": 2, "two": 1, "attribution": 3, "position": 6, "counting": 2, "three": 2}  # captions
RELATIONS_MIX = MIX | {"position": 30}  # for the stage that learns where things stand, the last and hardest part
PAIRS = 0.8  # share of scenes with two things that stage draws on purpose


class Denoiser(torch.nn.Module):
    """UNet and text encoder."""

    def __init__(self):
        super().__init__()
        tokens = _tokenizer()
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
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=tokenizer.WINDOW,
                bos_token_id=tokens.bos_token_id,
                eos_token_id=tokens.eos_token_id,
                pad_token_id=tokens.pad_token_id,
                projection_dim=WIDTH,
            )
        )

    def forward(self, xt: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Predicted v (B, 4, 16, 16)."""
        return self.unet(xt, t, self.text(ids).last_hidden_state).sample


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
    start: Denoiser | None = None, noisy: bool = False, relations: bool = False, scenes: int = SCENES, probes: int = 100,
) -> tuple[Denoiser, Log]:  # fmt: skip
    """Trains on captioned latents, from `start` if given, and returns the moving average.

    With `relations` most captions are of position, in reading order at first, and most timesteps are noisy ones, where
    the layout is decided. With `noisy` the captions are garbled as web captions are, so that the model draws well and is
    not always right.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(start) if start else Denoiser()
    model = model.requires_grad_(True).train().to(device)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    alphas = scheduler().alphas_cumprod

    @cache  # encoded when the first step asks, so not at all for a stage that is complete
    def data() -> tuple[list[Scene], torch.Tensor]:
        found = sample_scenes(scenes, seed)
        parts = [found[i : i + 256] for i in range(0, scenes, 256)]
        return found, torch.cat([autoencoder.encode(vae, render(part)) for part in parts]) * vae.config.scaling_factor

    @cache
    def pairs() -> np.ndarray:
        return np.flatnonzero(["position" in families(scene) for scene in data()[0]])

    def loss(draw: Draw) -> tuple[torch.Tensor, dict]:
        index = draw.numpy.integers(scenes, size=BATCH)
        captioned, latents = data()
        order, mix = (reading(draw.step, steps), RELATIONS_MIX) if relations else (0.5, MIX)
        if relations and len(pairs()):
            index = np.where(draw.numpy.random(BATCH) < PAIRS, draw.numpy.choice(pairs(), BATCH), index)
        ids = tokens([_caption(captioned[i], draw.numpy, noisy, order, mix) for i in index])
        x0, noise = latents[index], torch.randn(BATCH, *latents.shape[1:], generator=draw.torch)
        t = torch.randint(len(alphas), (BATCH,), generator=draw.torch)
        if relations:
            t = torch.maximum(t, torch.randint(len(alphas), (BATCH,), generator=draw.torch))
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


def _caption(scene, rng: np.random.Generator, noisy: bool, order: float, mix: dict[str, int]) -> str:
    options = families(scene)
    weights = np.array([float(mix[family]) for family in options])
    if rng.random() < DROPPED:
        return ""
    text = caption(scene, options[rng.choice(len(options), p=weights / weights.sum())], rng, order)
    return garble(text, rng) if noisy else text


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
