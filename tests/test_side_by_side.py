"""What methods do in the space of x, one beside the other, against formulas of the closed form."""

from __future__ import annotations

import pytest
import torch
from flow import FlowGaussian

import datekit as dk
from datekit import analysis

PROMPTS = ["a red circle", "a green star on red"]


def test_the_guidance_term_is_the_change_of_the_score(target):
    method = dk.UniversalGuidance(target, 5.0, backward_steps=2, when=dk.steps(0))
    run = dk.Sampler(dk.load("gaussian"), method, num_steps=10).start(PROMPTS, seeds=[0, 1])
    run.step(4)
    term = dk.guidance_term(
        run
    )  # a step that the schedule leaves out: the instrument looks at it all the same
    sigma = run.sampler.solver.level(4)[1]
    info = run.fork(dk.UniversalGuidance(target, 5.0, backward_steps=2)).step()
    pushed = info.notes["ug_forward"] + info.notes["ug_backward"]
    torch.testing.assert_close(term.exact, -pushed / sigma, rtol=1e-9, atol=1e-12)
    assert torch.equal(term.term, term.exact)
    torch.testing.assert_close(term.x0bar + term.shift, info.x0bar_hat, rtol=1e-9, atol=1e-12)
    assert "UniversalGuidance, exact" in term.title
    ax = dk.plot.guidance(term)
    assert "rho" not in ax.get_title()
    ax.figure.clear()
    assert term.to_frame()["||residual||"].eq(0).all()
    date = dk.guidance_term(run, method=dk.DATE(target, rho=0.3))
    assert (date.rho, date.kind) == (0.3, "sampler")
    torch.testing.assert_close(dk.guidance_term(run, rho=0.3).exact, date.exact)
    with pytest.raises(ValueError, match=r"Theorem 2.*UniversalGuidance makes none"):
        dk.guidance_term(run, kind="total")


def test_date_and_universal_guidance_side_by_side(target):
    """Their cosine from formulas: s(c_hat) - s(c_org) of the closed form, and J grad h."""
    model = dk.load("gaussian")
    date, guidance = dk.DATE(target, rho=0.4, when=dk.every(5)), dk.UniversalGuidance(target, 5.0)
    run = dk.Sampler(model, date, num_steps=10).start(PROMPTS, seeds=[0, 1])
    run.step(7)
    found = analysis.guidance_cosine(run, date, guidance, steps=[0, 3, 6])
    assert found.cosine.shape == (3, 2)
    for row, i in enumerate((0, 3, 6)):
        state = run.states[i]
        alpha, sigma = model.level(state.t)
        c = state.c_org.clone().requires_grad_()
        h = target(
            model.decode(model.x0bar(state.xt, state.t, state.cond_org.replace(sequence=c))),
            PROMPTS,
        )
        (g,) = torch.autograd.grad(h.sum(), c)
        c_hat = state.c_org + 0.4 * g / g.flatten(1).norm(dim=1)[:, None, None]
        a = model.score(state.xt, state.t, state.cond_org.replace(sequence=c_hat)) - model.score(
            state.xt, state.t, state.cond_org
        )
        slope = (alpha * model._v[0] / (alpha**2 * model._v[0] + sigma**2)).view(3, 8, 8)
        x0 = model.x0bar(state.xt, state.t, state.cond_org).requires_grad_()
        b = slope * torch.autograd.grad(target(model.decode(x0), PROMPTS).sum(), x0)[0]
        torch.testing.assert_close(
            found.cosine[row], torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))
        )
        torch.testing.assert_close(
            found.sizes[:, row],
            torch.stack([a.flatten(1).norm(dim=1), 5.0 * b.flatten(1).norm(dim=1)]),
        )
    itself = analysis.guidance_cosine(run, guidance, dk.UniversalGuidance(target, 1.0), steps=[2])
    torch.testing.assert_close(itself.cosine, torch.ones(1, 2, dtype=torch.float64))
    frame = found.to_frame()
    assert len(frame) == 6
    assert list(frame.columns) == [
        "step",
        "t",
        "prompt",
        "seed",
        "cosine",
        "||DATE||",
        "||UniversalGuidance||",
    ]
    assert list(itself.to_frame().columns)[-2:] == [
        "||UniversalGuidance 1||",
        "||UniversalGuidance 2||",
    ]
    assert analysis.guidance_cosine(run, dk.Fixed(), guidance).cosine.isnan().all()
    with pytest.raises(TypeError, match="give two methods"):
        analysis.guidance_cosine(run, target, guidance)


def test_where_xt_is_pure_noise_there_is_no_score_to_change(target):
    """A flow starts at alpha = 0: eps is xt whatever the model says."""
    run = dk.Sampler(FlowGaussian(), dk.DATE(target, rho=0.3)).start(PROMPTS, seeds=[0, 1])
    with pytest.raises(ValueError, match=r"step 0 starts from pure noise.*look at a later step"):
        dk.guidance_term(run)
    run.step()
    found = analysis.guidance_cosine(
        run, dk.DATE(target, rho=0.3), dk.UniversalGuidance(target, 1.0), steps=[0, 1]
    )
    assert found.cosine[0].isnan().all()
    assert found.cosine[1].isfinite().all()
    assert dk.guidance_term(run).exact.isfinite().all()


def test_any_method_has_a_term(random_backbone):
    """EBCA's: the score of the network with the moving context minus that without."""
    sampler = dk.Sampler(
        random_backbone, dk.EBCA(2.0, 2.0, when=dk.steps(5)), num_steps=6, guidance_scale=4.0
    )
    run = sampler.start(PROMPTS, seeds=[0, 1])
    always = sampler.replace(method=dk.EBCA(2.0, 2.0))
    moved = (sampler.predict(run.state).eps - always.predict(run.state).eps) / sampler.solver.level(
        0
    )[1]
    term = dk.guidance_term(run)
    assert "EBCA, exact" in term.title
    assert moved.any()
    torch.testing.assert_close(term.exact, moved)
