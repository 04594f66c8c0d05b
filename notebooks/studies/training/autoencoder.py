"""The autoencoder: 3 x 64 x 64 images to 4 x 16 x 16 latents and back."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from datekit.shapes.renderer import SIZE, render
from datekit.shapes.world import place, sample_kinds, sample_scenes
from studies.training.loop import Draw, Log, fit

BATCH = 16
SCALED = 512  # scenes whose latents give the scaling factor
KL_WEIGHT = (
    2e-4  # per latent entry: enough that a slightly wrong latent decodes to a slightly wrong image
)


def build() -> AutoencoderKL:
    """An untrained autoencoder."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=SIZE,
        force_upcast=False,
    )


def train(path: Path, *, steps: int, seed: int, device: str) -> tuple[AutoencoderKL, Log]:
    """Trains on fresh training scenes.

    `scaling_factor` is then set to one over the deviation of the latents.
    """
    torch.manual_seed(seed)
    model = build().to(device)

    def loss(draw: Draw) -> tuple[torch.Tensor, dict]:
        scenes = [place(sample_kinds(draw.numpy), draw.numpy) for _ in range(BATCH)]
        images = render(scenes).to(device) * 2 - 1
        posterior = model.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=draw.torch).to(device)
        error = model.decode(posterior.mean + posterior.std * noise).sample - images
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return error.abs().mean() + F.mse_loss(error, torch.zeros_like(error)) + KL_WEIGHT * kl, {
            "l1": error.abs().mean().item()
        }

    log = fit(
        model, loss, steps=steps, peak=2e-3, path=path, seed=seed, probe_every=max(100, steps // 8)
    )
    model.eval().requires_grad_(False)
    latents = encode(model, render(sample_scenes(SCALED, seed)))
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    return model, log


@torch.no_grad()
def encode(model: AutoencoderKL, images: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """Unscaled latents (B, 4, 16, 16) of images in [0, 1], the mode of the posterior."""
    return torch.cat(
        [
            model.encode(part.to(model.device) * 2 - 1).latent_dist.mode().cpu()
            for part in images.split(batch)
        ]
    )


@torch.no_grad()
def decode(model: AutoencoderKL, latents: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """Images in [0, 1] of unscaled latents (B, 4, 16, 16)."""
    return (
        torch.cat(
            [model.decode(part.to(model.device)).sample.cpu() for part in latents.split(batch)]
        )
        / 2
        + 0.5
    )


def decibels(error: torch.Tensor) -> float:
    """The peak signal-to-noise ratio of an error of pictures in [0, 1], rounded."""
    return round(-10 * torch.log10(error.square().mean()).item(), 1)
