"""The shipped small rewards are what they are for: one knows what fits and is clean, one a look."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from studies.training.aesthetic import rating

import datekit as dk
from datekit import shapes

PAIRS = [
    ("red circle", "blue square"),
    ("green star", "yellow triangle"),
    ("blue triangle", "red star"),
    ("yellow square", "green circle"),
    ("red square", "green star"),
    ("blue circle", "yellow star"),
]


@pytest.fixture(scope="module")
def preference():
    return dk.rewards.load("shapes-preference")


@pytest.fixture(scope="module")
def aesthetic():
    return dk.rewards.load("shapes-aesthetic")


def thing(words, x, size=0.15):
    return shapes.Thing(*words.split(), x, 0.5, size)


def drawn(pairs):
    scenes = [shapes.Scene((thing(left, 0.28), thing(right, 0.72))) for left, right in pairs]
    return shapes.render(scenes)


@torch.no_grad()
def test_the_preference_is_for_the_picture_that_the_prompt_describes(preference):
    prompts = [f"a {left} left of a {right}" for left, right in PAIRS]
    mixed = []
    for left, right in PAIRS:
        (colour, shape), (other_colour, other_shape) = left.split(), right.split()
        mixed.append((f"{other_colour} {shape}", f"{colour} {other_shape}"))
    true = preference(drawn(PAIRS), prompts)
    assert all(verdict.right for verdict in shapes.judge(drawn(PAIRS), prompts))
    for pairs in ([pair[::-1] for pair in PAIRS], mixed):
        assert (true > preference(drawn(pairs), prompts)).float().mean() >= 5 / 6


@torch.no_grad()
def test_the_preference_is_for_the_clean_picture_too(preference):
    scenes = shapes.sample_scenes(40, 77)
    rng = np.random.default_rng(0)
    prompts = [shapes.caption(scene, shapes.families(scene)[0], rng) for scene in scenes]
    clean = shapes.render(scenes)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    grain = (clean + 0.15 * noise).clamp(0, 1)
    assert (preference(clean, prompts) > preference(grain, prompts)).float().mean() > 0.7


@torch.no_grad()
def test_the_aesthetic_reward_rates_the_look_that_its_formula_rates(aesthetic):
    """On scenes of pairs that training never showed, and whatever the prompt."""
    scenes = shapes.sample_scenes(120, 99, "heldout")
    rated = aesthetic(shapes.render(scenes), [""] * len(scenes))
    assert spearmanr(rated.numpy(), [rating(scene) for scene in scenes]).statistic > 0.9
    cases = [("red", 0.5, 0.16), ("blue", 0.5, 0.16), ("red", 0.25, 0.16), ("red", 0.5, 0.12)]
    ones = [shapes.Scene((thing(f"{colour} circle", x, size),)) for colour, x, size in cases]
    images = shapes.render(ones)
    best, *others = aesthetic(images, ["a blue circle"] * 4).tolist()
    assert aesthetic(images, ["a red star"] * 4).tolist() == [best, *others]
    assert best > max(others)  # red, central and large


def test_both_can_guide(shapes, preference, aesthetic):
    """A small step along the gradient raises the reward of x0bar by rho times its length."""
    prompts = dk.shapes.prompts("heldout", 2, seed=2, part="tune")
    for reward in (preference, aesthetic):
        run = dk.Sampler(shapes, dk.Fixed(), num_steps=20).start(prompts, seeds=[0, 1])
        run.step(8)
        info = run.fork(dk.DATE(reward, rho=1e-2)).step()
        with torch.no_grad():
            rise = reward(shapes.decode(info.x0bar_hat), prompts) - info.h
        torch.testing.assert_close(rise, 1e-2 * info.grad_norm, rtol=0.2, atol=1e-5)
