"""The instruments follow what is sampled: the anchor, the noise, the precision."""

from __future__ import annotations

import copy

import pipelines
import pytest
import torch
from flow import FlowGaussian

import datekit as dk
from datekit import analysis
from datekit.analysis import taylor
from datekit.tensors import norm

PROMPTS = ["a red circle", "a blue square beside a dog", "a red circle"]
RHO = 0.4


def score_of_total(model, target, state, seen, start, rho):
    """grad_x log p(x | start + rho eps_hat(x)), eps_hat of the gradient at `seen`, by autograd."""
    alpha, sigma = model.level(state.t)
    x, c = state.xt.clone().requires_grad_(), seen.clone().requires_grad_()

    def cond(values):
        return state.cond_org.replace(sequence=values)

    x0bar = (x - sigma * model.predict(x, state.t, cond(c))) / alpha
    h = target(model.decode(x0bar), state.prompts).sum()
    (g,) = torch.autograd.grad(h, c, create_graph=True)
    moved = start + rho * g / g.flatten(1).norm(dim=1)[:, None, None]
    return torch.autograd.grad(model.log_prob(x, state.t, cond(moved)).sum(), x)[0]


@pytest.mark.parametrize(
    ("anchor", "at"), [("original", 0), ("original", 4), ("running", 4), ("reset", 4)]
)
def test_both_readings_stand_where_the_displacement_of_the_anchor_starts(model, target, anchor, at):
    """What the next step feeds is start + rho eps_hat: c_org, the running c, and c_org again."""
    method = dk.DATE(target, rho=RHO, anchor=anchor)
    run = dk.Sampler(model, method, num_steps=10).start(PROMPTS, seeds=[0, 1, 2])
    if at:
        run.step(at)
    state = run.state
    start = state.c if anchor == "running" else state.c_org
    seen = state.c_org if anchor == "original" else state.c
    fed = run.fork().step().c

    def cond(c):
        return state.cond_org.replace(sequence=c)

    def score(c):
        return model.score(state.xt, state.t, cond(c))

    term, step = dk.guidance_term(run), 1e-5
    torch.testing.assert_close(term.exact, score(fed) - score(start), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(analysis.score_change(run.sampler, state)[0], term.exact)
    torch.testing.assert_close(term.x0bar, model.x0bar(state.xt, state.t, cond(start)))
    along = (fed - start) / RHO
    slope = (score(start + step * along) - score(start - step * along)) / (2 * step)
    assert ((term.term - RHO * slope).norm() / term.term.norm()).item() < 1e-6
    total = dk.guidance_term(run, kind="total")
    still, moved, ahead, behind = (
        score_of_total(model, target, state, seen, start, rho) for rho in (0.0, RHO, step, -step)
    )
    torch.testing.assert_close(total.exact, moved - still, rtol=1e-8, atol=1e-8)
    slope = (ahead - behind) / (2 * step)
    assert ((total.term - RHO * slope).norm() / total.term.norm()).item() < 1e-6


def test_a_rule_for_rho_is_no_radius(target):
    method = dk.DATE(target, rho=dk.methods.rho_rules.Taylor())
    run = dk.Sampler(dk.load("gaussian"), method, num_steps=4).start(PROMPTS, seeds=[0, 1, 2])
    with pytest.raises(ValueError, match=r"chooses a radius at each update; say which.*rho="):
        dk.guidance_term(run)
    assert dk.guidance_term(run, rho=0.2).rho == 0.2


@pytest.mark.parametrize("given", [True, False])
def test_the_guarantee_is_about_the_noise_that_the_run_takes(target, given):
    """A stochastic solver: the values of c_org and of DATE's embeddings are those of the runs."""
    model, seeds = dk.load("gaussian"), [0, 1, 2]
    sampler = dk.Sampler(model, dk.DATE(target, rho=0.5), num_steps=2, eta=1.0)
    state = sampler.init(PROMPTS, seeds=seeds)
    if given:
        g = torch.Generator().manual_seed(5)
        noise = torch.randn(2, *state.xt.shape, generator=g, dtype=state.xt.dtype)
        state = state.replace(noise=noise)
    values = analysis.guarantee(state, sampler=sampler, rounds=8).values
    for name, each in {"DATE": sampler, "fixed": sampler.replace(method=dk.Fixed())}.items():
        xt = dk.Run(each, state).finish(progress=False).state.xt
        torch.testing.assert_close(values[name], target(model.decode(xt), PROMPTS))
    others = sampler.init(PROMPTS, seeds=seeds).replace(seeds=(7, 8, 9))
    other = analysis.guarantee(others, sampler=sampler, rounds=0).values
    assert (other["fixed"] != values["fixed"]).all()


def test_the_guarantee_refuses_steps_that_it_does_not_follow(target):
    class WithEncoder(FlowGaussian):
        def encode_images(self, images):
            return torch.zeros(len(images), 3, 8, 8, dtype=self.dtype)

    image, settings = torch.zeros(1, 3, 32, 32), {"num_steps": 4, "n_max": 3, "seeds": [0]}
    texts = ["a cat"], ["a dog"]
    run = dk.editing.flowedit(WithEncoder(), image, *texts, dk.DATE(target), **settings)
    with pytest.raises(ValueError, match="FlowEditSampler takes steps of its own"):
        analysis.guarantee(run)


@pytest.fixture(scope="module")
def halved(brightness):
    """A paused run of a network in bfloat16, and the score of the same weights in float64."""
    pipe = pipelines.stable_diffusion(seed=3).to(dtype=torch.bfloat16)
    settings = {"num_steps": 4, "guidance_scale": 3.0}
    exact = dk.Sampler(dk.wrap(copy.deepcopy(pipe).to(dtype=torch.float64)), **settings)
    sampler = dk.Sampler(dk.wrap(pipe), dk.DATE(brightness), **settings)
    run = sampler.start(PROMPTS, seeds=[0, 1, 2])
    run.step(2)

    def double(cond):
        return cond.replace(sequence=cond.sequence.to(torch.bfloat16).double())

    cond, uncond = double(run.state.cond), double(run.state.uncond)
    state = run.state.replace(xt=run.state.xt.double(), cond=cond, uncond=uncond)
    return run, lambda c: analysis.score(exact, state, c)


def test_derivatives_of_a_network_in_half_precision(halved):
    """Against float64 differences of the same weights; a step for float32 is 1,000 % off here."""
    run, at = halved
    look, step = run.peek(), 1e-5
    c, eps_hat = look.c.to(torch.bfloat16).double(), look.direction.double()
    with torch.no_grad():
        slope = (at(c + step * eps_hat) - at(c - step * eps_hat)) / (2 * step)
    for how, limit in (("forward", 0.02), ("central", 0.2)):
        term = dk.guidance_term(run, rho=1.0, derivative=how)
        assert ((term.term - slope).norm() / slope.norm()).item() < limit
    assert "step 9.9e-01" in term.how


def test_an_expansion_below_the_networks_rounding_is_not_fitted(halved):
    """These residuals are rounding alone: they do not fall with rho, and no power is read."""
    run, _ = halved
    error = analysis.taylor_error(run, [1e-3, 2e-3, 4e-3])
    assert error.score_slope.isnan().all()
    assert error.reward_slope.isnan().all()
    top = taylor._default_rhos(run.state.c_org, torch.bfloat16)[-1]
    assert top == pytest.approx(norm(run.state.c_org).mean().item())
