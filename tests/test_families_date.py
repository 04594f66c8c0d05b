"""DATE on every pipeline family: what moves and by how much, what it gains, in float64, float32 and bfloat16."""

from __future__ import annotations

import families
import pytest
import torch
from test_families import PROMPTS, STEPS

import datekit as dk
from datekit.types import norm


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_date_moves_c_by_rho_and_padding_not_at_all(name, brightness):
    backbone = families.backbone(name)
    sampler = dk.Sampler(
        backbone, dk.DATE(brightness, rho=0.5), num_steps=STEPS, guidance_scale=2.0, solver="own"
    )
    run = sampler.start(PROMPTS, seeds=[0, 1, 2])
    for _ in range(2):
        run.step()
        state = run.state
        assert torch.allclose(norm(state.c - state.c_org), torch.full((3,), 0.5), rtol=1e-4)
    mask = state.cond_org.mask
    if mask is None:
        assert name in ("sd", "sd-v", "sd-sample", "sdxl")
    else:
        assert (~mask).any()
        assert torch.equal(state.c[~mask], state.c_org[~mask])
    if state.cond.pooled is not None:
        assert torch.equal(state.cond.pooled, state.cond_org.pooled)


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_first_order_increase_of_the_reward(name, brightness):
    """h(c + rho eps_hat) - h(c) = rho ||g|| within 5 % at rho = 1e-3, in float64."""
    backbone = families.fresh(name, torch.float64)
    sampler = dk.Sampler(
        backbone, dk.DATE(brightness, rho=1e-3), num_steps=STEPS, guidance_scale=2.0, solver="own"
    )
    run = sampler.start(PROMPTS[:2], seeds=[0, 1])
    run.step(2)
    look = run.peek()
    moved_cond = run.state.cond.replace(sequence=look.c + 1e-3 * look.direction)
    with sampler.paused(run.state) as denoiser:
        moved = denoiser.value_and_grad(brightness, moved_cond)
    assert torch.allclose(moved.h - look.h, 1e-3 * look.grad_norm, rtol=0.05, atol=0)


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_rho_zero_is_fixed_bit_for_bit(name, brightness):
    backbone = families.backbone(name)
    ends = []
    for method in (dk.Fixed(), dk.DATE(brightness, rho=0.0)):
        sampler = dk.Sampler(backbone, method, num_steps=3, guidance_scale=2.0, solver="own")
        ends.append(sampler.start(PROMPTS[:2], seeds=[0, 1]).finish().state.xt)
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
@pytest.mark.parametrize("update", ["pooled", "both"])
def test_pooled_updates(name, update, brightness):
    """The pooled vector moves too; rho bounds what moves together, along the gradient that autograd gives."""
    backbone = families.backbone(name)
    sampler = dk.Sampler(
        backbone,
        dk.DATE(brightness, rho=0.3, update=update),
        num_steps=STEPS,
        guidance_scale=2.0,
        solver="own",
    )
    run = sampler.start(PROMPTS[:2], seeds=[0, 1])
    before = run.state
    info = run.step()
    moved = torch.cat(
        [(run.state.c - before.c).flatten(1), run.state.cond.pooled - before.cond.pooled], 1
    )
    assert torch.allclose(moved.norm(dim=1), torch.full((2,), 0.3), rtol=1e-4)
    assert torch.allclose(info.distance, torch.full((2,), 0.3), rtol=1e-4)
    assert torch.equal(run.state.c, before.c) == (update == "pooled")
    leaves = [x.clone().requires_grad_() for x in (before.cond.sequence, before.cond.pooled)]
    x0bar = sampler.predict(before, before.cond.replace(sequence=leaves[0], pooled=leaves[1])).x0bar
    grads = torch.autograd.grad(brightness(backbone.decode(x0bar), before.prompts).sum(), leaves)
    mask = before.cond.mask
    sequence = grads[0] if mask is None else torch.where(mask[..., None], grads[0], 0)
    if update == "pooled":
        sequence = torch.zeros_like(sequence)
    joint = torch.cat([sequence.flatten(1), grads[1]], 1)
    assert torch.cosine_similarity(moved, joint).min() > 0.999


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_bfloat16_network_with_a_float32_reward(name, brightness):
    backbone = families.fresh(name, torch.bfloat16)
    run = dk.Sampler(
        backbone, dk.DATE(brightness, rho=0.5), num_steps=3, guidance_scale=2.0, solver="own"
    ).start(PROMPTS[:2], seeds=[0, 1])
    info = run.step()
    fed = [c.to(torch.bfloat16).double() for c in (info.c, run.state.c_org)]
    assert torch.allclose(
        info.extras["distance_fed"].double(), norm(fed[0] - fed[1]), rtol=1e-5
    )  # what the network really sees
    run.finish()
    assert run.state.xt.dtype == torch.bfloat16
    assert run.state.xt.isfinite().all()
    assert run.state.c.dtype == torch.float32
    assert torch.allclose(norm(run.state.c - run.state.c_org), torch.full((2,), 0.5), rtol=1e-3)


def test_instruments_refuse_what_they_do_not_follow(brightness):
    sampler = dk.Sampler(
        families.backbone("sdxl"),
        dk.DATE(brightness, update="pooled"),
        num_steps=STEPS,
        solver="own",
    )
    with pytest.raises(ValueError, match="follow the sequence only"):
        dk.guidance_term(sampler.start(PROMPTS[:1], seeds=[0]))
    flow = dk.Sampler(
        families.backbone("sd3"), dk.DATE(brightness), num_steps=STEPS, solver="own"
    ).start(PROMPTS[:1], seeds=[0])
    with pytest.raises(ValueError, match="pure noise"):
        dk.analysis.taylor_error(flow)
