"""What holds for every reward: gradients, odd inputs that work, bad inputs that are refused."""

from __future__ import annotations

import copy

import pytest
import torch

import datekit as dk
from datekit.rewards.base import WeightedSum

NAMES = ["open_clip", "transformers", "pick", "hps", "aesthetic", "image-reward"]
NAMES += ["hpsv3", "vqa", "vqa-llava", "look", *dk.rewards.SHIPPED, "sum", "min", "sum-of-parts"]
# Towers with rectifiers: a step must not cross their kinks.
KINKED = {"shapes-preference", "shapes-clip", "shapes-clip-plain", "shapes-clip-heldout"}
ROUNDED = {"hpsv3", "vqa", "vqa-llava"}  # language models: their norms are in float32 always
PROMPTS = ["a red circle and a blue square", "a green star", ""]
# Of a size that most of them must resize.
IMAGES = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def in_float64(reward):
    """A copy whose networks compute in float64."""
    reward = copy.deepcopy(reward)
    parts = [part for _, part in reward.parts] if isinstance(reward, WeightedSum) else [reward]
    for part in parts:
        inner = getattr(part, "reward", part)
        if hasattr(inner, "network"):
            inner.network.double()
    return reward


@pytest.mark.parametrize("name", NAMES)
def test_gradient_equals_central_differences(make, name):
    reward = in_float64(make(name))
    images = IMAGES.double().requires_grad_()
    h = reward(images, PROMPTS)
    assert h.dtype == torch.float64
    (grad,) = torch.autograd.grad(h.sum(), images)
    assert (grad.flatten(1).norm(dim=1) > 1e-6).all()
    step, rtol = (1e-8, 1e-3) if name in KINKED else (1e-5, 1e-6)
    step, rtol = (1e-4, 1e-2) if name in ROUNDED else (step, rtol)
    largest = grad.flatten(1).norm(dim=1).max().item()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        v = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            rise = reward(images + step * v, PROMPTS) - reward(images - step * v, PROMPTS)
        exact = (grad * v).flatten(1).sum(1)
        torch.testing.assert_close(exact, rise / (2 * step), rtol=rtol, atol=rtol * largest)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_samples_and_nothing_of_the_network_moves(make, name):
    reward = make(name)
    together = reward(IMAGES, PROMPTS)
    assert together.shape == (3,)
    assert together.dtype == torch.float32 or name == "target"
    alone = torch.cat([reward(IMAGES[n : n + 1], [prompt]) for n, prompt in enumerate(PROMPTS)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    if hasattr(reward, "network"):
        assert not any(weight.requires_grad for weight in reward.network.parameters())
        assert not reward.network.training


@pytest.mark.parametrize("name", NAMES)
def test_odd_but_fair_inputs(make, name):
    reward = make(name)
    constant = torch.full((1, 3, 48, 48), 0.5, requires_grad=True)
    (grad,) = torch.autograd.grad(reward(constant, ["a star"]).sum(), constant)
    assert grad.isfinite().all()
    long = ["a red circle left of a blue square and " * 60 + "a star"]
    assert reward(IMAGES[:1], long).isfinite().all()
    overshoot = 6 * IMAGES - 2  # as x0bar early in sampling
    for images in (overshoot, IMAGES.half(), IMAGES.bfloat16(), IMAGES[..., :40, :]):
        assert reward(images, PROMPTS).isfinite().all()


def with_samples(rows, value):
    return IMAGES.index_fill(0, torch.tensor(rows), value)


@pytest.mark.parametrize(
    ("images", "prompts", "error", "says"),
    [
        (IMAGES, PROMPTS[:2], dk.RewardError, "3 images need as many prompts, got 2"),
        (IMAGES, "abc", dk.RewardError, "a list of strings"),
        (IMAGES, [1, 2, 3], dk.RewardError, "a list of strings"),
        (IMAGES * 255, PROMPTS, dk.RewardError, "they reach 25.*divide them by 255"),
        (IMAGES * 255 - 1, PROMPTS, dk.RewardError, "they reach 25"),  # resized bytes
        (IMAGES.byte(), PROMPTS, dk.RewardError, r"floats in \[0, 1\], got torch\.uint8"),
        (IMAGES[0], PROMPTS, dk.RewardError, r"shape \(B, 3, H, W\), got \(3, 48, 48\)"),
        (IMAGES[:0], [], dk.RewardError, r"got \(0, 3, 48, 48\)"),
        (IMAGES.numpy(), PROMPTS, dk.RewardError, "got ndarray"),
        (with_samples([1], torch.nan), PROMPTS, dk.NonFiniteError, "infinity for sample 1$"),
        (with_samples([0, 2], torch.inf), PROMPTS, dk.NonFiniteError, "for sample 0, 2$"),
    ],
)
@pytest.mark.parametrize("name", ["open_clip", "sum", "min"])
def test_bad_input(make, name, images, prompts, error, says):
    with pytest.raises(error, match=says):
        make(name)(images, prompts)
