"""The instruments on flow transformers (SD3, FLUX), and where the pooled vector moves."""

from __future__ import annotations

import families
import pytest
import torch

import datekit as dk
from datekit import analysis
from datekit.analysis.guidance import score_change
from datekit.tensors import norm, unit

PROMPTS = ["a green star", "a green star", "two yellow triangles"]
W, RHO = 2.0, 0.5


def begin(backbone, method):
    sampler = dk.Sampler(backbone, method, num_steps=4, guidance_scale=W, solver="own")
    run = sampler.start(PROMPTS, seeds=[0, 1, 2])
    run.step(2)
    return run


@pytest.fixture(scope="module", params=["sd3", "flux"])
def paused(request, brightness):
    return begin(families.fresh(request.param, torch.float64), dk.DATE(brightness, rho=RHO))


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
    torch.testing.assert_close(noise.stable[0], stable, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("update", ["pooled", "both"])
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_pooled_updates(name, update, brightness):
    """The change of the score is exact; what follows the sequence alone says so."""
    backbone = families.backbone(name)
    run = begin(backbone, dk.DATE(brightness, rho=RHO, update=update))
    for instrument in (
        *(dk.guidance_term, analysis.taylor_error, analysis.rho_sweep, analysis.token_shares),
        *(analysis.chain_rule, analysis.signal_to_noise, analysis.guarantee, analysis.directions),
    ):
        with pytest.raises(ValueError, match="follow the sequence only"):
            instrument(run)
    state, org, following = run.state, run.state.cond_org, run.fork()
    following.step()
    fed = following.state.cond
    start = plain_score(state, backbone, org.sequence, org.pooled)
    wanted = plain_score(state, backbone, fed.sequence, fed.pooled) - start
    torch.testing.assert_close(norm(score_change(run)), norm(wanted), rtol=1e-2, atol=0)
