"""The instruments follow what is sampled: the anchor of the method, the noise of the solver, the precision of the network."""

from __future__ import annotations

import copy

import pipelines
import pytest
import torch
from flow import FlowGaussian

import datekit as dk
from datekit import analysis
from datekit.analysis import taylor

PROMPTS = ["a red circle", "a blue square beside a dog", "a red circle"]
RHO = 0.4


def score_of_total(model, target, state, seen, start, rho):
    """grad_x log p(x | start + rho eps_hat(x)), eps_hat from the gradient at `seen`; plain autograd."""
    alpha, sigma = model.level(state.t)
    x, c = state.xt.clone().requires_grad_(), seen.clone().requires_grad_()
    cond = lambda values: state.cond_org.replace(sequence=values)
    x0bar = (x - sigma * model.predict(x, state.t, cond(c))) / alpha
    (g,) = torch.autograd.grad(
        target(model.decode(x0bar), state.prompts).sum(), c, create_graph=True
    )
    moved = start + rho * g / g.flatten(1).norm(dim=1)[:, None, None]
    return torch.autograd.grad(model.log_prob(x, state.t, cond(moved)).sum(), x)[0]


@pytest.mark.parametrize("anchor", ["original", "running", "reset"])
def test_the_expansion_stands_where_the_displacement_of_the_anchor_starts(model, target, anchor):
    """What the next step feeds is start + rho eps_hat: c_org, the running c, and c_org again."""
    run = dk.Sampler(model, dk.DATE(target, rho=RHO, anchor=anchor), num_steps=10).start(
        PROMPTS, seeds=[0, 1, 2]
    )
    run.step(4)
    state = run.state
    assert (state.c != state.c_org).any()
    start, seen = {
        "original": (state.c_org, state.c_org),
        "running": (state.c, state.c),
        "reset": (state.c_org, state.c),
    }[anchor]
    fed = run.fork().step().c
    at = lambda c: model.score(state.xt, state.t, state.cond_org.replace(sequence=c))
    found = dk.guidance_term(run)
    torch.testing.assert_close(found.exact, at(fed) - at(start), rtol=1e-9, atol=1e-9)
    along = (fed - start) / RHO
    slope = (at(start + 1e-5 * along) - at(start - 1e-5 * along)) / 2e-5
    assert ((found.term - RHO * slope).norm() / found.term.norm()).item() < 1e-6
    torch.testing.assert_close(
        found.x0bar, model.x0bar(state.xt, state.t, state.cond_org.replace(sequence=start))
    )
    torch.testing.assert_close(analysis.score_change(run.sampler, state)[0], found.exact)
    total, step = dk.guidance_term(run, kind="total"), 1e-5
    moved = [
        score_of_total(model, target, state, seen, start, rho) for rho in (0.0, RHO, step, -step)
    ]
    torch.testing.assert_close(total.exact, moved[1] - moved[0], rtol=1e-8, atol=1e-8)
    assert (
        (total.term - RHO * (moved[2] - moved[3]) / (2 * step)).norm() / total.term.norm()
    ).item() < 1e-6


def test_a_rule_for_rho_is_no_radius(target):
    run = dk.Sampler(
        dk.load("gaussian"), dk.DATE(target, rho=dk.rho_rules.Taylor()), num_steps=4
    ).start(PROMPTS, seeds=[0, 1, 2])
    with pytest.raises(ValueError, match=r"chooses a radius at each update; say which.*rho="):
        dk.guidance_term(run)
    assert dk.guidance_term(run, rho=0.2).rho == 0.2


@pytest.mark.parametrize("given", [True, False])
def test_the_guarantee_is_about_the_noise_that_the_run_takes(target, given):
    """A stochastic solver: the value of c_org throughout, and of DATE's embeddings, are those of the runs themselves."""
    model, seeds = dk.load("gaussian"), [0, 1, 2]
    sampler = dk.Sampler(model, dk.DATE(target, rho=0.5), num_steps=2, eta=1.0)
    state = sampler.init(PROMPTS, seeds=seeds)
    if given:
        state = state.replace(
            noise=torch.randn(
                2, *state.xt.shape, generator=torch.Generator().manual_seed(5), dtype=state.xt.dtype
            )
        )
    found = analysis.guarantee(state, sampler=sampler, rounds=8)
    ends = {"DATE": sampler, "fixed": sampler.replace(method=dk.Fixed())}
    for name, each in ends.items():
        final = target(model.decode(dk.Run(each, state).finish(progress=False).state.xt), PROMPTS)
        torch.testing.assert_close(found.values[name], final)
    other = analysis.guarantee(
        sampler.init(PROMPTS, seeds=seeds).replace(seeds=(7, 8, 9)), sampler=sampler, rounds=0
    )
    assert (other.values["fixed"] != found.values["fixed"]).all()


def test_the_guarantee_refuses_steps_that_it_does_not_follow(target):
    class Pictured(FlowGaussian):
        def encode_images(self, images):
            return torch.zeros(len(images), 3, 8, 8, dtype=self.dtype)

    run = dk.editing.flowedit(
        Pictured(),
        torch.zeros(1, 3, 32, 32),
        ["a cat"],
        ["a dog"],
        dk.DATE(target),
        num_steps=4,
        n_max=3,
        seeds=[0],
    )
    with pytest.raises(ValueError, match="FlowEditSampler takes steps of its own"):
        analysis.guarantee(run)


@pytest.fixture(scope="module")
def halved(brightness):
    """A paused run of a network in bfloat16, and the score of the same weights in double precision."""
    pipe = pipelines.stable_diffusion(seed=3).to(dtype=torch.bfloat16)
    exact = dk.Sampler(
        dk.wrap(copy.deepcopy(pipe).to(dtype=torch.float64)), num_steps=4, guidance_scale=3.0
    )
    run = dk.Sampler(dk.wrap(pipe), dk.DATE(brightness), num_steps=4, guidance_scale=3.0).start(
        PROMPTS, seeds=[0, 1, 2]
    )
    run.step(2)
    double = lambda cond: cond.replace(sequence=cond.sequence.to(torch.bfloat16).double())
    state = run.state.replace(
        xt=run.state.xt.double(), cond=double(run.state.cond), uncond=double(run.state.uncond)
    )
    return run, lambda c: analysis.score(exact, state, c)


def test_derivatives_of_a_network_in_half_precision(halved):
    """Against float64 central differences of the same weights; a step for float32 is wrong by 1,000 % here."""
    run, at = halved
    look, step = run.peek(), 1e-5
    c, eps_hat = look.c.to(torch.bfloat16).double(), look.direction.double()
    with torch.no_grad():
        slope = (at(c + step * eps_hat) - at(c - step * eps_hat)) / (2 * step)
    wrong = {}
    for how in ("forward", "central"):
        found = dk.guidance_term(run, rho=1.0, derivative=how)
        wrong[how] = ((found.term - slope).norm() / slope.norm()).item()
    assert "step 9.9e-01" in found.how
    assert wrong["forward"] < 0.02
    assert wrong["central"] < 0.2


def test_an_expansion_below_the_networks_rounding_is_not_fitted(halved):
    """These residuals are rounding alone: they do not fall with rho, and no power is read from them."""
    run, _ = halved
    error = analysis.taylor_error(run, [1e-3, 2e-3, 4e-3])
    assert error.score_slope.isnan().all()
    assert error.reward_slope.isnan().all()
    top = taylor._default_rhos(run.state.c_org, torch.bfloat16)[-1]
    assert top == pytest.approx(run.state.c_org.flatten(1).norm(dim=1).mean().item())
