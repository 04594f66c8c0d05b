"""What is told of a reward before it guides: against rewards whose answers are formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import datekit as dk
from datekit import analysis
from datekit.tensors import norm

PROMPTS = ["a red circle", "a blue square", "a green star"]
SEEDS, STEPS, NUM_STEPS = [4, 5, 6], (0, 7, 19), 20


class Linear:
    """h = a_prompt . x, with x the latent itself in place of a picture."""

    name = "linear"

    def __init__(self, prompts=PROMPTS):
        g = torch.Generator().manual_seed(0)
        draw = torch.randn(len(prompts), 3, 8, 8, generator=g, dtype=torch.float64)
        self.directions = dict(zip(prompts, draw, strict=True))

    def decoder(self, backbone):
        return lambda latents: latents

    def __call__(self, images, prompts):
        rows = torch.stack([self.directions[prompt] for prompt in prompts])
        return (rows * images).flatten(1).sum(1)


class Quadratic(Linear):
    """h = -||x||^2 / 2, whatever the prompt."""

    def __call__(self, images, prompts):
        return -images.square().flatten(1).sum(1) / 2


def report(reward, backbone, **settings):
    settings = {"seeds": SEEDS, "steps": STEPS, "num_steps": NUM_STEPS} | settings
    return analysis.reward_report(reward, backbone, PROMPTS, **settings)


def x0bars(backbone, steps=STEPS):
    """What a plain run predicts before these steps, (T, B, 3, 8, 8)."""
    run = dk.Sampler(backbone, num_steps=NUM_STEPS).start(PROMPTS, seeds=SEEDS).finish()
    return torch.stack([run.history[i].x0bar for i in steps])


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_the_gradient_of_a_square_turns_by_a_known_angle(strength):
    """g = -x turns into -(x + n) with ||n|| = s ||x||: cos = (1 + s u) / sqrt(1 + 2 s u + s^2).

    u, the cosine of n and x, is that of a uniform direction in 192 dimensions.
    """
    found = report(Quadratic(), dk.load("gaussian"), strength=strength, draws=20, steps=[7])
    z = np.random.default_rng(1).normal(size=(20_000, 192))
    u = z[:, 0] / np.linalg.norm(z, axis=1)
    cosines = (1 + strength * u) / np.sqrt(1 + 2 * strength * u + strength**2)
    spread = cosines.std() / math.sqrt(20)
    assert (found.grad_x0bar.values - cosines.mean()).abs().max() <= 4 * spread
    assert abs(cosines.mean() - 1 / math.sqrt(1 + strength**2)) < 0.003


def test_the_gradient_in_c_against_the_formula_of_the_model():
    """grad_c of -||x0bar||^2 / 2 by the closed-form posterior mean, over noise of our own."""
    backbone, strength = dk.load("gaussian-mixture"), 0.8
    found = report(Quadratic(), backbone, strength=strength, draws=20, steps=[3])
    run = dk.Sampler(backbone, num_steps=NUM_STEPS).start(PROMPTS, seeds=SEEDS)
    run.step(3)
    state, (alpha, sigma) = run.state, backbone.level(run.state.t)

    def gradient(xt):
        c = state.c.clone().requires_grad_()
        x0bar = backbone.x0bar(xt, state.t, state.cond.replace(sequence=c))
        (grad,) = torch.autograd.grad(-x0bar.square().sum() / 2, c)
        return grad.flatten(1)

    x0bar = backbone.x0bar(state.xt, state.t, state.cond)
    eps, here = (state.xt - alpha * x0bar) / sigma, gradient(state.xt)
    g, rows = torch.Generator().manual_seed(2), []
    for _ in range(200):
        z = torch.randn(eps.shape, generator=g, dtype=torch.float64)
        mixed = math.sqrt(1 - strength**2) * eps + strength * z
        there = gradient(alpha * x0bar + sigma * mixed)
        rows.append(torch.cosine_similarity(here, there))
    cosines = torch.stack(rows)
    wrong = (found.grad_c.values[0] - cosines.mean(0)).abs()
    assert (wrong <= 4 * cosines.std(0) / math.sqrt(20)).all()
    assert (cosines.mean(0) < 0.99).any()


def test_an_attack_on_a_linear_reward_succeeds_from_a_known_length_on():
    """A margin (a_own - a_other) . x falls by the length of the step times ||a_own - a_other||."""
    backbone, reward = dk.load("gaussian"), Linear()
    shift = x0bars(backbone)  # each prompt's direction gets its own sample's, so that it is right
    for b, prompt in enumerate(PROMPTS):
        reward.directions[prompt] = reward.directions[prompt] + 0.6 * shift[:, b].mean(0)
    rows = torch.stack([reward.directions[prompt] for prompt in PROMPTS])
    scores = torch.einsum("pchw,tbchw->tbp", rows, shift)
    own = scores.diagonal(dim1=1, dim2=2)
    best, other = scores.masked_fill(torch.eye(3, dtype=torch.bool), -torch.inf).max(2)
    margin, apart = own - best, norm((rows[None] - rows[other]).flatten(0, 1)).view(3, 3)
    critical = margin / apart / math.sqrt(192)
    assert 3 <= (margin > 0).sum() < 9
    lengths = critical[critical > 0].sort().values
    for attack in (0.0, 0.999 * lengths[1].item(), 1.001 * lengths[1].item()):
        found = report(reward, backbone, attack=attack, draws=1)
        torch.testing.assert_close(found.right.values, (margin > 0).double())
        wanted = (margin > 0) & (critical > attack)
        torch.testing.assert_close(found.attacked.values, wanted.double())


def test_a_report_on_a_real_pipeline(backbone, brightness, prompts):
    """Micro-batches change nothing, nor does a report the random numbers or the weights."""
    given = {"seeds": [0, 1, 2], "steps": [0, 2], "num_steps": 4, "guidance_scale": 3.0}
    before = torch.get_rng_state()
    found = analysis.reward_report(brightness, backbone, prompts, **given)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in backbone.pipe.unet.parameters())
    run = dk.Sampler(backbone, num_steps=4, guidance_scale=3.0).start(prompts, seeds=[0, 1, 2])
    images = run.sampler.decode(run.step().x0bar)
    scores = torch.stack([brightness(images, [prompt] * 3) for prompt in prompts], 1)
    assert found.right.values[0].tolist() == (scores.argmax(1) == torch.arange(3)).tolist()
    small = analysis.reward_report(brightness, backbone, prompts, micro_batch=2, **given)
    for name in ("grad_x0bar", "grad_c", "right", "attacked"):
        one, other = getattr(found, name).values, getattr(small, name).values
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)
    frame = found.to_frame()
    assert len(frame) == 4 * 2
    assert frame["mean"].between(-1, 1).all()
    assert "brightness" in repr(found)


def test_a_reward_that_never_reads_the_prompt_is_never_right():
    found = report(Quadratic(), dk.load("gaussian"))
    assert not found.right.values.any()
    assert not found.attacked.values.any()
    everywhere = analysis.reward_report(Quadratic(), dk.load("gaussian"), PROMPTS, num_steps=13)
    assert everywhere.right.steps == (0, 3, 6, 9, 12)
    assert everywhere.seeds == (0, 1, 2)


def test_bad_input():
    backbone, linear = dk.load("gaussian"), Linear()
    with pytest.raises(ValueError, match="give two at least"):
        analysis.reward_report(linear, backbone, PROMPTS[:1] * 2)
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        report(linear, backbone, strength=0)
    with pytest.raises(ValueError, match="attack must be a finite number"):
        report(linear, backbone, attack=-1)
    with pytest.raises(ValueError, match="from 0 to 20, got 21"):
        report(linear, backbone, steps=[21])
