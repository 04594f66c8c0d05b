"""DATE on every pipeline family: what moves and how far, what it gains, in three precisions."""

from __future__ import annotations

import families
import pytest
import torch
from test_families import PROMPTS, STEPS

import datekit as dk
from datekit.tensors import norm


def begin(backbone, method, count=2, num_steps=STEPS):
    """A run of the first prompts under a method."""
    sampler = dk.Sampler(backbone, method, num_steps=num_steps, guidance_scale=2.0, solver="own")
    return sampler.start(PROMPTS[:count], seeds=range(count))


@pytest.mark.parametrize("name", families.KINDS)
def test_date_moves_c_by_rho_and_padding_not_at_all(name, brightness):
    run = begin(families.backbone(name), dk.DATE(brightness, rho=0.5), 3)
    for _ in range(2):
        run.step()
        state = run.state
        assert torch.allclose(norm(state.c - state.c_org), torch.full((3,), 0.5), rtol=1e-4)
    mask = state.cond_org.mask
    assert (mask is None) == (name in ("sd", "sd-sample", "sdxl"))
    if mask is not None:
        assert (~mask).any()
        assert torch.equal(state.c[~mask], state.c_org[~mask])
    if state.cond.pooled is not None:
        assert torch.equal(state.cond.pooled, state.cond_org.pooled)


@pytest.mark.parametrize("name", families.KINDS)
def test_first_order_increase_of_the_reward(name, brightness):
    """h(c + rho eps_hat) - h(c) = rho ||g|| within 5 % at rho = 1e-3, in float64."""
    run = begin(families.fresh(name, torch.float64), dk.DATE(brightness, rho=1e-3))
    run.step(2)
    look = run.peek()
    moved = run.peek(c=look.c + 1e-3 * look.direction)
    assert torch.allclose(moved.h - look.h, 1e-3 * look.grad_norm, rtol=0.05, atol=0)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
@pytest.mark.parametrize("update", ["pooled", "both"])
def test_pooled_updates(name, update, brightness):
    """rho bounds what moves together, along the gradient that autograd gives."""
    backbone = families.backbone(name)
    method = dk.DATE(brightness, rho=0.3, update=update)
    with pytest.raises(ValueError, match="no pooled text vector"):
        begin(families.backbone("sd"), method)
    run = begin(backbone, method)
    before = run.state
    info = run.step()
    sequence = (run.state.c - before.c).flatten(1)
    moved = torch.cat([sequence, run.state.cond.pooled - before.cond.pooled], 1)
    for distance in (moved.norm(dim=1), info.distance):
        assert torch.allclose(distance, torch.full((2,), 0.3), rtol=1e-4)
    assert torch.equal(run.state.c, before.c) == (update == "pooled")
    leaves = [x.clone().requires_grad_() for x in (before.cond.sequence, before.cond.pooled)]
    cond = before.cond.replace(sequence=leaves[0], pooled=leaves[1])
    h = brightness(backbone.decode(run.sampler.predict(before, cond).x0bar), before.prompts)
    grads = torch.autograd.grad(h.sum(), leaves)
    mask = before.cond.mask
    sequence = grads[0] if mask is None else torch.where(mask[..., None], grads[0], 0)
    sequence = torch.zeros_like(sequence) if update == "pooled" else sequence
    joint = torch.cat([sequence.flatten(1), grads[1]], 1)
    assert torch.cosine_similarity(moved, joint).min() > 0.999


@pytest.mark.parametrize("name", families.KINDS)
def test_bfloat16_network_with_a_float32_reward(name, brightness):
    backbone = families.fresh(name, torch.bfloat16)
    run = begin(backbone, dk.DATE(brightness, rho=0.5), num_steps=3)
    state = run.finish().state
    assert (state.xt.dtype, state.c.dtype) == (torch.bfloat16, torch.float32)
    assert state.xt.isfinite().all()
    assert torch.allclose(norm(state.c - state.c_org), torch.full((2,), 0.5), rtol=1e-3)
