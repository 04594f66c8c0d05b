"""The denoiser, trained on v prediction with a frozen text encoder.

Its fine-tuning on noisy captions leaves room for methods.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from datekit.shapes.captions import prompts
from datekit.shapes.oracle import judge
from studies.training import tokenizer
from studies.training.latents import Latents
from studies.training.loop import Draw, Log, fit

WIDTH = 96  # of the text embedding
BATCH = 32
SCENES = 24_000
EARLY, EARLY_SHARE = 700, 0.5  # half of the timesteps are from 700 on, where the layout is decided


class Denoiser(torch.nn.Module):
    """UNet and text encoder."""

    def __init__(self, text: CLIPTextModel):
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
        self.text = text

    def forward(self, xt: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Predicted v (B, 4, 16, 16)."""
        return self.unet(xt, t, self.text(ids).last_hidden_state).sample


def build(clip: torch.nn.Module) -> Denoiser:
    """An untrained U-Net with the text tower of a trained CLIP."""
    return Denoiser(text_encoder_of(clip))


def text_encoder_of(clip: torch.nn.Module) -> CLIPTextModel:
    """The text tower of an open_clip model as a transformers one, as Stable Diffusion has it."""
    text = CLIPTextModel(_text_config(2))
    text.load_state_dict(_text_weights(clip), strict=True)
    return text


def projected_encoder_of(
    clip: torch.nn.Module, spare_layers: int = 0
) -> CLIPTextModelWithProjection:
    """The same with its projection, as Stable Diffusion XL and 3 have it.

    spare_layers: how many layers stand at the end that add nothing.
    """
    text = CLIPTextModelWithProjection(_text_config(2 + spare_layers))
    prefix = (
        "text_model." if any(name.startswith("text_model.") for name in text.state_dict()) else ""
    )
    weights = {prefix + name: value for name, value in _text_weights(clip).items()}
    projection = clip.state_dict()["text_projection"]
    result = text.load_state_dict(
        weights | {"text_projection.weight": projection.T.contiguous()}, strict=False
    )
    if result.unexpected_keys or not all("layers.2." in name for name in result.missing_keys):
        raise ValueError(f"the text tower does not fit: {result}")
    for layer in text.text_model.encoder.layers[2:]:
        for last in (layer.self_attn.out_proj, layer.mlp.fc2):
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
    return text


def _text_config(layers: int) -> CLIPTextConfig:
    tokens = tokenizer_of_model()
    return CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.WINDOW,
        hidden_act="gelu",
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        projection_dim=WIDTH,
    )


def _text_weights(clip: torch.nn.Module) -> dict[str, torch.Tensor]:
    """open_clip's weights of a text tower of two layers under transformers' names."""
    theirs, ours = clip.state_dict(), {}
    ours["embeddings.token_embedding.weight"] = theirs["token_embedding.weight"]
    ours["embeddings.position_embedding.weight"] = theirs["positional_embedding"]
    names = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    names |= {"attn.out_proj": "self_attn.out_proj"}
    for kind in ("weight", "bias"):
        ours[f"final_layer_norm.{kind}"] = theirs[f"ln_final.{kind}"]
        for i in range(2):
            here, there = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
            ours |= {
                f"{here}.{new}.{kind}": theirs[f"{there}.{old}.{kind}"]
                for old, new in names.items()
            }
            parts = theirs[f"{there}.attn.in_proj_{kind}"].chunk(3)
            ours |= {
                f"{here}.self_attn.{name}_proj.{kind}": part
                for name, part in zip("qkv", parts, strict=True)
            }
    return ours


tokenizer_of_model = cache(tokenizer.build)


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule with v prediction.

    At this size epsilon prediction does not learn in an hour.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def pipeline(model: Denoiser, vae: AutoencoderKL) -> StableDiffusionPipeline:
    """The pipeline that ships."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text,
        tokenizer=tokenizer_of_model(),
        unet=model.unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def train(
    path: Path,
    vae: AutoencoderKL,
    start: Denoiser,
    *,
    steps: int,
    seed: int,
    device: str,
    peak: float,
    garbling: Mapping[str, float] | None = None,
    scenes: int = SCENES,
    probes: int = 100,
) -> tuple[Denoiser, Log]:
    """Trains the U-Net of `start` on captioned latents and returns the moving average.

    The text encoder stays as it is: trained along, it forgets which way a relation points before
    the U-Net has learnt to use it. With `noisy` the captions are garbled as web captions are, so
    that the model draws well and is not always right.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(start).requires_grad_(True).train().to(device)
    model.text.requires_grad_(False)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    alphas = scheduler().alphas_cumprod

    data = Latents(vae, scenes, seed)

    def loss(draw: Draw) -> tuple[torch.Tensor, dict]:
        x0, captions = data.draw(BATCH, draw, garbling=garbling)
        ids, noise = tokens(captions), torch.randn(x0.shape, generator=draw.torch)
        t = torch.randint(len(alphas), (BATCH,), generator=draw.torch)
        early = torch.randint(EARLY, len(alphas), (BATCH,), generator=draw.torch)
        t = torch.where(torch.rand(BATCH, generator=draw.torch) < EARLY_SHARE, early, t)
        a, b = alphas[t, None, None, None].sqrt(), (1 - alphas[t, None, None, None]).sqrt()
        xt, v = a * x0 + b * noise, a * noise - b * x0
        return F.mse_loss(model(xt.to(device), t.to(device), ids.to(device)), v.to(device)), {}

    def probe() -> dict:
        return {
            "oracle": right(
                pipeline(ema, vae), prompts(n=probes, part="tune"), guidance_scale=3.0, num_steps=20
            )
        }

    log = fit(model, loss, steps=steps, peak=peak, path=path, seed=seed, ema=ema, probe=probe)
    return ema, log


def tokens(texts: list[str]) -> torch.Tensor:
    """Tokens (B, 16)."""
    return tokenizer_of_model()(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def draw_images(
    pipe, texts: list[str], *, guidance_scale: float, num_steps: int, seed: int = 0, **options
) -> torch.Tensor:
    """Images (B, 3, 64, 64) of prompts, the i-th from noise of seed + i."""
    noise = [
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed + i))
        for i in range(len(texts))
    ]
    images = []
    for i in range(0, len(texts), 50):
        out = pipe(
            texts[i : i + 50],
            num_inference_steps=num_steps,
            guidance_scale=guidance_scale,
            latents=torch.cat(noise[i : i + 50]).to(pipe.device),
            output_type="pt",
            **options,
        )
        images.append(out.images.cpu())
    return torch.cat(images)


def right(pipe, texts: list[str], **options) -> float:
    """Share of prompts whose image the oracle finds right; options as for `draw_images`."""
    return sum(
        verdict.right for verdict in judge(draw_images(pipe, texts, **options), texts)
    ) / len(texts)
