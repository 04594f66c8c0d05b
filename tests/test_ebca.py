"""EBCA against attention written out in plain tensors, and its update against the gradient of the energies it descends from."""

from __future__ import annotations

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

import datekit as dk
from datekit.methods import ebca

PROMPTS = ["a red circle left of a blue square", "a green star"]
W, GAMMAS = (
    4.0,
    (3.0, 2.0),
)  # hundreds of times the authors', so that a mistake shows on a random network


class PlainEBCA:
    """One cross-attention with einsum and loops over heads; the context travels in `carried`, reset before each forward pass."""

    def __init__(self, carried, gammas, rows=slice(None)):
        self.carried, self.gammas, self.rows = carried, gammas, rows

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        c = self.carried.get("c", encoder_hidden_states)
        q, k, v = attn.to_q(hidden_states), attn.to_k(c), attn.to_v(c)
        answers, climbs = [], []
        for part in torch.arange(q.shape[-1]).chunk(attn.heads):
            scores = torch.einsum("bpd,bld->bpl", q[..., part], k[..., part]) / len(part) ** 0.5
            answers.append(torch.einsum("bpl,bld->bpd", scores.softmax(2), v[..., part]))
            climbs.append(torch.einsum("bpl,bpd->bld", scores.softmax(1), q[..., part]))
        shrink = (k * k).sum(2).softmax(1)[..., None] * k
        added = (self.gammas[0] * torch.cat(climbs, 2) - self.gammas[1] * shrink) @ attn.to_k.weight
        kept = torch.zeros_like(added)
        kept[self.rows] = added[self.rows]
        self.carried["c"] = c + kept
        return attn.to_out[0](torch.cat(answers, 2))


def cross(unet):
    return [m for m in unet.modules() if isinstance(m, Attention) and m.is_cross_attention]


def plain_run(pipe, state, num_steps, w, negative=True):
    """DDIM with those processors; the latents, and how far the context of the last pass had moved at its end."""
    carried, count = {}, len(state)
    own = [layer.processor for layer in cross(pipe.unet)]
    for layer in cross(pipe.unet):
        layer.set_processor(
            PlainEBCA(carried, GAMMAS, slice(None) if negative or w == 1 else slice(count, None))
        )
    pipe.scheduler.set_timesteps(num_steps)
    both = state.c_org if w == 1 else torch.cat([state.uncond.sequence, state.c_org])
    x, shifts = state.xt, []
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            carried.clear()
            out = pipe.unet(
                x if w == 1 else torch.cat([x, x]), t, encoder_hidden_states=both
            ).sample
            if w != 1:
                out = out[:count] + w * (out[count:] - out[:count])
            x = pipe.scheduler.step(out, t, x).prev_sample
            shifts.append(carried["c"][-count:] - state.c_org)
    for layer, processor in zip(cross(pipe.unet), own, strict=True):
        layer.set_processor(processor)
    return x, shifts


def off(found, expected):
    return (
        ((found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).max().item()
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("w", "negative", "processor"),
    [(W, True, AttnProcessor2_0), (W, False, AttnProcessor), (1.0, True, AttnProcessor)],
)
def test_equals_the_plain_derivation(kind, w, negative, processor):
    pipe = pipelines.stable_diffusion(kind)
    pipe.unet.set_attn_processor(processor())
    sampler = dk.Sampler(
        dk.wrap(pipe), dk.EBCA(*GAMMAS, negative=negative), num_steps=3, guidance_scale=w
    )
    run = sampler.start(PROMPTS, seeds=[0, 1])
    expected, shifts = plain_run(pipe, run.state, 3, w, negative)
    assert off(run.finish().state.xt, expected) <= 1e-4
    assert off(run.state.xt, run.fork(dk.Fixed(), at=0).finish().state.xt) > 0.02
    for info, shift in zip(run.history, shifts, strict=True):
        assert off(info.notes["ebca_shift"], shift) <= 1e-4
        assert info.notes["ebca_norms"].shape == (2, len(cross(pipe.unet)))
        torch.testing.assert_close(
            info.notes["ebca_norms"][:, -1], shift.flatten(1).norm(dim=1), rtol=1e-4, atol=1e-6
        )
        assert torch.equal(info.c, run.state.c_org)  # what is fed never moves
        assert not info.updated


def test_the_update_is_the_gradient_of_the_energies():
    """C = grad_c of gamma_attn sum log-sum-exp over pixels of q k / scale - gamma_norm / 2 log-sum-exp over tokens of ||k||^2."""
    torch.manual_seed(0)
    attn = Attention(query_dim=12, cross_attention_dim=10, heads=3, dim_head=4).double()
    hidden, c = (
        torch.randn(2, 9, 12, dtype=torch.float64),
        torch.randn(2, 5, 10, dtype=torch.float64, requires_grad=True),
    )
    q, k = (x.unflatten(2, (3, 4)) for x in (attn.to_q(hidden), attn.to_k(c)))
    bound = torch.einsum("bphd,blhd->bhpl", q, k) * attn.scale
    energy = (
        0.7 * bound.logsumexp(2).sum() / attn.scale
        - 0.2 / 2 * (k**2).sum((2, 3)).logsumexp(1).sum()
    )
    (expected,) = torch.autograd.grad(energy, c)
    torch.testing.assert_close(dk.EBCA(0.7, 0.2).update(attn, hidden, c), expected)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "method", [dk.EBCA(0.0, 0.0), dk.EBCA(0, 0, negative=False), dk.EBCA(when=lambda i: False)]
)
def test_gammas_of_zero_are_fixed_to_the_bit(kind, method):
    sampler = dk.Sampler(
        dk.wrap(pipelines.stable_diffusion(kind)), method, num_steps=2, guidance_scale=W
    )
    run = sampler.start(PROMPTS, seeds=[0, 1]).finish()
    assert torch.equal(run.state.xt, run.fork(dk.Fixed(), at=0).finish().state.xt)
    assert not run.history[0].notes


def test_the_schedule_decides_which_steps(random_backbone):
    run = (
        dk.Sampler(
            random_backbone, dk.EBCA(*GAMMAS, when=dk.steps(1)), num_steps=3, guidance_scale=W
        )
        .start(PROMPTS, seeds=[0, 1])
        .finish()
    )
    assert [bool(info.notes) for info in run.history] == [False, True, False]
    fixed = run.fork(dk.Fixed(), at=0).finish()
    assert torch.equal(run.states[1].xt, fixed.states[1].xt)
    assert not torch.equal(run.states[2].xt, fixed.states[2].xt)


@pytest.mark.parametrize("raised", [None, RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["step", "peek", "network"])
def test_the_pipeline_is_untouched_afterwards(brightness, raised, where):
    """The same processor objects, no hooks and a run to go on with: after a normal end, an exception, an interrupt."""
    pipe = pipelines.stable_diffusion()
    own, armed = pipe.unet.attn_processors, []

    def reward(images, prompts):
        if armed and where != "network":
            raise raised
        return brightness(images, prompts)

    def stop(*_):
        if armed and where == "network":
            raise raised

    pipe.unet.up_blocks[0].register_forward_pre_hook(stop)
    hooks = lambda: (len(pipe.unet._forward_hooks), len(pipe.unet._forward_pre_hooks))
    run = dk.Sampler(
        dk.wrap(pipe), dk.EBCA(*GAMMAS) + dk.DATE(reward), num_steps=3, guidance_scale=W
    ).start(PROMPTS, seeds=[0, 1])
    run.step()
    act, before = run.peek if where == "peek" else run.step, run.state
    if raised is None:
        act()
    else:
        armed.append(1)
        with pytest.raises(type(raised)):
            act()
        assert run.state is before
    after = pipe.unet.attn_processors
    assert list(after) == list(own)
    assert all(after[name] is own[name] for name in own)
    assert hooks() == (0, 0)
    armed.clear()
    assert torch.equal(run.rewind(1).step().xt, before.xt)


def test_while_it_is_installed_only_the_context_differs(random_backbone):
    """Two processors of one sort in the network, none of them the pipeline's; self-attention is left alone."""
    sampler = dk.Sampler(random_backbone, dk.EBCA(*GAMMAS), num_steps=3)
    denoiser = sampler.denoiser(sampler.init(PROMPTS, seeds=[0, 1]))
    own = random_backbone.network.attn_processors
    with sampler.method.patch(denoiser):
        inside = random_backbone.network.attn_processors
    changed = [name for name in own if inside[name] is not own[name]]
    assert changed == [name for name in own if "attn2" in name]


def test_date_beside_it_differentiates_the_moving_context(float64_backbone):
    """grad_c h of the network as EBCA runs it, against central differences; checkpointing and micro-batches change nothing."""
    reward = pipelines.Brightness()
    make = lambda **kw: dk.Sampler(
        float64_backbone,
        dk.EBCA(*GAMMAS) + dk.DATE(reward, rho=0.5),
        num_steps=4,
        guidance_scale=W,
        **kw,
    )
    sampler = make()
    state = sampler.init(PROMPTS, seeds=[0, 1])
    look = sampler.look(state)
    along = torch.randn(
        state.c.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    with torch.no_grad():
        up, down = (
            reward(
                float64_backbone.decode(sampler.predict(state, state.c + s * 1e-4 * along).x0bar),
                PROMPTS,
            )
            for s in (1, -1)
        )
    torch.testing.assert_close(
        (look.grad * along).sum((1, 2)), (up - down) / 2e-4, rtol=1e-5, atol=1e-10
    )
    alone = sampler.replace(method=dk.DATE(reward)).look(state)
    assert (
        torch.nn.functional.cosine_similarity(alone.grad.flatten(1), look.grad.flatten(1)).max()
        < 0.999
    )
    for settings in (
        {"checkpointing": True},
        {"micro_batch": 1},
        {"micro_batch": 1, "checkpointing": True},
    ):
        torch.testing.assert_close(
            make(**settings).look(state).grad, look.grad, rtol=1e-9, atol=1e-14
        )
    _, info = make(micro_batch=1).step(state)
    torch.testing.assert_close(
        info.notes["ebca_shift"], sampler.step(state)[1].notes["ebca_shift"], rtol=1e-9, atol=1e-12
    )
    assert info.updated


@pytest.mark.parametrize("w", [1.0, W])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_context_that_overflows_names_the_sample_of_the_batch(
    random_backbone, brightness, w, micro_batch
):
    sampler = dk.Sampler(
        random_backbone,
        dk.EBCA() + dk.DATE(brightness),
        num_steps=2,
        guidance_scale=w,
        micro_batch=micro_batch,
    )
    state = sampler.init([*PROMPTS, "a dog", "a cat"], seeds=[0, 1, 2, 3])
    large = torch.tensor([1.0, 1.0, 1.0, 1e30]).view(4, 1, 1)
    state = state.replace(
        cond=state.cond.replace(sequence=large * state.c),
        cond_org=state.cond.replace(sequence=large * state.c),
    )
    with pytest.raises(
        dk.NonFiniteError,
        match=r"EBCA's context .*for sample 3 at step 0 \(t = .*\); nothing was changed",
    ):
        sampler.step(state)


def test_on_sdxl():
    """Deeper transformers, a pooled vector: the plain processors again, by the sampler's own loop."""
    pipe = families.sdxl()
    sampler = dk.Sampler(dk.wrap(pipe), dk.EBCA(*GAMMAS), num_steps=2, guidance_scale=W)
    state = sampler.init(PROMPTS, seeds=[0, 1])
    found = sampler.step(state)[1]
    carried, own = {}, [layer.processor for layer in cross(pipe.unet)]
    assert found.notes["ebca_norms"].shape == (2, len(own))
    for layer in cross(pipe.unet):
        layer.set_processor(PlainEBCA(carried, GAMMAS))
    expected = sampler.replace(method=dk.Fixed()).predict(state)
    assert off(found.x0bar_hat, expected.x0bar) <= 1e-4
    assert off(found.notes["ebca_shift"], carried["c"][2:] - state.c_org) <= 1e-4


@pytest.mark.parametrize("family", ["sd3", "flux", "pixart"])
def test_not_on_transformers(family):
    with pytest.raises(
        ValueError, match=r"cross-attention of a U-Net, and .* has none .*joint attention"
    ):
        dk.Sampler(dk.wrap(getattr(families, family)()), dk.EBCA())


def test_not_on_models_without_attention_or_with_another():
    with pytest.raises(ValueError, match=r"gaussian has none \(GaussianBackbone\)"):
        dk.Sampler(dk.load("gaussian"), dk.EBCA())
    pipe = pipelines.stable_diffusion()
    sampler = dk.Sampler(dk.wrap(pipe), dk.EBCA(), num_steps=2)
    layer = cross(pipe.unet)[1]
    own = layer.processor
    layer.set_processor(IPAdapterAttnProcessor2_0(16, 32))
    with pytest.raises(ValueError, match="IPAdapterAttnProcessor2_0"):
        sampler.replace()
    with pytest.raises(ValueError, match="take that off first"):
        sampler.start(PROMPTS, seeds=[0, 1]).step()  # an adapter that came after the sampler
    layer.set_processor(own)
    sampler.start(PROMPTS, seeds=[0, 1]).step()
    assert len(ebca.cross_attentions(sampler.backbone)) == 4


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"gamma_attn": -0.1}, ValueError, "gamma_attn must be a finite number from 0 up"),
        ({"gamma_norm": float("inf")}, ValueError, "gamma_norm must be"),
        ({"negative": "yes"}, ValueError, "negative must be True or False"),
        ({"when": 5}, TypeError, r"dk\.every\(5\)"),
    ],
)
def test_bad_settings(kwargs, error, says):
    with pytest.raises(error, match=says):
        dk.EBCA(**kwargs)


def test_defaults_are_those_of_the_method():
    assert (dk.EBCA().gamma_attn, dk.EBCA().gamma_norm, dk.EBCA().negative) == (0.01, 0.02, True)


def test_a_schedule_beyond_the_run(random_backbone):
    with pytest.raises(ValueError, match="names step 9, but a run of 5 steps ends with 4"):
        dk.Sampler(random_backbone, dk.EBCA(when=dk.steps(9)), num_steps=5)


def test_half_precision():
    """bf16 weights: the moved context is float32, near the one that float32 weights give."""
    shifts = {}
    for dtype in (torch.float32, torch.bfloat16):
        backbone = dk.wrap(pipelines.stable_diffusion().to(dtype=dtype))
        info = (
            dk.Sampler(backbone, dk.EBCA(*GAMMAS), num_steps=3, guidance_scale=W)
            .start(PROMPTS, seeds=[0, 1])
            .step()
        )
        shifts[dtype] = info.notes["ebca_shift"]
        assert shifts[dtype].dtype == torch.float32
    assert off(shifts[torch.bfloat16], shifts[torch.float32]) < 0.1
