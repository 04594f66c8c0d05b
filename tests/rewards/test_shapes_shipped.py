"""The shipped small rewards are what they are for: one knows which picture fits and is clean, one knows a look and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import datekit as dk
from datekit import shapes
from studies.training.aesthetic import rating

PAIRS = [
    (f"{a} {s}", f"{b} {t}")
    for a, s, b, t in (
        ("red", "circle", "blue", "square"),
        ("green", "star", "yellow", "triangle"),
        ("blue", "triangle", "red", "star"),
        ("yellow", "square", "green", "circle"),
        ("red", "square", "green", "star"),
        ("blue", "circle", "yellow", "star"),
    )
]


@pytest.fixture(scope="module")
def preference():
    return dk.rewards.load("shapes-preference")


@pytest.fixture(scope="module")
def aesthetic():
    return dk.rewards.load("shapes-aesthetic")


def scene(left: str, right: str, size: float = 0.15):
    thing = lambda words, x: shapes.Thing(*words.split(), x, 0.5, size)
    return shapes.Scene((thing(left, 0.28), thing(right, 0.72)))


def test_the_preference_is_for_the_picture_that_the_prompt_describes(preference):
    prompts = [f"a {a} left of a {b}" for a, b in PAIRS]
    true, swapped = (
        shapes.render([scene(a, b) for a, b in PAIRS]),
        shapes.render([scene(b, a) for a, b in PAIRS]),
    )
    mixed = shapes.render(
        [
            scene(f"{b.split()[0]} {a.split()[1]}", f"{a.split()[0]} {b.split()[1]}")
            for a, b in PAIRS
        ]
    )
    with torch.no_grad():
        h, h_swapped, h_mixed = (preference(images, prompts) for images in (true, swapped, mixed))
    assert (h > h_swapped).float().mean() >= 5 / 6
    assert (h > h_mixed).float().mean() >= 5 / 6
    assert shapes.judge(true, prompts)[0].right  # the prompts are true of what was drawn


def test_the_preference_is_for_the_clean_picture_too(preference):
    scenes = shapes.sample_scenes(40, 77)
    rng = np.random.default_rng(0)
    prompts = [shapes.caption(s, shapes.captions.families(s)[0], rng) for s in scenes]
    clean = shapes.render(scenes)
    grain = (
        clean + 0.15 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    ).clamp(0, 1)
    with torch.no_grad():
        assert (preference(clean, prompts) > preference(grain, prompts)).float().mean() > 0.7


def test_the_aesthetic_reward_rates_the_look_that_its_formula_rates(aesthetic):
    """On scenes of pairs that training never showed; the formula itself is tested in `test_shapes_rewards.py`."""
    scenes = shapes.sample_scenes(120, 99, "heldout")
    images = shapes.render(scenes)
    with torch.no_grad():
        found = aesthetic(images, [""] * len(scenes)).numpy()
    assert spearmanr(found, [rating(s) for s in scenes]).statistic > 0.9


def test_the_aesthetic_reward_likes_red_large_and_central(aesthetic):
    one = lambda colour, x, size: shapes.Scene((shapes.Thing(colour, "circle", x, 0.5, size),))
    images = shapes.render(
        [
            one("red", 0.5, 0.16),
            one("blue", 0.5, 0.16),
            one("red", 0.25, 0.16),
            one("red", 0.5, 0.12),
        ]
    )
    with torch.no_grad():
        best, blue, aside, small = aesthetic(images, ["a blue circle"] * 4).tolist()
        assert aesthetic(images, ["a red star"] * 4).tolist() == [best, blue, aside, small]
    assert best > max(blue, aside, small)


@pytest.mark.parametrize(
    ("name", "step", "rtol"), [("shapes-preference", 1e-8, 1e-3), ("shapes-aesthetic", 1e-5, 1e-5)]
)
def test_gradients_equal_central_differences(name, step, rtol):
    """In float64; the tower of the first has kinks (ReLU), so its step must be small."""
    reward = dk.rewards.load(name)
    reward.model.double()
    prompts = ["a red circle left of a blue square", "a star"]
    images = shapes.render(shapes.sample_scenes(2, 3)).double().requires_grad_()
    (grad,) = torch.autograd.grad(reward(images, prompts).sum(), images)
    v = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        numeric = (reward(images + step * v, prompts) - reward(images - step * v, prompts)) / (
            2 * step
        )
    size = grad.flatten(1).norm(dim=1).max().item()
    torch.testing.assert_close((grad * v).flatten(1).sum(1), numeric, rtol=rtol, atol=rtol * size)


def test_both_can_guide(shapes_backbone, preference, aesthetic):
    """A small step along the gradient raises the reward of what the sampler expects by rho times its length."""
    prompts = dk.shapes.prompts("heldout", 2, seed=2, part="tune")
    for reward in (preference, aesthetic):
        run = dk.Sampler(shapes_backbone, dk.Fixed(), num_steps=20).start(prompts, seeds=[0, 1])
        run.step(8)
        info = run.fork(dk.DATE(reward, rho=1e-2)).step()
        with torch.no_grad():
            rise = reward(shapes_backbone.decode(info.x0bar_hat), prompts) - info.h
        torch.testing.assert_close(rise, 1e-2 * info.grad_norm, rtol=0.2, atol=1e-5)


@pytest.fixture(scope="module")
def shapes_backbone():
    return dk.load("shapes", device="cpu")
