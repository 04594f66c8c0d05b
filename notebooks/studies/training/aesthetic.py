"""The shapes world's aesthetic score: trained on noisy ratings of a look that no prompt asks for.

Raters like warm colours, things near the centre, and much paint (`rating`). So what it asks for
contradicts most prompts: followed alone, it repaints blue things, gathers everything in the middle
and makes it large.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from datekit.rewards.shapes_scores import LOOK, StyleNetwork
from datekit.shapes.renderer import area, render
from datekit.shapes.world import COLOURS, Scene, place, sample_kinds, sample_scenes
from studies.training import clip
from studies.training.loop import Draw, Log, fit, write_atomically

BATCH = 64
PROBES = 512  # scenes, while training
PEAK = 2e-3
RATERS = 0.5  # deviation of a rating from the look that it rates
PAINTED = 0.1  # share of the picture that is painted in a typical scene


def rating(scene: Scene) -> float:
    """5 + 2 warmth + 2 centring + 2 size, each about from -1 to 1, whatever was asked for.

    With a_k the share of the picture that thing k covers and w_k = a_k / sum a: warmth = sum w_k
    (R_k - B_k) of its colour; centring = 1 - 4 sum w_k |p_k - centre|, in sides of the picture;
    size = sum a / 0.1 - 1.
    """
    areas = np.array([area(thing.shape) * thing.size**2 for thing in scene.things])
    weights = areas / areas.sum()
    warmth = np.array(
        [COLOURS[thing.colour][0] - COLOURS[thing.colour][2] for thing in scene.things]
    )
    away = np.array([np.hypot(thing.x - 0.5, thing.y - 0.5) for thing in scene.things])
    return float(
        5 + 2 * weights @ warmth + 2 * (1 - 4 * weights @ away) + 2 * (areas.sum() / PAINTED - 1)
    )


def train(path: Path, *, steps: int, seed: int, device: str) -> tuple[StyleNetwork, Log]:
    """Trains on fresh scenes, sharp and blurry, with a rating each.

    Returns the network with its log.
    """
    torch.manual_seed(seed)
    network = StyleNetwork().to(device)
    torch.nn.init.constant_(network.layers[-1].bias, 5.0)

    def loss(draw: Draw) -> tuple[torch.Tensor, dict]:
        scenes = [place(sample_kinds(draw.numpy), draw.numpy) for _ in range(BATCH)]
        rated = np.array([rating(scene) for scene in scenes]) + RATERS * draw.numpy.standard_normal(
            BATCH
        )
        views = clip.augment(render(scenes), draw, 1.0).to(device) * 2 - 1
        return F.mse_loss(network(views), torch.from_numpy(rated).float().to(device)), {}

    def probe() -> dict:
        return accuracy(lambda images: network(images.to(device) * 2 - 1), PROBES, seed=1)

    log = fit(
        network,
        loss,
        steps=steps,
        peak=PEAK,
        path=path,
        seed=seed,
        probe=probe,
        probe_every=max(100, steps // 8),
    )
    return network.eval().requires_grad_(False), log


@torch.no_grad()
def accuracy(rate: Callable[[torch.Tensor], torch.Tensor], n: int, seed: int) -> dict[str, float]:
    """Correlation of `rate(images)`, (B,), with the look that was rated.

    It is measured on scenes of held-out pairs, sharp and blurred.
    """
    scenes = sample_scenes(n, seed + 1000, "heldout")
    looks, images = [rating(scene) for scene in scenes], render(scenes)
    views = {
        name: clip.blur(images, torch.full((n,), sigma))
        for name, sigma in (("sharp", 0.0), ("blur 1.5", 1.5), ("blur 3", 3.0))
    }
    return {
        name: float(np.corrcoef(rate(view).cpu().numpy(), looks)[0, 1])
        for name, view in views.items()
    }


def save(network: StyleNetwork, folder: Path) -> None:
    """A folder for `datekit.rewards.StyleScore`, in half precision."""
    from safetensors.torch import save_file

    weights = {name: value.half() for name, value in network.state_dict().items()}
    write_atomically(folder / LOOK, lambda partial: save_file(weights, partial))
