"""Rewards that do not ship, to guide beside those that do: what makes the robust CLIP guide well?

Some are trained as it is, with one of its two halves left out or another setting; one asks it which
of several captions is the true one; the ideal knows the right pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import datekit as dk
from datekit.evaluation.metrics import real_pictures, true_scenes
from datekit.rewards import CLIPScore, Reward
from studies.results import FOLDER, fingerprint
from studies.training import clip, recipe, robust
from studies.training.negatives import hard_negatives

RIGHT = 64  # pictures of a prompt, among which the ideal wants the nearest
NEAR = 7  # captions an edit away, that `Contrast` compares a prompt with
HALVES = {  # how `robust.train` trains them
    "x0bars only": {"share": 1.0, "most": 0.0},
    "attacks only": {"share": 0.0},
}
SETTINGS = {  # the same, each for half of the recipe's steps
    "half the steps": {},
    "attack 0.0125": {"most": 0.0125},
    "attack 0.05": {"most": 0.05},
    "a quarter x0bars": {"share": 0.25},
    "three quarters x0bars": {"share": 0.75},
}
TRAINED = HALVES | SETTINGS


class Ideal(Reward):
    """h = -d^2, (B,), where d^2 is the mean squared distance to the nearest right picture.

    Right are `RIGHT` pictures of the prompt, drawn as the world draws its scenes.
    """

    kind = "reward"  # said here, so that it is none of the rewards that can be asked for by name
    name = "ideal"

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Carries gradient towards the nearest picture."""
        rows = []
        for image, prompt in zip(images, prompts, strict=True):
            rows.append(((image - _right(prompt).to(image)) ** 2).mean((1, 2, 3)).min())
        return -torch.stack(rows)


class Contrast(Reward):
    """h = log p, (B,): p is a prompt's share among itself and `NEAR` captions, by the robust CLIP.

    These are an edit away from the prompt; the shares are a softmax at the scale of the CLIP's own
    training.
    """

    kind = "reward"
    name = "contrast"

    def __init__(self) -> None:
        self.clip = dk.rewards.load("shapes-clip")

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Carries gradient away from the false captions too."""
        texts = [self.clip.text_features([prompt, *_near(prompt)]) for prompt in prompts]
        features = self.clip.image_features(images)
        logits = self.clip.network.logit_scale.exp() * (torch.stack(texts) @ features[..., None])
        return logits[..., 0].log_softmax(1)[:, 0]


@functools.lru_cache(maxsize=64)
def _right(prompt: str) -> Tensor:
    return torch.cat(list(real_pictures([prompt], least=RIGHT)))


@functools.cache
def _near(prompt: str) -> list[str]:
    """Captions an edit away, false of a scene that the prompt is true of."""
    rng = np.random.default_rng([ord(letter) for letter in prompt])
    (scene,) = true_scenes([prompt], rng)
    return hard_negatives(prompt, scene.things, NEAR, rng)


@functools.cache
def trained(name: str) -> CLIPScore:
    """A CLIP of `TRAINED`, made at the first call; later processes find it beside the results."""
    weights = "-".join(fingerprint(model) for model in ("shapes", "shapes-flow"))
    folder = FOLDER / f"{name.replace(' ', '-')}-{weights}.progress"
    if not (folder / "open_clip_config.json").is_file():
        train(name, folder, recipe.STEPS["robust"] // (2 if name in SETTINGS else 1))
    return CLIPScore(folder)


def train(name: str, folder: Path, steps: int, pool: int = robust.X0BARS) -> None:
    """Train a CLIP as the recipe trains the robust one but for its own settings; write its folder.

    pool: x0bars that are made, of each shipped model.
    """
    model, _ = robust.train(
        folder / "training.pt",
        dk.rewards.load("shapes-clip-plain").network,
        [dk.load("shapes"), dk.load("shapes-flow")],
        steps=steps,
        seed=recipe.SEEDS["robust"],
        device="cpu",
        pool=pool,
        **TRAINED[name],
    )
    clip.save(model, "clip", folder)
