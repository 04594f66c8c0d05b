"""What methods do in the space of x, one beside the other, against formulas of the closed form."""

from __future__ import annotations

import pytest
import torch
from flow import FlowGaussian

import datekit as dk
from datekit import analysis
from datekit.tensors import norm, unit

PROMPTS = ["a red circle", "a green star on red"]


def start(model, method, **settings):
    return dk.Sampler(model, method, **settings).start(PROMPTS, seeds=[0, 1])


def test_the_change_of_the_score_by_universal_guidance(target):
    """It is looked at in a step that the schedule leaves out all the same."""
    method = dk.UniversalGuidance(target, 5.0, backward_steps=2, when=dk.steps(0))
    run = start(dk.load("gaussian"), method, num_steps=10)
    run.step(4)
    change, x0bar = analysis.score_change(run.sampler, run.state)
    alpha, sigma = run.sampler.solver.level(4)
    info = run.fork(dk.UniversalGuidance(target, 5.0, backward_steps=2)).step()
    pushed = info.extras["ug_forward"] + info.extras["ug_backward"]
    torch.testing.assert_close(change, -pushed / sigma, rtol=1e-9, atol=1e-12)
    moved = x0bar + sigma**2 / alpha * change
    torch.testing.assert_close(moved, info.x0bar_hat, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="no radius of its own"):
        dk.guidance_term(run)


def test_date_and_universal_guidance_side_by_side(target):
    """Their cosine from formulas: s(c_hat) - s(c_org) of the closed form, and J grad h."""
    model = dk.load("gaussian")
    date, guidance = dk.DATE(target, rho=0.4, when=dk.every(5)), dk.UniversalGuidance(target, 5.0)
    run = start(model, date, num_steps=10)
    run.step(7)
    result = analysis.guidance_cosine(run, date, guidance, steps=[0, 3, 6])
    for row, i in enumerate((0, 3, 6)):
        state = run.states[i]
        alpha, sigma = model.level(state.t)

        def at(c, s=state):
            return s.cond_org.replace(sequence=c)

        c = state.c_org.clone().requires_grad_()
        x0 = model.x0bar(state.xt, state.t, at(c))
        (g,) = torch.autograd.grad(target(model.decode(x0), PROMPTS).sum(), c)
        c_hat = at(state.c_org + 0.4 * unit(g))
        a = model.score(state.xt, state.t, c_hat) - model.score(state.xt, state.t, state.cond_org)
        slope = (alpha * model._v[0] / (alpha**2 * model._v[0] + sigma**2)).view(3, 8, 8)
        x0 = x0.detach().requires_grad_()
        b = slope * torch.autograd.grad(target(model.decode(x0), PROMPTS).sum(), x0)[0]
        cosine = torch.cosine_similarity(a.flatten(1), b.flatten(1))
        torch.testing.assert_close(result.cosine[row], cosine)
        torch.testing.assert_close(result.sizes[:, row], torch.stack([norm(a), 5.0 * norm(b)]))
    itself = analysis.guidance_cosine(run, guidance, dk.UniversalGuidance(target, 1.0), steps=[2])
    torch.testing.assert_close(itself.cosine, torch.ones(1, 2, dtype=torch.float64))
    assert analysis.guidance_cosine(run, dk.Fixed(), guidance).cosine.isnan().all()
    with pytest.raises(TypeError, match="give two methods"):
        analysis.guidance_cosine(run, target, guidance)


def test_where_xt_is_pure_noise_there_is_no_score_to_change(target):
    """A flow starts at alpha = 0: eps is xt whatever the model says."""
    date = dk.DATE(target, rho=0.3)
    run = start(FlowGaussian(), date)
    with pytest.raises(ValueError, match=r"step 0 starts from pure noise.*look at a later step"):
        dk.guidance_term(run)
    run.step()
    pair = date, dk.UniversalGuidance(target, 1.0)
    cosine = analysis.guidance_cosine(run, *pair, steps=[0, 1]).cosine
    assert cosine[0].isnan().all()
    assert cosine[1].isfinite().all()
    assert dk.guidance_term(run).exact.isfinite().all()


def test_any_method_changes_the_score(random_backbone):
    """EBCA's: the score of the network with the moving context minus that without."""
    settings = {"num_steps": 6, "guidance_scale": 4.0}
    run = start(random_backbone, dk.EBCA(2.0, 2.0, when=dk.steps(5)), **settings)
    always = run.sampler.replace(method=dk.EBCA(2.0, 2.0))
    moved = run.sampler.predict(run.state).eps - always.predict(run.state).eps
    assert moved.any()
    change = analysis.score_change(run.sampler, run.state)[0]
    torch.testing.assert_close(change, moved / run.sampler.solver.level(0)[1])
