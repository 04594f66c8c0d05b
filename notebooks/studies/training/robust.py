"""The guide made robust, so that its gradient at x0bar says what would make the picture right.

Only its image tower is trained, on x0bars of the shipped models and on attacked pictures: a reward
that small changes cannot fool has gradients that mean something. The text tower stays, as the
diffusion models read it, and so do the scale of the logits and the statistics of normalisation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

import datekit as dk
from datekit.backbones import Backbone
from datekit.shapes.renderer import render
from datekit.shapes.world import Scene, place, sample_kinds, sample_scenes
from studies.training import clip
from studies.training.loop import Draw, Log, fit
from studies.training.negatives import twin

X0BARS = 2400  # of each model
NUM_STEPS, EARLIEST = 20, 14  # x0bars are of the first 14 of 20 steps, where things are decided
GUIDANCE = (0.0, 2.0, 4.0, 6.0)  # 0: without the caption
BATCH = 64
NEGATIVES = 3  # captions, of each image
ATTACK = 0.025  # root mean square of the largest change of a pixel, in [0, 1]
START = 0.3  # where an attack begins, in units of its size
PEAK = 1e-3


class X0bars:
    """Training scenes, and the x0bars of their noised pictures under true captions."""

    def __init__(self, backbones: Sequence[Backbone], n: int, seed: int) -> None:
        self.scenes = sample_scenes(n * len(backbones), seed)
        parts = [
            _x0bars(backbone, self.scenes[k * n : (k + 1) * n], Draw(seed, k))
            for k, backbone in enumerate(backbones)
        ]
        self.images = torch.cat(parts)

    def sample(self, n: int, draw: Draw) -> tuple[list[Scene], torch.Tensor]:
        """n scenes with their x0bars (n, 3, H, W)."""
        index = draw.numpy.choice(len(self.scenes), n, replace=len(self.scenes) < n)
        return [self.scenes[i] for i in index], self.images[index].float() / 255


@torch.no_grad()
def _x0bars(backbone: Backbone, scenes: list[Scene], draw: Draw, batch: int = 16) -> torch.Tensor:
    """x0bars (n, 3, H, W) of scenes, in bytes; each batch has one step and one guidance scale."""
    result = []
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        run = dk.editing.sdedit(
            backbone,
            render(part),
            [clip.caption_of(scene, draw.numpy, 0.5) for scene in part],
            skip=int(draw.numpy.integers(EARLIEST)),
            seeds=[int(seed) for seed in draw.numpy.integers(2**31, size=len(part))],
            num_steps=NUM_STEPS,
            guidance_scale=float(draw.numpy.choice(GUIDANCE)),
        )
        x0bar = run.sampler.predict(run.state).x0bar
        result.append((run.sampler.decode(x0bar).clamp(0, 1) * 255).round().byte())
    return torch.cat(result)


def attack(
    loss: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    draw: Draw,
    most: float = ATTACK,
) -> torch.Tensor:
    """Images (B, 3, H, W) a step up the gradient of the loss, each by a random length.

    The step starts at a random point nearby. most: the largest root mean square over pixels.
    """
    size = torch.rand(len(images), 1, 1, 1, generator=draw.torch) * most
    offset = size * START * _unit(torch.randn(images.shape, generator=draw.torch))
    point = (images + offset).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point)
    return (point + size * _unit(gradient)).detach()


def accuracy(model, n: int, seed: int) -> dict[str, float]:
    """Share of n held-out pictures whose true caption beats seven hard ones, plain and attacked."""
    draw = Draw(seed, n)
    scenes = sample_scenes(n, seed + 2000, "heldout")
    captions, plain = clip.Captions.draw(scenes, draw, 0.5, negatives=7), render(scenes)
    attacked = attack(lambda images: clip.contrast(model, captions, images)[0], plain, draw)
    with torch.no_grad():
        return {
            name: clip.contrast(model, captions, images)[1]["hard"]
            for name, images in (("as drawn", plain), ("attacked", attacked))
        }


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Each sample at a root mean square of 1."""
    return x / x.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)


def train(
    path: Path,
    guide,
    backbones: Sequence[Backbone],
    *,
    steps: int,
    seed: int,
    device: str,
    pool: int = X0BARS,
    most: float = ATTACK,
    share: float = 0.5,
) -> tuple[torch.nn.Module, Log]:
    """The guide with its image tower fine-tuned, and the log.

    backbones: whose x0bars it learns from, `pool` of each; share: of a batch that are x0bars, the
    rest are scenes drawn afresh, with twins and blur. most: of the attack, 0 for none.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(guide).eval().requires_grad_(False).to(device)
    model.visual.requires_grad_(True)
    ema = copy.deepcopy(model.visual).requires_grad_(False)
    x0bars = cache(lambda: X0bars(backbones, pool, seed))  # made when the first step asks

    def loss(draw: Draw) -> tuple[torch.Tensor, dict]:
        count = round(share * BATCH)
        scenes, images = x0bars().sample(count, draw) if count else ([], torch.empty(0, 3, 64, 64))
        fresh = [place(sample_kinds(draw.numpy), draw.numpy) for _ in range((BATCH - count) // 2)]
        fresh += [twin(scene, draw.numpy) for scene in fresh]
        if fresh:
            images = torch.cat([images, clip.augment(render(fresh), draw, 1.0)])
        captions = clip.Captions.draw(scenes + fresh, draw, 0.5, NEGATIVES)
        if most:
            images = attack(lambda x: clip.contrast(model, captions, x)[0], images, draw, most)
        return clip.contrast(model, captions, images)

    def probe() -> dict:
        return clip.accuracy(_with_tower(model, ema), clip.PROBES, seed=1)

    log = fit(
        model.visual,
        loss,
        steps=steps,
        peak=PEAK,
        path=path,
        seed=seed,
        ema=ema,
        probe=probe,
        probe_every=max(100, steps // 8),
    )
    return _with_tower(model, ema).requires_grad_(False), log


def _with_tower(model: torch.nn.Module, tower: torch.nn.Module) -> torch.nn.Module:
    """The model with another image tower, in eval mode."""
    result = copy.deepcopy(model).eval()
    result.visual.load_state_dict(tower.state_dict())
    return result
