"""The closed-form model against oracles that share no formula with it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import distributions

import datekit as dk

PROMPTS = ["a red circle", "a blue square beside a dog", "a red circle"]
TIMES = (981, 601, 201, 1)
assert_close = torch.testing.assert_close


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def noisy(model, t, seed=0):
    """xt as it comes about: a sample of p(x0 | c), noised."""
    cond = model.encode(PROMPTS)
    alpha, sigma = model.level(t)
    x0 = model.sample(cond, range(seed, seed + 3))
    return alpha * x0 + sigma * normal(*x0.shape, seed=seed), cond


@pytest.mark.parametrize("t", TIMES)
def test_the_score_is_the_derivative_of_log_prob(model, t):
    """By autograd; the density by torch.distributions."""
    xt, cond = noisy(model, t)
    alpha, sigma = model.level(t)
    x = xt.clone().requires_grad_()
    value = model.log_prob(x, t, cond)
    (by_x,) = torch.autograd.grad(value.sum(), x)
    assert_close(model.score(xt, t, cond), by_x, rtol=1e-9, atol=1e-10)
    tweedie = (xt + sigma**2 * by_x) / alpha
    assert (tweedie - model.x0bar(xt, t, cond)).abs().max() <= 1e-10
    spread = (alpha**2 * model._v + sigma**2).sqrt().expand(3, -1, -1)
    parts = distributions.Independent(distributions.Normal(alpha * model.means(cond), spread), 1)
    weights = distributions.Categorical(logits=model.log_weights(cond))
    mixture = distributions.MixtureSameFamily(weights, parts)
    assert_close(value.detach(), mixture.log_prob(xt.flatten(1)), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("num_steps", [50, 20])
def test_tweedie_gives_the_posterior_mean(model, num_steps):
    """x0bar from the noise prediction (Eq. 11), against E[x0 | xt, c] from the posterior."""
    run = dk.Sampler(model, num_steps=num_steps).start(PROMPTS, seeds=[0, 1, 2])
    for i in (0, num_steps // 2, num_steps - 1):
        run.step(i - run.state.i) if i else None
        state = run.state
        exact = model.x0bar(state.xt, state.t, state.cond)
        assert (run.sampler.predict(state).x0bar - exact).abs().max() <= 1e-10


@pytest.mark.parametrize("t", [951, 601, 101])
def test_posterior_samples_have_the_posterior_mean_and_tweedies_second_order(model, t):
    """Total variance sigma^2 / alpha^2 (d + sigma^2 tr grad_x s), the trace by autograd."""
    (xt, cond), (alpha, sigma), count = noisy(model, t), model.level(t), 3000
    xt, one = xt[:1], cond[:1]
    many = xt.expand(count, -1, -1, -1)
    x0 = model.sample_posterior(many, t, one.cat([one] * count), range(count))
    standard = x0.std(0) / count**0.5
    assert ((x0.mean(0) - model.x0bar(xt, t, one)[0]) / standard).abs().max() < 6
    curl = torch.autograd.functional.jacobian(
        lambda x: model.score(x.view_as(xt), t, one).flatten(), xt[0].flatten()
    )
    total = sigma**2 / alpha**2 * (curl.shape[0] + sigma**2 * curl.trace())
    # two modes: their shares are those of 3000 draws
    assert_close(x0.var(0).sum(), total, rtol=0.12, atol=0)


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_gradient_of_the_reward_equals_central_differences(model, target, w):
    """grad_c h_t to 1e-6, with and without guidance."""
    run = dk.Sampler(model, dk.DATE(target), num_steps=20, guidance_scale=w).start(
        PROMPTS, seeds=[0, 1, 2]
    )

    def h(c):
        return target(model.decode(run.sampler.predict(run.state, c).x0bar), PROMPTS)

    for at in (0, 10):
        run.step(at) if at else None
        look, c = run.peek(), run.state.c_org
        for seed in range(3):
            v = normal(*c.shape, seed=seed)
            numeric = (h(c + 1e-5 * v) - h(c - 1e-5 * v)) / 2e-5
            away = (look.grad * v).flatten(1).sum(1) - numeric
            assert (away.abs() <= 1e-6 * look.grad_norm).all()


def test_sampling_reaches_the_distribution():
    """200 DDIM steps from noise: means of samples near those of p(x0 | c)."""
    model = dk.load("gaussian")
    run = dk.Sampler(model, num_steps=200).start(PROMPTS[0], seeds=range(64)).finish(progress=False)
    mean, standard = run.state.xt.mean(0), run.state.xt.std(0)
    exact = model.means(model.encode(PROMPTS[:1]))[0, 0].view(3, 8, 8)
    assert ((mean - exact).abs() / (standard / 8)).square().mean() < 2.5
    assert 0.8 < (standard.square() / model._v[0].view(3, 8, 8)).mean() < 1.2


def test_bad_input(model):
    with pytest.raises(ValueError, match="32 pixels a side"):
        model.latent_shape(64, 64)
    with pytest.raises(ValueError, match="gaussian-mixture"):
        dk.load("gausian-mixture")
    with pytest.warns(UserWarning, match="twelve"):
        model.encode(["one two three four five six seven eight nine ten eleven twelve"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(["one two three four five six"])


def test_the_target_is_where_its_reward_is_one(target):
    images = normal(2, 3, 32, 32).sigmoid()
    assert not torch.equal(target(images, ["a", "b"]), target(images, ["b", "a"]))
    assert_close(target(target.targets(["a"], (32, 32)), ["a"]), torch.ones(1).double())
