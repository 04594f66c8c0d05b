"""Every instrument and every figure on a flow transformer (SD3, FLUX), and what they do where the pooled vector moves."""

from __future__ import annotations

import families
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import datekit as dk
from datekit import analysis
from datekit.types import norm

PROMPTS = ["a green star", "a green star", "two yellow triangles"]
W, RHO = 2.0, 0.5


def started(name, method, dtype=torch.float64, num_steps=4):
    sampler = dk.Sampler(
        families.fresh(name, dtype), method, num_steps=num_steps, guidance_scale=W, solver="own"
    )
    return sampler.start(PROMPTS, seeds=[0, 1, 2])


@pytest.fixture(scope="module", params=["sd3", "flux"])
def paused(request, brightness):
    run = started(request.param, dk.DATE(brightness, rho=RHO))
    run.step(2)
    return run


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


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
    at = lambda rho: plain_score(state, backbone, look.c + rho * look.direction)
    found = dk.guidance_term(paused)
    assert found.how == "forward mode"
    step = 1e-2  # long, as FLUX's rotary embedding and the t that both are told are rounded to float32 in any precision
    slope = (at(step) - at(-step)) / (2 * step)
    assert ((found.term - RHO * slope).norm() / found.term.norm()).item() < 1e-3
    torch.testing.assert_close(
        found.exact, at(RHO) - at(0), rtol=1e-4, atol=1e-6 * found.exact.abs().max().item()
    )
    central = dk.guidance_term(paused, derivative="central")
    assert ((found.term - central.term).norm() / found.term.norm()).item() < (
        2e-2 if backbone.name == "flux" else 1e-4
    )
    ax = dk.plot.guidance(found, central)
    assert "Length of the term" in dk.plot.alt_text(ax)


def test_taylor_error(paused):
    length = norm(paused.state.c_org).mean().item()
    error = analysis.taylor_error(paused, np.logspace(-4, -2, 5) * length)
    assert (error.score_slope - 2).abs().max() <= 0.1
    ax = dk.plot.slopes(error)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), error.score_error[:, 0])


def test_directions(paused):
    found = analysis.directions(paused)
    eps = torch.stack(
        [
            info.grad.flatten(1) / info.grad.flatten(1).norm(dim=1, keepdim=True)
            for info in paused.history
        ]
    )
    torch.testing.assert_close(found.timesteps[:, 0, 1], (eps[0] * eps[1]).sum(1))
    torch.testing.assert_close(found.samples[:, 0, 2], (eps[:, 0] * eps[:, 2]).sum(1))
    assert found.dimension == int(paused.state.cond_org.mask.sum(1).max()) * paused.state.c.shape[2]
    np.testing.assert_allclose(dk.plot.cosines(found).images[0].get_array(), found.matrix)
    assert "samples of one prompt" in dk.plot.alt_text(dk.plot.agreement(found))
    assert len(found.to_frame()) == 4


def test_token_shares(paused):
    found, state = analysis.token_shares(paused), paused.state
    torch.testing.assert_close(found.grad.sum(1), paused.peek().grad_norm ** 2)
    torch.testing.assert_close(found.moved.sum(1), torch.full((3,), RHO**2, dtype=torch.float64))
    assert not found.grad[~state.cond_org.mask].any()
    bars = [bar.get_height() for bar in dk.plot.tokens(found).patches]
    np.testing.assert_allclose(bars, found.share[0])


def test_signal_to_noise(paused):
    found = analysis.signal_to_noise(paused, steps=[1, 2], draws=2, strength=0.1, keep=True)
    g = found.grads[0, 1].flatten(2)
    torch.testing.assert_close(found.stable[0, 1], (g[0] * g[1]).sum(1) / (g**2).sum(2).mean(0))
    np.testing.assert_allclose(
        dk.plot.stability(found).lines[0].get_ydata(), found.stable[0].mean(1)
    )


def test_chain_rule(paused):
    found, backbone = analysis.chain_rule(paused), paused.sampler.backbone
    torch.testing.assert_close(found.closes, paused.peek().grad_norm, rtol=1e-6, atol=0)
    step = found.grad_x0bar * (0.01 * norm(found.x0bar) / norm(found.grad_x0bar)).view(-1, 1, 1, 1)
    with torch.no_grad():
        change = (
            backbone.decode(found.x0bar + 1e-3 * step) - backbone.decode(found.x0bar - 1e-3 * step)
        ) / 2e-3
    assert ((change - found.push).norm() / found.push.norm()).item() < 1e-3
    assert "push" in dk.plot.alt_text(dk.plot.chain(found))


def test_guidance_cosine(paused, brightness):
    date, push = dk.DATE(brightness, rho=RHO), dk.UniversalGuidance(brightness, 1.0)
    found, state, look = analysis.guidance_cosine(paused, date, push), paused.state, paused.peek()
    at = lambda c: plain_score(state, paused.sampler.backbone, c)
    moved = at(look.c + RHO * look.direction) - at(look.c)
    torch.testing.assert_close(found.sizes[0, 0], norm(moved), rtol=1e-4, atol=0)
    other = analysis.score_change(paused.sampler.replace(method=push), state)[0]
    torch.testing.assert_close(
        found.cosine[0],
        torch.cosine_similarity(moved.flatten(1), other.flatten(1)),
        rtol=1e-4,
        atol=1e-6,
    )


def test_guarantee(paused, brightness):
    found = analysis.guarantee(paused, rounds=1)
    v = found.values
    for less, more in (
        ("fixed", "sequential"),
        ("DATE", "constrained"),
        ("sequential", "constrained"),
        ("constrained", "unconstrained"),
    ):
        assert (v[more] >= v[less] - 1e-12).all(), (less, more)
    with torch.no_grad():
        end = brightness(
            paused.sampler.backbone.decode(paused.fork().finish(progress=False).state.xt), PROMPTS
        )
    torch.testing.assert_close(v["DATE"], end)


def figures_of_runs(date, plain):
    """Every figure of runs, and that it shows them."""
    lines = {line.get_label(): line.get_ydata() for line in dk.plot.reward(date, plain).lines}
    np.testing.assert_allclose(lines["DATE"], date.rewards().mean(1))
    canvas = dk.plot.compare(date, plain).images[0].get_array()
    np.testing.assert_allclose(canvas[:64, :64], date.pixels[0].permute(1, 2, 0), atol=1e-6)
    assert "a green star" in dk.plot.alt_text(dk.plot.filmstrip(date, plain, steps=2))
    ax = dk.plot.curves(
        {
            "distance": (
                range(len(date.history)),
                [info.distance.mean().item() for info in date.history],
            )
        }
    )
    assert len(ax.lines[0].get_ydata()) == len(date.history)


def test_figures_of_runs_and_of_a_sweep(paused):
    figures_of_runs(paused, paused.fork(dk.Fixed(), at=0).finish(progress=False).rewind(to=2))
    found = dk.widgets.rho_sweep(paused, [0.25, 0.5])
    torch.testing.assert_close(
        found.predicted, found.h0 + found.rhos[:, None] * paused.peek().grad_norm
    )
    assert "first order" in dk.plot.alt_text(dk.plot.rho_curve(found))
    assert "rho 0.25" in dk.plot.alt_text(dk.plot.rho_sweep(found))


@pytest.mark.parametrize("update", ["pooled", "both"])
@pytest.mark.parametrize("name", ["sd3", "flux", "sdxl"])
def test_pooled_updates(name, update, brightness):
    """Runs are drawn, and the change of the score is exact; what follows the sequence only says so."""
    backbone = families.backbone(name)
    method = dk.DATE(brightness, rho=RHO, update=update)
    run = dk.Sampler(backbone, method, num_steps=3, guidance_scale=W, solver="own").start(
        PROMPTS, seeds=[0, 1, 2]
    )
    run.step(2)
    figures_of_runs(run, run.fork(dk.Fixed(), at=0).finish(progress=False).rewind(to=2))
    for instrument in (
        dk.guidance_term,
        analysis.taylor_error,
        analysis.token_shares,
        analysis.chain_rule,
        analysis.signal_to_noise,
        analysis.guarantee,
        analysis.directions,
        dk.widgets.rho_sweep,
    ):
        with pytest.raises(ValueError, match="follow the sequence only"):
            instrument(run)
    with pytest.raises(ValueError, match="follow the sequence only"):
        analysis.signal_to_noise(run, steps=[0, 1])
    state = run.state
    if name != "sdxl":
        following, org = run.fork(), state.cond_org
        following.step()
        fed = following.state.cond
        wanted = plain_score(state, backbone, fed.sequence, fed.pooled) - plain_score(
            state, backbone, org.sequence, org.pooled
        )
        found = analysis.guidance_cosine(
            run, method, dk.UniversalGuidance(brightness, 1.0), steps=[2]
        )
        torch.testing.assert_close(found.sizes[0, 0].float(), norm(wanted), rtol=1e-2, atol=0)
