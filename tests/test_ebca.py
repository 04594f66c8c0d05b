"""EBCA against attention in plain tensors, and its update against the gradient of its energies."""

from __future__ import annotations

import copy

import families
import pipelines
import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
)
from pipelines import off

import datekit as dk
from datekit.methods import ebca

PROMPTS = ["a red circle left of a blue square", "a green star"]
W = 4.0
GAMMAS = (3.0, 2.0)  # hundreds of times the authors', so that a mistake shows on a random network


class PlainEBCA:
    """One cross-attention with einsum and loops over heads; the context travels in `carried`."""

    def __init__(self, carried):
        self.carried = carried

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        c = self.carried.get("c", encoder_hidden_states)
        q, k, v = attn.to_q(hidden_states), attn.to_k(c), attn.to_v(c)
        answers, climbs = [], []
        for part in torch.arange(q.shape[-1]).chunk(attn.heads):
            scores = torch.einsum("bpd,bld->bpl", q[..., part], k[..., part]) / len(part) ** 0.5
            answers.append(torch.einsum("bpl,bld->bpd", scores.softmax(2), v[..., part]))
            climbs.append(torch.einsum("bpl,bpd->bld", scores.softmax(1), q[..., part]))
        shrink = (k * k).sum(2).softmax(1)[..., None] * k
        added = (GAMMAS[0] * torch.cat(climbs, 2) - GAMMAS[1] * shrink) @ attn.to_k.weight
        self.carried["c"] = c + added
        return attn.to_out[0](torch.cat(answers, 2))


def cross(unet):
    return [m for m in unet.modules() if isinstance(m, Attention) and m.is_cross_attention]


def plain_run(pipe, state, num_steps, w):
    """DDIM with those processors: the latents, and how far each pass moved the context."""
    carried, count, unet = {}, len(state), copy.deepcopy(pipe.unet)
    for layer in cross(unet):
        layer.set_processor(PlainEBCA(carried))
    pipe.scheduler.set_timesteps(num_steps)
    both = state.c_org if w == 1 else torch.cat([state.uncond.sequence, state.c_org])
    x, shifts = state.xt, []
    for t in pipe.scheduler.timesteps:
        carried.clear()
        with torch.no_grad():
            out = unet(x if w == 1 else torch.cat([x, x]), t, encoder_hidden_states=both).sample
        if w != 1:
            out = out[:count] + w * (out[count:] - out[:count])
        x = pipe.scheduler.step(out, t, x).prev_sample
        shifts.append(carried["c"][-count:] - state.c_org)
    return x, shifts


def begin(backbone, method, w=W, steps=3, **kwargs):
    sampler = dk.Sampler(backbone, method, num_steps=steps, guidance_scale=w, **kwargs)
    return sampler.start(PROMPTS, seeds=[0, 1])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("w", "processor"), [(W, AttnProcessor2_0), (1.0, AttnProcessor)])
def test_equals_the_plain_derivation(kind, w, processor):
    pipe = pipelines.stable_diffusion(kind)
    pipe.unet.set_attn_processor(processor())
    run = begin(dk.wrap(pipe), dk.EBCA(*GAMMAS), w)
    expected, shifts = plain_run(pipe, run.state, 3, w)
    assert off(run.finish().state.xt, expected) <= 1e-4
    assert off(run.state.xt, run.fork(dk.Fixed(), at=0).finish().state.xt) > 0.02
    for info, shift in zip(run.history, shifts, strict=True):
        assert off(info.extras["ebca_shift"], shift) <= 1e-4
        assert torch.equal(info.c, run.state.c_org)  # what is fed never moves
        assert not info.updated


def test_the_update_is_the_gradient_of_the_energies():
    """grad_c of gamma_attn sum log-sum-exp over pixels of q k / scale
    - gamma_norm / 2 log-sum-exp over tokens of ||k||^2."""
    torch.manual_seed(0)
    attn = Attention(query_dim=12, cross_attention_dim=10, heads=3, dim_head=4).double()
    hidden = torch.randn(2, 9, 12, dtype=torch.float64)
    c = torch.randn(2, 5, 10, dtype=torch.float64, requires_grad=True)
    q, k = (x.unflatten(2, (3, 4)) for x in (attn.to_q(hidden), attn.to_k(c)))
    bound = torch.einsum("bphd,blhd->bhpl", q, k) * attn.scale
    energy = 0.7 * bound.logsumexp(2).sum() / attn.scale
    energy = energy - 0.2 / 2 * (k**2).sum((2, 3)).logsumexp(1).sum()
    (expected,) = torch.autograd.grad(energy, c)
    torch.testing.assert_close(dk.EBCA(0.7, 0.2).update(attn, hidden, c), expected)


class LowRank(torch.nn.Module):
    """A linear layer with an unfused addition; as in PEFT, its `weight` is the base layer's."""

    def __init__(self, base, addition):
        super().__init__()
        self.base, self.weight, self.addition = base, base.weight, addition

    def forward(self, x):
        return self.base(x) + x @ self.addition.T


def test_keys_that_are_not_linear_are_refused():
    pipe = pipelines.stable_diffusion()
    layer = cross(pipe.unet)[-1]
    layer.to_k = torch.nn.Sequential(layer.to_k, torch.nn.GELU())
    with pytest.raises(ValueError, match="needs a linear to_k"):
        begin(dk.wrap(pipe), dk.EBCA(*GAMMAS))


def test_layers_under_lora_act_as_the_fused_ones():
    runs = []
    for kind in ("fused", "unfused", "plain"):
        pipe = pipelines.stable_diffusion()
        generator = torch.Generator().manual_seed(5)
        for layer in cross(pipe.unet):
            addition = 0.02 * torch.randn(layer.to_k.weight.shape, generator=generator)
            if kind == "fused":
                layer.to_k.weight.data += addition
            elif kind == "unfused":
                layer.to_k = LowRank(layer.to_k, addition)
        runs.append(begin(dk.wrap(pipe), dk.EBCA(*GAMMAS)).finish().state.xt)
    fused, unfused, plain = runs
    assert off(unfused, fused) < 1e-4
    assert off(plain, fused) > 0.01


def test_the_schedule_decides_which_steps_and_nothing_to_do_is_fixed_to_the_bit(random_backbone):
    run = begin(random_backbone, dk.EBCA(*GAMMAS, when=dk.steps(1))).finish()
    assert [bool(info.extras) for info in run.history] == [False, True, False]
    fixed = run.fork(dk.Fixed(), at=0).finish()
    assert torch.equal(run.states[1].xt, fixed.states[1].xt)
    assert not torch.equal(run.states[2].xt, fixed.states[2].xt)
    idle = run.fork(dk.EBCA(0, 0), at=0).finish()
    assert torch.equal(idle.state.xt, fixed.state.xt)


@pytest.mark.parametrize("w", [1.0, W])
def test_a_context_that_overflows_names_the_sample(random_backbone, brightness, w):
    settings = {"num_steps": 2, "guidance_scale": w, "micro_batch": 2}
    sampler = dk.Sampler(random_backbone, dk.EBCA() + dk.DATE(brightness), **settings)
    state = sampler.init([*PROMPTS, "a dog", "a cat"], seeds=[0, 1, 2, 3])
    large = torch.tensor([1.0, 1.0, 1.0, 1e30]).view(4, 1, 1)
    cond = state.cond.replace(sequence=large * state.c)
    says = r"EBCA's context .*for sample 3 at step 0 \(t = .*\); nothing was changed"
    with pytest.raises(dk.NonFiniteError, match=says):
        sampler.step(state.replace(cond=cond, cond_org=cond))


def test_on_sdxl():
    """Deeper transformers, a pooled vector: the plain processors again, by the sampler's loop."""
    pipe = families.sdxl()
    run = begin(dk.wrap(pipe), dk.EBCA(*GAMMAS), steps=2)
    state, info, carried = run.state, run.step(), {}
    for layer in cross(pipe.unet):
        layer.set_processor(PlainEBCA(carried))
    expected = run.sampler.replace(method=dk.Fixed()).predict(state)
    assert off(info.x0bar_hat, expected.x0bar) <= 1e-4
    assert off(info.extras["ebca_shift"], carried["c"][2:] - state.c_org) <= 1e-4


@pytest.mark.parametrize("family", ["sd3", "pixart-alpha"])
def test_not_without_cross_attention(family):
    with pytest.raises(ValueError, match=r"cross-attention of a U-Net; .* has none"):
        dk.Sampler(families.backbone(family), dk.EBCA())


def test_not_with_another_attention():
    """Also where an adapter comes after the sampler."""
    sampler = dk.Sampler(dk.wrap(pipelines.stable_diffusion()), dk.EBCA(), num_steps=2)
    layers = ebca.cross_attentions(sampler.backbone)
    assert layers == cross(sampler.backbone.network)
    layers[1].set_processor(IPAdapterAttnProcessor2_0(16, 32).requires_grad_(False))
    with pytest.raises(ValueError, match=r"IPAdapterAttnProcessor2_0 .* take that off first"):
        sampler.start(PROMPTS, seeds=[0, 1]).step()
