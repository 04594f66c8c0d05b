"""The closed-form model against oracles that share no formula with it: autograd, quadrature, Monte Carlo, central differences."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import datekit as dk

PROMPTS = ["a red circle", "a blue square beside a dog", "a red circle"]
TIMES = (981, 601, 201, 1)


def noisy(model, t, seed=0):
    """xt as it comes about: a sample of p(x0 | c), noised."""
    cond = model.encode(PROMPTS)
    alpha, sigma = model.level(t)
    x0 = model.sample(cond, range(seed, seed + 3))
    return alpha * x0 + sigma * torch.randn(
        x0.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ), cond


@pytest.mark.parametrize("t", TIMES)
def test_score_and_grad_c_are_the_derivatives_of_log_prob(model, t):
    xt, cond = noisy(model, t)
    x, c = xt.clone().requires_grad_(), cond.sequence.clone().requires_grad_()
    value = model.log_prob(x, t, cond.replace(sequence=c))
    by_x, by_c = torch.autograd.grad(value.sum(), (x, c))
    torch.testing.assert_close(model.score(xt, t, cond), by_x, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(model.grad_c_log_prob(xt, t, cond), by_c, rtol=1e-9, atol=1e-10)
    v = torch.randn(c.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-5
    with torch.no_grad():
        numeric = (
            model.log_prob(xt, t, cond.replace(sequence=c + step * v))
            - model.log_prob(xt, t, cond.replace(sequence=c - step * v))
        ) / (2 * step)
    torch.testing.assert_close((by_c * v).flatten(1).sum(1), numeric, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t", TIMES)
def test_the_density_is_that_of_a_mixture_written_with_torch_distributions(model, t):
    from torch import distributions as d

    xt, cond = noisy(model, t)
    alpha, sigma = model.level(t)
    parts = d.Independent(
        d.Normal(
            alpha * model.means(cond), (alpha**2 * model._v + sigma**2).sqrt().expand(3, -1, -1)
        ),
        1,
    )
    mixture = d.MixtureSameFamily(d.Categorical(logits=model.log_weights(cond)), parts)
    torch.testing.assert_close(
        model.log_prob(xt, t, cond), mixture.log_prob(xt.flatten(1)), rtol=1e-12, atol=1e-9
    )


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("num_steps", [50, 20])
def test_tweedie_gives_the_posterior_mean(model, t, num_steps):
    """x0bar of the sampler, from the noise prediction (Eq. 11), against E[x0 | xt, c] from the posterior: 1e-10."""
    sampler = dk.Sampler(model, num_steps=num_steps)
    run = sampler.start(PROMPTS, seeds=[0, 1, 2])
    for i in (0, num_steps // 2, num_steps - 1):
        if i > run.state.i:
            run.step(i - run.state.i)
        state = run.state
        exact = model.x0bar(state.xt, state.t, state.cond)
        assert (sampler.predict(state).x0bar - exact).abs().max() <= 1e-10
    xt, cond = noisy(model, t)
    alpha, sigma = model.level(t)
    assert (
        (xt + sigma**2 * model.score(xt, t, cond)) / alpha - model.x0bar(xt, t, cond)
    ).abs().max() <= 1e-10


@pytest.mark.parametrize("t", [981, 801])
def test_posterior_mean_by_monte_carlo(model, t):
    """E[x0 | xt, c] once more, by weighting draws of p(x0 | c) with p(xt | x0); no posterior formula."""
    xt, cond = noisy(model, t)
    alpha, sigma = model.level(t)
    count = 4000
    x0 = model.sample(cond[:1].cat([cond[:1]] * count), range(count)).flatten(1)
    logits = -((xt[0].flatten() - alpha * x0) ** 2).sum(1) / (2 * sigma**2)
    weights = logits.softmax(0)
    mean = weights @ x0
    spread = ((weights**2) @ (x0 - mean) ** 2).sqrt()  # the standard error of each entry
    away = (mean - model.x0bar(xt[:1], t, cond[:1]).flatten()) / spread
    assert 1 / (weights**2).sum() > 100  # enough draws count
    assert away.abs().max() < 6
    assert away.square().mean() < 4


@pytest.mark.parametrize("t", [951, 601, 101])
def test_posterior_samples_have_the_posterior_mean_and_tweedies_second_order(model, t):
    """Mean x0bar; total variance sigma^2 / alpha^2 (d + sigma^2 tr grad_x s), the second-order Tweedie formula, by autograd."""
    xt, cond = noisy(model, t)
    alpha, sigma = model.level(t)
    count = 3000
    x0 = model.sample_posterior(
        xt[:1].expand(count, -1, -1, -1), t, cond[:1].cat([cond[:1]] * count), range(count)
    )
    exact = model.x0bar(xt[:1], t, cond[:1])[0]
    standard = x0.std(0) / count**0.5
    assert ((x0.mean(0) - exact) / standard).abs().max() < 6
    curl = torch.autograd.functional.jacobian(
        lambda x: model.score(x.view_as(xt[:1]), t, cond[:1]).flatten(), xt[0].flatten()
    )
    total = sigma**2 / alpha**2 * (curl.shape[0] + sigma**2 * curl.trace())
    torch.testing.assert_close(
        x0.var(0).sum(), total, rtol=0.12, atol=0
    )  # two modes: their shares are those of 3000 draws


def test_marginal_integrates_to_one_along_a_line():
    """In one direction, given the rest, p(xt | c) by quadrature: its log-derivative is the score."""
    model, t = dk.load("gaussian-mixture"), 601
    xt, cond = noisy(model, t)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    line = xt[:1].repeat(len(grid), 1, 1, 1)
    line[:, 0, 0, 0] = grid
    many = dk.Conditioning(cond.sequence[:1].expand(len(grid), -1, -1))
    p = (model.log_prob(line, t, many) - model.log_prob(xt[:1], t, cond[:1])).exp()
    density = p / torch.trapezoid(p, grid)
    mean_score = torch.trapezoid(density * model.score(line, t, many)[:, 0, 0, 0], grid)
    assert mean_score.abs() < 1e-8  # the expected score is 0
    stein = torch.trapezoid(density * grid * model.score(line, t, many)[:, 0, 0, 0], grid)
    torch.testing.assert_close(
        stein, torch.tensor(-1.0, dtype=torch.float64), rtol=1e-7, atol=0
    )  # E[x s] = -1


def test_targets_are_asymmetric_and_the_mixture_has_modes():
    model = dk.load("gaussian-mixture")
    cond = model.encode(PROMPTS)
    flipped = cond.replace(sequence=-cond.sequence)
    assert (model.means(cond) + model.means(flipped)).abs().max() > 0.1
    weights = model.log_weights(cond).exp()
    assert (weights.topk(2, dim=1).values[:, 1] > 0.05).all()
    apart = (model.means(cond)[:, :, None] - model.means(cond)[:, None]).norm(
        dim=-1
    ) + 100 * torch.eye(4)
    assert apart.min() > 6 * math.sqrt(0.02)  # many standard deviations of a component
    assert model._v.std() > 0.1 * model._v.mean()


def test_gradient_of_the_reward_equals_central_differences(model, target):
    """grad_c h_t to 1e-6, with and without guidance."""
    for w in (1.0, 3.0):
        sampler = dk.Sampler(model, dk.DATE(target), num_steps=20, guidance_scale=w)
        run = sampler.start(PROMPTS, seeds=[0, 1, 2])
        for at in (0, 10):
            if at:
                run.step(at)
            look, state = run.peek(), run.state
            h = lambda c, state=state, sampler=sampler: target(
                model.decode(sampler.predict(state, c).x0bar), PROMPTS
            )
            for seed in range(3):
                v = torch.randn(
                    state.c.shape,
                    generator=torch.Generator().manual_seed(seed),
                    dtype=torch.float64,
                )
                numeric = (h(state.c_org + 1e-5 * v) - h(state.c_org - 1e-5 * v)) / 2e-5
                assert (
                    ((look.grad * v).flatten(1).sum(1) - numeric).abs() <= 1e-6 * look.grad_norm
                ).all()


def test_sampling_reaches_the_distribution():
    """200 DDIM steps from noise: means of samples near those of p(x0 | c)."""
    model = dk.load("gaussian")
    run = dk.Sampler(model, num_steps=200).start(PROMPTS[0], seeds=range(64)).finish(progress=False)
    mean, standard = run.state.xt.mean(0), run.state.xt.std(0)
    exact = model.means(model.encode(PROMPTS[:1]))[0, 0].view(3, 8, 8)
    assert ((mean - exact).abs() / (standard / 8)).square().mean() < 2.5
    assert 0.8 < (standard.square() / model._v[0].view(3, 8, 8)).mean() < 1.2


def test_it_is_a_full_backbone(model, target, tmp_path):
    sampler = dk.Sampler(model, dk.DATE(target, rho=0.5), num_steps=6)
    run = sampler.start(PROMPTS, seeds=[0, 1, 2])
    run.step(3)
    again = dk.Run.load(run.save(tmp_path / "run.pt"))
    assert torch.equal(again.finish().state.xt, run.finish().state.xt)
    assert run.state.xt.dtype == torch.float64
    assert run.images[0].size == (32, 32)
    fixed = run.fork(dk.Fixed(), at=0).finish()
    assert (run.rewards()[-1] > fixed.rewards(target)[-1]).all()
    assert model.encode(["A red"]).tokens == (
        ("<start>", "a", "red", "<end>", "<pad>", "<pad>", "<pad>", "<pad>"),
    )
    assert torch.equal(
        model.encode(["a red dog"]).sequence, dk.load(model.source).encode(["a red dog"]).sequence
    )
    alone = sampler.start(PROMPTS[1:2], seeds=[1]).finish()
    torch.testing.assert_close(alone.state.xt[0], run.state.xt[1], rtol=0, atol=1e-10)


def test_bad_input(model):
    with pytest.raises(ValueError, match="at least 1 component"):
        dk.GaussianBackbone(0)
    with pytest.raises(ValueError, match="height must be 32"):
        model.latent_shape(64, 64)
    with pytest.raises(ValueError, match="positive distance"):
        dk.rewards.TargetReward(width=0)
    with pytest.raises(ValueError, match="gaussian-mixture"):
        dk.load("gausian-mixture")
    with pytest.warns(UserWarning, match="twelve"):
        model.encode(["one two three four five six seven eight nine ten eleven twelve"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(["one two three four five six"])


def test_reward_is_smooth_bounded_and_depends_on_the_prompt(target):
    images = torch.rand(
        2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: target(x, ["a", "b"]), images[:, :, ::8, ::8].detach().requires_grad_()
    )
    h = target(images, ["a", "b"])
    assert ((h > 0) & (h < 1)).all()
    assert not torch.equal(h, target(images, ["b", "a"]))
    torch.testing.assert_close(
        target(target.targets(["a"], (32, 32)), ["a"]), torch.ones(1, dtype=torch.float64)
    )
