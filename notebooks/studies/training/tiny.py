"""A small autoencoder on the same latents, a cheaper decoder for the reward (`decoders.Tiny`).

It learns the pictures of the large decoder and, as it is there to carry a gradient, its pull-back
of random changes of a picture. The latents are those of scenes, pure, mixed and noisy, because a
reward during sampling sees x0bar, a mixture of what may come.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from datekit.shapes.renderer import SIZE, render
from datekit.shapes.world import place, sample_kinds, sample_scenes
from studies.training import autoencoder
from studies.training.export import halve
from studies.training.loop import Draw, Log, fit, write_atomically

BATCH = 16
PEAK = 2e-3
PULL = 0.1  # weight of the error of the pull-back, a share of its square norm
NOISE = 0.3  # deviation of the noisiest latents; the latents' own is 1


def build() -> AutoencoderTiny:
    """An untrained one."""
    return AutoencoderTiny(
        encoder_block_out_channels=(16,) * 3,
        num_encoder_blocks=(1, 2, 2),
        decoder_block_out_channels=(16,) * 3,
        num_decoder_blocks=(6, 3, 0),
        act_fn="silu",
    )


def train(path: Path, *, vae, steps: int, seed: int, device: str) -> tuple[AutoencoderTiny, Log]:
    """Trains on fresh training scenes; latents are scaled, as the denoisers see them."""
    torch.manual_seed(seed)
    model, scale = build().to(device), vae.config.scaling_factor

    def loss(draw: Draw) -> tuple[torch.Tensor, dict]:
        images = render([place(sample_kinds(draw.numpy), draw.numpy) for _ in range(BATCH)])
        clean = (autoencoder.encode(vae, images) * scale).to(device)
        latents = spoilt(clean, draw).requires_grad_()
        view = vae.decode(latents / scale).sample
        push = changes(view.shape, draw).to(device)
        (pull,) = torch.autograd.grad(view, latents, push)
        found = model.decoder(latents)
        (again,) = torch.autograd.grad(found, latents, push, create_graph=True)
        error = found - view.detach()
        off = ((again - pull).square().flatten(1).sum(1) / pull.square().flatten(1).sum(1)).mean()
        coded = F.mse_loss(model.encoder(images.to(device) * 2 - 1), clean)
        value = error.abs().mean() + error.square().mean() + PULL * (off + coded)
        return value, {
            "l1": error.abs().mean().item(),
            "pull-back off": off.item(),
            "encoder": coded.item(),
        }

    log = fit(
        model, loss, steps=steps, peak=PEAK, path=path, seed=seed, probe_every=max(100, steps // 8)
    )
    return model.eval().requires_grad_(False), log


def spoilt(latents: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Latents (B, 4, 16, 16), half of them mixed with others, and noisy to various degrees."""
    n, g = len(latents), draw.torch

    def spread() -> torch.Tensor:
        return torch.rand(n, 1, 1, 1, generator=g).to(latents)

    others = torch.from_numpy(draw.numpy.dirichlet(np.full(n, 0.3), size=n)).to(latents)
    mixed = torch.lerp(
        latents, torch.einsum("ab,bchw->achw", others, latents), spread() * (spread() < 0.5)
    )
    return mixed + NOISE * spread() * torch.randn(latents.shape, generator=g).to(latents)


def changes(shape: tuple[int, ...], draw: Draw) -> torch.Tensor:
    """Random changes of pictures, from coarse to fine, of norm 1 each."""
    grains = []
    for side in (4, 8, 16, 32, SIZE):
        noise = torch.randn(shape[0], 3, side, side, generator=draw.torch)
        grains.append(F.interpolate(noise, shape[-2:], mode="bilinear"))
    picked = torch.stack(grains)[draw.numpy.integers(len(grains), size=shape[0]), range(shape[0])]
    return picked / picked.flatten(1).norm(dim=1)[:, None, None, None]


@torch.no_grad()
def accuracy(model: AutoencoderTiny, vae, n: int, seed: int) -> dict[str, float]:
    """How near its pictures are to the large decoder's, in decibels.

    On scenes of held-out pairs.
    """
    latents = autoencoder.encode(vae, render(sample_scenes(n, seed + 1000, "heldout")))
    error = (
        model.decoder(latents * vae.config.scaling_factor) / 2
        + 0.5
        - autoencoder.decode(vae, latents)
    )
    return {"images": n, "psnr": autoencoder.decibels(error)}


def load(folder: Path) -> AutoencoderTiny:
    """The model of a folder, in float32."""
    return AutoencoderTiny.from_pretrained(folder).eval().requires_grad_(False)


def save(model: AutoencoderTiny, folder: Path) -> None:
    """A folder that `AutoencoderTiny.from_pretrained` loads, in half precision."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for name in (
        "block_out_channels",
        "_name_or_path",
    ):  # diffusers warns of the first; the second says where this was loaded from
        config.pop(name, None)
    write_atomically(
        folder / "config.json",
        lambda partial: partial.write_text(json.dumps(config, indent=2) + "\n"),
    )
    halve(folder / "diffusion_pytorch_model.safetensors")
