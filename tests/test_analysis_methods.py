"""The instruments follow what is sampled: the anchor, the noise, the precision, the method, and
flow transformers (SD3, FLUX)."""

from __future__ import annotations

import copy
import math
from unittest.mock import Mock

import families
import pipelines
import pytest
import torch
from flow import FlowGaussian

import datekit as dk
from datekit import analysis
from datekit.analysis.guidance import score_change
from datekit.tensors import norm, unit

PROMPTS = ["a red circle", "a blue square beside a dog", "a red circle"]
RHO = 0.4


def start(model, method, **settings):
    return dk.Sampler(model, method, **settings).start(PROMPTS, seeds=[0, 1, 2])


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
    run = start(model, dk.DATE(target, rho=RHO, anchor=anchor), num_steps=10)
    if at:
        run.step(at)
    state = run.state
    base = state.c if anchor == "running" else state.c_org
    seen = state.c_org if anchor == "original" else state.c
    fed = run.fork().step().c

    def cond(c):
        return state.cond_org.replace(sequence=c)

    def score(c):
        return model.score(state.xt, state.t, cond(c))

    term, step = dk.guidance_term(run), 1e-5
    torch.testing.assert_close(term.exact, score(fed) - score(base), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(score_change(run), term.exact)
    torch.testing.assert_close(term.x0bar, model.x0bar(state.xt, state.t, cond(base)))
    along = (fed - base) / RHO
    slope = (score(base + step * along) - score(base - step * along)) / (2 * step)
    assert ((term.term - RHO * slope).norm() / term.term.norm()).item() < 1e-6
    total = dk.guidance_term(run, kind="total")
    still, moved, ahead, behind = (
        score_of_total(model, target, state, seen, base, rho) for rho in (0.0, RHO, step, -step)
    )
    torch.testing.assert_close(total.exact, moved - still, rtol=1e-8, atol=1e-8)
    slope = (ahead - behind) / (2 * step)
    assert ((total.term - RHO * slope).norm() / total.term.norm()).item() < 1e-6


def test_the_guarantee_is_about_the_noise_that_the_run_takes(target):
    """A stochastic solver: the values of c_org and of DATE's embeddings are those of the runs."""
    model = dk.load("gaussian")
    run = start(model, dk.DATE(target, rho=0.5), num_steps=2, eta=1.0)
    values = analysis.guarantee(run, rounds=8).values
    for name, each in {"DATE": run, "fixed": run.fork(dk.Fixed())}.items():
        xt = each.finish(progress=False).state.xt
        torch.testing.assert_close(values[name], target(model.decode(xt), PROMPTS))


def test_the_guarantee_follows_flowedit(target):
    settings = {"num_steps": 4, "n_max": 3, "n_avg": 2, "seeds": [0]}
    picture, texts = torch.zeros(1, 3, 32, 32), (["a cat"], ["a dog"])
    run = dk.editing.flowedit(FlowGaussian(), picture, *texts, dk.DATE(target), **settings)
    values = analysis.guarantee(run, rounds=2).values
    end = target(run.sampler.backbone.decode(run.finish().state.xt), run.prompts)
    torch.testing.assert_close(values["DATE"], end)
    assert values["unconstrained"] >= values["constrained"] >= values["DATE"]


@pytest.fixture(scope="module")
def halved(brightness):
    """A paused run of a network in bfloat16, and the score of the same weights in float64."""
    pipe = pipelines.stable_diffusion(seed=3).to(dtype=torch.bfloat16)
    settings = {"num_steps": 4, "guidance_scale": 3.0}
    exact = dk.Sampler(dk.wrap(copy.deepcopy(pipe).to(dtype=torch.float64)), **settings)
    run = start(dk.wrap(pipe), dk.DATE(brightness), **settings)
    run.step(2)

    def double(cond):
        return cond.replace(sequence=cond.sequence.to(torch.bfloat16).double())

    cond, uncond = double(run.state.cond), double(run.state.uncond)
    state = run.state.replace(xt=run.state.xt.double(), cond=cond, uncond=uncond)
    return run, lambda c: -exact.predict(state, c).eps / exact.solver.level(2)[1]


def test_derivatives_of_a_network_in_half_precision(halved, monkeypatch):
    """Against float64 differences of the same weights; a step for float32 is 1,000 % off here."""
    run, at = halved
    look, step = run.peek(), 1e-5
    c, eps_hat = look.c.to(torch.bfloat16).double(), look.direction.double()
    with torch.no_grad():
        slope = (at(c + step * eps_hat) - at(c - step * eps_hat)) / (2 * step)
    forward = dk.guidance_term(run, rho=1.0)
    monkeypatch.setattr(torch.func, "jvp", Mock(side_effect=RuntimeError))
    central = dk.guidance_term(run, rho=1.0)
    for term, limit in ((forward, 0.02), (central, 0.2)):
        assert ((term.term - slope).norm() / slope.norm()).item() < limit
    assert "step 9.9e-01" in central.how


def test_an_expansion_below_the_networks_rounding_is_not_fitted(halved):
    """These residuals are rounding alone: they do not fall with rho, and no power is read."""
    run, _ = halved
    error = analysis.taylor_error(run, [1e-3, 2e-3, 4e-3])
    assert error.score_slope.isnan().all()
    assert error.reward_slope.isnan().all()
    longest = analysis.taylor_error(run).rhos[-1].item()
    assert longest == pytest.approx(norm(run.state.c_org).mean().item())


def test_date_and_universal_guidance_side_by_side(target):
    """Their cosine from formulas: s(c_hat) - s(c_org) of the closed form, and J grad h."""
    model = dk.load("gaussian")
    date, guidance = dk.DATE(target, rho=0.4), dk.UniversalGuidance(target, 5.0)
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
        torch.testing.assert_close(result.values[row], cosine)
    itself = analysis.guidance_cosine(run, guidance, dk.UniversalGuidance(target, 1.0), steps=[2])
    torch.testing.assert_close(itself.values, torch.ones(1, 3, dtype=torch.float64))
    assert analysis.guidance_cosine(run, dk.Fixed(), guidance).values.isnan().all()


def test_where_xt_is_pure_noise_there_is_no_score_to_change(target):
    """A flow starts at alpha = 0: eps is xt whatever the model says."""
    run = start(FlowGaussian(), dk.DATE(target, rho=0.3))
    with pytest.raises(ValueError, match=r"step 0 starts from pure noise.*look at a later step"):
        dk.guidance_term(run)
    push = dk.UniversalGuidance(target, 1.0)
    cosine = analysis.guidance_cosine(run, run.sampler.method, push)
    assert cosine.values.isnan().all()
    assert all(map(math.isnan, cosine.interval()))


def test_any_method_changes_the_score(random_backbone):
    """EBCA's: the score of the network with the moving context minus that without."""
    settings = {"num_steps": 6, "guidance_scale": 4.0}
    run = start(random_backbone, dk.EBCA(2.0, 2.0), **settings)
    plain = run.sampler.replace(method=dk.Fixed())
    moved = plain.predict(run.state).eps - run.sampler.predict(run.state).eps
    assert moved.any()
    torch.testing.assert_close(score_change(run), moved / run.sampler.solver.level(0)[1])


W = 2.0


def on_flow(backbone, method):
    run = start(backbone, method, num_steps=4, guidance_scale=W, solver="own")
    run.step(2)
    return run


@pytest.fixture(scope="module", params=["sd3", "flux"])
def paused(request, brightness):
    return on_flow(families.fresh(request.param, torch.float64), dk.DATE(brightness, rho=RHO))


def plain_score(state, backbone, c, pooled=None):
    """-eps / sigma with eps = xt + (1 - sigma) v, v from the network alone."""
    sigma = state.t / 1000
    cond = state.cond.replace(sequence=c, pooled=state.cond.pooled if pooled is None else pooled)
    with torch.no_grad():
        if state.uncond is None:
            v = backbone.predict(state.xt, state.t, backbone.with_guidance(cond, W))
        else:
            u = backbone.predict(state.xt, state.t, state.uncond)
            v = u + W * (backbone.predict(state.xt, state.t, cond) - u)
    return -(state.xt + (1 - sigma) * v) / sigma


def test_guidance_term_equals_differences_of_the_network(paused):
    state, backbone, look = paused.state, paused.sampler.backbone, paused.peek()

    def at(rho):
        return plain_score(state, backbone, look.c + rho * look.direction)

    term = dk.guidance_term(paused)
    assert term.how == "forward mode"
    # a long step, as FLUX's rotary embedding and the t of both are rounded to float32
    step = 1e-2
    slope = RHO * (at(step) - at(-step)) / (2 * step)
    assert ((slope - term.term).norm() / term.term.norm()).item() < 1e-3
    atol = 1e-6 * term.exact.abs().max().item()
    torch.testing.assert_close(term.exact, at(RHO) - at(0), rtol=1e-4, atol=atol)


def test_what_a_mask_fixes_has_no_share_and_no_dimension(paused):
    cosines, state = analysis.directions(paused), paused.state
    eps = torch.stack([unit(info.grad).flatten(1) for info in paused.history])
    torch.testing.assert_close(cosines.timesteps[:, 0, 1], (eps[0] * eps[1]).sum(1))
    torch.testing.assert_close(cosines.samples[:, 0, 2], (eps[:, 0] * eps[:, 2]).sum(1))
    assert cosines.dimension == int(state.cond_org.mask.sum(1).max()) * state.c.shape[2]
    assert not analysis.token_shares(paused).share[~state.cond_org.mask].any()
    closes = analysis.chain_rule(paused).closes
    torch.testing.assert_close(closes, paused.peek().grad_norm, rtol=1e-6, atol=0)


def test_signal_to_noise(paused):
    """Gradients at xt re-noised by hand."""
    noise = analysis.signal_to_noise(paused, draws=2, strength=0.1)
    state, grads, sigma = paused.state, [], paused.state.t / 1000
    eps = -sigma * plain_score(state, paused.sampler.backbone, state.c_org)
    for n in range(2):
        shape, purpose = state.xt.shape[1:], f"renoise 0 {n}"
        z = dk.noise.normal(state.seeds, state.i, shape, torch.float64, purpose=purpose)
        xt = (1 - sigma) * paused.peek().x0bar + sigma * (0.99**0.5 * eps + 0.1 * z)
        grads.append(dk.Run(paused.sampler, state.replace(xt=xt)).peek().grad.flatten(1))
    stable = (grads[0] * grads[1]).sum(1) / torch.stack(grads).square().sum(2).mean(0)
    torch.testing.assert_close(noise.values[0], stable, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("update", ["pooled", "both"])
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_pooled_updates(name, update, brightness):
    """The change of the score is exact; what follows the sequence alone says so."""
    backbone = families.backbone(name)
    run = on_flow(backbone, dk.DATE(brightness, rho=RHO, update=update))
    for instrument in (
        *(dk.guidance_term, analysis.taylor_error, analysis.token_shares, analysis.chain_rule),
        *(analysis.signal_to_noise, analysis.guarantee, analysis.directions),
    ):
        with pytest.raises(ValueError, match="follow the sequence only"):
            instrument(run)
    state, org, following = run.state, run.state.cond_org, run.fork()
    following.step()
    fed = following.state.cond
    start = plain_score(state, backbone, org.sequence, org.pooled)
    wanted = plain_score(state, backbone, fed.sequence, fed.pooled) - start
    torch.testing.assert_close(norm(score_change(run)), norm(wanted), rtol=1e-2, atol=0)
