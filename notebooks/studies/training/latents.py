"""Captioned latents, from which both denoisers learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from datekit.shapes.captions import caption, families
from datekit.shapes.renderer import render
from datekit.shapes.world import RELATIONS, Scene, relation, sample_scenes
from studies.training import autoencoder
from studies.training.loop import Draw
from studies.training.negatives import garble

DROPPED = 0.1  # share of empty captions, for classifier-free guidance
MIX = {
    "single": 1,
    "colours": 2,
    "two": 2,
    "attribution": 3,
    "position": 9,
    "counting": 2,
    "three": 2,
}  # captions
PAIRS, SINGLES = (
    0.5,
    0.15,
)  # shares of scenes with two things and with one, drawn on purpose; the others come as they are
PLACED = 0.7  # share of single things that are captioned by their place: "a red circle left"


class Latents:
    """n scenes and their latents, scaled as the denoiser sees them.

    Encoded when they are first asked for.
    """

    def __init__(self, vae, n: int, seed: int):
        self.vae, self.n, self.seed = vae, n, seed

    @cached_property
    def scenes(self) -> list[Scene]:
        """The scenes, of seen pairs only."""
        return sample_scenes(self.n, self.seed)

    @cached_property
    def latents(self) -> torch.Tensor:
        """(n, 4, 16, 16)."""
        parts = [self.scenes[i : i + 256] for i in range(0, self.n, 256)]
        return (
            torch.cat([autoencoder.encode(self.vae, render(part)) for part in parts])
            * self.vae.config.scaling_factor
        )

    @cached_property
    def _by_count(self) -> tuple[np.ndarray, ...]:
        fits = [
            (len(s.things) == 1, len(s.things) == 2 and "position" in families(s))
            for s in self.scenes
        ]
        return tuple(np.flatnonzero(column) for column in np.array(fits).T)

    def draw(
        self, n: int, draw: Draw, *, garbling: Mapping[str, float] | None
    ) -> tuple[torch.Tensor, list[str]]:
        """Latents (n, 4, 16, 16) with captions drawn afresh.

        garbling: how far the captions are garbled as web captions are, as `garble` takes it.
        """
        index = draw.numpy.integers(self.n, size=n)
        sort, (one, two) = (
            draw.numpy.random(n),
            (draw.numpy.choice(found, n) for found in self._by_count),
        )
        index = np.where(sort < PAIRS, two, np.where(sort < PAIRS + SINGLES, one, index))
        return self.latents[index], [
            describe(self.scenes[i], draw.numpy, garbling=garbling) for i in index
        ]


def describe(
    scene: Scene, rng: np.random.Generator, *, garbling: Mapping[str, float] | None
) -> str:
    """A caption of any family that fits, or none at all; garbled where asked."""
    options = families(scene)
    weights = np.array([float(MIX[family]) for family in options])
    if rng.random() < DROPPED:
        return ""
    text = caption(scene, options[rng.choice(len(options), p=weights / weights.sum())], rng)
    if garbling is not None:
        text = garble(text, rng, **garbling)
    alone = len(scene.things) == 1 and not any(name in text for name in RELATIONS)
    return f"{text} {_place(scene)}" if alone and rng.random() < PLACED else text


def _place(scene: Scene) -> str:
    """Where the first thing stands, in one word.

    It is an easier lesson than relations, and half of what they need.
    """
    thing = scene.things[0]
    return relation(thing, replace(thing, x=0.5, y=0.5)).removesuffix(" of")
