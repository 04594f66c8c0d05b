"""DATE against a second derivation of the update, written from the formulas with plain autograd."""

from __future__ import annotations

import pipelines
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import datekit as dk
from datekit.types import norm, unit

W, STEPS = 4.0, 8


def plain_h(pipe, reward, prompts, xt, t, c, out_u, w):
    """h_t(xt, c) = h(decode(x0bar(xt, c))), one graph from c to h, no library code."""
    alpha_bar = pipe.scheduler.alphas_cumprod[t].to(xt.dtype)
    out_c = pipe.unet(xt, t, encoder_hidden_states=c).sample
    out = out_u + w * (out_c - out_u)
    if pipe.scheduler.config.prediction_type == "epsilon":
        x0bar = (xt - (1 - alpha_bar).sqrt() * out) / alpha_bar.sqrt()
    else:
        x0bar = alpha_bar.sqrt() * xt - (1 - alpha_bar).sqrt() * out
    return reward(pipe.vae.decode(x0bar / pipe.vae.config.scaling_factor).sample / 2 + 0.5, prompts)


def plain_date(pipe, reward, prompts, xt, steps, rho, anchor, inner_steps, updates, w):
    """The whole sampler once more: embeddings after each step and the final latent."""

    def ids(texts):
        return pipe.tokenizer(
            texts, padding="max_length", max_length=16, return_tensors="pt"
        ).input_ids

    c_org, c_u = (
        pipe.text_encoder(ids(texts))[0].detach() for texts in (prompts, [""] * len(prompts))
    )
    pipe.scheduler.set_timesteps(steps)
    c, seen = c_org, []
    for i, t in enumerate(pipe.scheduler.timesteps):
        out_u = pipe.unet(xt, t, encoder_hidden_states=c_u).sample.detach()
        for _ in range(inner_steps if i in updates else 0):
            at = (c_org if anchor == "original" else c).clone().requires_grad_()
            plain_h(pipe, reward, prompts, xt, t, at, out_u, w).sum().backward()
            g = at.grad / at.grad.flatten(1).norm(dim=1)[:, None, None]
            c = (c if anchor == "running" else c_org) + rho * g
        seen.append(c)
        with torch.no_grad():
            out = out_u + w * (pipe.unet(xt, t, encoder_hidden_states=c).sample - out_u)
            xt = pipe.scheduler.step(out, t, xt).prev_sample
    return seen, xt


@pytest.mark.parametrize("anchor", ["original", "running", "reset"])
@pytest.mark.parametrize(("inner_steps", "w"), [(1, W), (3, W), (1, 1.0)])
def test_equals_the_plain_derivation(backbone, reward, brightness, prompts, anchor, inner_steps, w):
    h = reward if backbone.name == "shapes" else brightness
    steps, updates = STEPS, [0, 3, 6]
    if (
        backbone.name == "shapes"
    ):  # in double precision: repeated updates on a trained network amplify the rounding of single
        backbone, prompts, steps, updates = (
            dk.load("shapes", device="cpu", dtype=torch.float64),
            prompts[:2],
            4,
            [0, 3],
        )
    method = dk.DATE(h, rho=0.4, when=dk.every(3), anchor=anchor, inner_steps=inner_steps)
    run = dk.Sampler(backbone, method, num_steps=steps, guidance_scale=w).start(
        prompts, seeds=[0, 1, 2][: len(prompts)]
    )
    start = run.state.xt
    run.finish()
    seen, xt = plain_date(
        backbone.pipe, h, prompts, start, steps, 0.4, anchor, inner_steps, updates, w
    )
    c_org = run.state.c_org
    for info, c in zip(run.history, seen, strict=True):
        assert ((info.c - c).norm() / (c - c_org).norm()).item() <= 1e-4, f"step {info.i}"
    assert ((run.state.xt - xt).norm() / xt.norm()).item() <= 1e-4
    assert run.history.updated == updates


@pytest.mark.parametrize("anchor", ["original", "running", "reset"])
def test_rho_zero_is_fixed_bit_for_bit(backbone, reward, brightness, prompts, anchor):
    h = reward if backbone.name == "shapes" else brightness

    def make(method):
        return (
            dk.Sampler(backbone, method, num_steps=6, guidance_scale=W)
            .start(prompts, seeds=[0, 1, 2])
            .finish()
        )

    date, fixed = make(dk.DATE(h, rho=0.0, anchor=anchor)), make(dk.Fixed())
    assert torch.equal(date.state.xt, fixed.state.xt)
    assert torch.equal(date.state.c, date.state.c_org)
    assert not any(info.updated for info in date.history)


@given(rho=st.floats(1e-3, 30), seed=st.integers(0, 2**40))
def test_the_embedding_moves_by_rho_per_sample(random_backbone, brightness, prompts, rho, seed):
    sampler = dk.Sampler(
        random_backbone, dk.DATE(brightness, rho=rho), num_steps=50, guidance_scale=W
    )
    run = sampler.start(prompts, seeds=[seed, seed + 1, seed + 2])
    info = run.step()
    torch.testing.assert_close(info.distance, torch.full((3,), rho), rtol=1e-4, atol=2e-6)
    assert info.updated
    torch.testing.assert_close(info.direction.flatten(1).norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("w", [1.0, 4.0])
def test_gradient_equals_central_differences(float64_backbone, prompts, w):
    """grad_c h_t in float64, along random directions of the embedding."""
    sampler = dk.Sampler(
        float64_backbone, dk.DATE(pipelines.Brightness()), num_steps=10, guidance_scale=w
    )
    run = sampler.start(prompts, seeds=[0, 1, 2])
    for at in (0, 6):
        if at:
            run.step(at)
        look, state = run.peek(), run.state

        def h(c, state=state):
            return pipelines.Brightness()(
                float64_backbone.decode(sampler.predict(state, c).x0bar), prompts
            )

        for seed in range(3):
            v = torch.randn(
                state.c.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            step = 1e-4
            numeric = (h(state.c_org + step * v) - h(state.c_org - step * v)) / (2 * step)
            exact = (look.grad * v).flatten(1).sum(1)
            torch.testing.assert_close(exact, numeric, rtol=1e-5, atol=1e-11)


def test_the_two_halves_are_the_chain_rule(float64_backbone, prompts):
    """grad_{x0bar} h by central differences; its pull-back equals the gradient in one graph."""
    h = pipelines.Brightness()
    sampler = dk.Sampler(float64_backbone, dk.DATE(h), num_steps=10, guidance_scale=W)
    state = sampler.init(prompts, seeds=[0, 1, 2])
    look = dk.Run(sampler, state).peek()
    v = torch.randn(
        look.x0bar.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )

    def score(x):
        return h(float64_backbone.decode(x), prompts)

    numeric = (score(look.x0bar + 1e-5 * v) - score(look.x0bar - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(
        (look.grad_x0bar * v).flatten(1).sum(1), numeric, rtol=1e-6, atol=1e-11
    )
    c = state.c.clone().requires_grad_()
    (whole,) = torch.autograd.grad(score(sampler.predict(state, c).x0bar).sum(), c)
    torch.testing.assert_close(look.grad, whole, rtol=1e-10, atol=1e-14)


def test_without_conditional_weight_the_gradient_is_zero(random_backbone, brightness, prompts):
    info = (
        dk.Sampler(random_backbone, dk.DATE(brightness), num_steps=3, guidance_scale=0.0)
        .start(prompts, seeds=[0, 1, 2])
        .step()
    )
    assert info.zero_gradient.all()
    assert not info.updated


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({"micro_batch": 1}, [1, 1, 1]),
        ({"micro_batch": 2}, [2, 1]),
        ({"micro_batch": 5}, [3]),
        ({"decode_batch": 2}, [2, 1]),
        ({"checkpointing": True, "keep_graph": False}, [3]),
    ],
)
def test_memory_options_change_no_result(backbone, reward, brightness, prompts, options, batches):
    h = reward if backbone.name == "shapes" else brightness
    asked = []

    def make(**kw):
        return (
            dk.Sampler(
                backbone,
                dk.DATE(lambda x, p: (asked.append(len(x)), h(x, p))[1], rho=0.5),
                num_steps=6,
                guidance_scale=W,
                **kw,
            )
            .start(prompts, seeds=[0, 1, 2])
            .step()
        )

    plain, _ = make(), asked.clear()
    other = make(**options)
    assert asked == batches
    torch.testing.assert_close(other.h, plain.h)
    torch.testing.assert_close(other.direction, plain.direction, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(other.c, plain.c, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("anchor", "between"),
    [(a, b) for a in ("original", "running", "reset") for b in ("hold", "revert")],
)
def test_between_updates(random_backbone, brightness, prompts, anchor, between):
    method = dk.DATE(brightness, rho=0.5, when=dk.steps(1, 3), anchor=anchor, between=between)
    run = (
        dk.Sampler(random_backbone, method, num_steps=5, guidance_scale=W)
        .start(prompts, seeds=[0, 1, 2])
        .finish()
    )
    c = [info.c for info in run.history]
    c_org = run.state.c_org
    assert torch.equal(c[0], c_org)
    assert not torch.equal(c[1], c_org)
    assert torch.equal(c[2], c[1] if between == "hold" else c_org)
    far = run.history[3].distance
    assert (
        (far > 0.5001).all()
        if (anchor, between) == ("running", "hold")
        else torch.allclose(far, torch.full((3,), 0.5))
    )


def test_random_direction(random_backbone, prompts):
    def make(p, s):
        return dk.Sampler(
            random_backbone, dk.RandomDirection(0.7, when=dk.every(2)), num_steps=4
        ).start(p, seeds=s)

    run = make(prompts, [0, 1, 2])
    run.finish()
    torch.testing.assert_close(
        run.history.stack("distance"), torch.full((4, 3), 0.7), rtol=1e-5, atol=1e-5
    )
    moved = [info.c - run.state.c_org for info in run.history]
    assert torch.equal(moved[0], moved[1])
    cosine = torch.nn.functional.cosine_similarity(moved[0].flatten(1), moved[2].flatten(1))
    assert (cosine.abs() < 0.2).all()  # 512 dimensions: standard deviation 0.044
    alone = make(prompts[1:2], [1]).step()
    assert torch.equal(alone.c[0], run.history[0].c[1])


def test_zero_gradient_moves_nothing_and_says_so(random_backbone, prompts):
    def half_blind(images, texts):
        weight = torch.tensor([0.0, 1.0, 1.0])
        return (images.mean((1, 2, 3)) * weight) ** 2

    run = dk.Sampler(random_backbone, dk.DATE(half_blind, rho=0.5), num_steps=3).start(
        prompts, seeds=[0, 1, 2]
    )
    info = run.step()
    assert info.zero_gradient.tolist() == [True, False, False]
    assert torch.equal(info.c[0], run.state.c_org[0])
    torch.testing.assert_close(info.distance, torch.tensor([0.0, 0.5, 0.5]), rtol=1e-4, atol=1e-6)
    assert info.updated
    run.step(1)
    torch.testing.assert_close(
        run.history[1].distance, torch.tensor([0.0, 0.5, 0.5]), rtol=1e-4, atol=1e-6
    )
    still = dk.Sampler(
        random_backbone, dk.DATE(lambda x, p: 0 * x.sum((1, 2, 3)), rho=0.5), num_steps=3
    )
    info = still.start(prompts, seeds=[0, 1, 2]).step()
    assert not info.updated
    assert info.zero_gradient.all()


@pytest.mark.parametrize("anchor", ["original", "running", "reset"])
def test_zero_gradient_keeps_what_an_earlier_update_found(random_backbone, prompts, anchor):
    """The first step moves every sample, the second finds no gradient:

    nothing may move, back to c_org least of all.
    """
    asked = []

    def once(images, texts):
        asked.append(1)
        return images.mean((1, 2, 3)) ** 2 * (len(asked) == 1)

    run = dk.Sampler(random_backbone, dk.DATE(once, rho=0.5, anchor=anchor), num_steps=3).start(
        prompts, seeds=[0, 1, 2]
    )
    first, second = run.step(), run.step()
    assert first.updated
    assert not second.updated
    assert second.zero_gradient.all()
    assert torch.equal(second.c, first.c)


@given(st.integers(-150, 150))
def test_unit_survives_tiny_and_huge_gradients(exponent):
    grad = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grad[1] = 0
    direction = unit(grad * 10.0**exponent)
    torch.testing.assert_close(direction[0], grad[0] / grad[0].norm())
    assert not direction[1].any()
    torch.testing.assert_close(
        norm(grad * 10.0**exponent), grad.flatten(1).norm(dim=1) * 10.0**exponent
    )


def test_small_rho_raises_the_reward_by_rho_times_the_gradient(shapes, reward, prompts):
    run = dk.Sampler(shapes, dk.DATE(reward, rho=1e-2), num_steps=20).start(
        prompts, seeds=[0, 1, 2]
    )
    run.step(8)
    look, state = run.peek(), run.state
    c = state.c_org + 1e-2 * look.direction
    with torch.no_grad():
        after = reward(shapes.decode(run.sampler.predict(state, c).x0bar), prompts)
    torch.testing.assert_close(after - look.h, 1e-2 * look.grad_norm, rtol=0.1, atol=2e-6)


def test_half_precision_still_moves_by_rho(prompts, brightness):
    """bf16 weights, float32 embedding and reward:

    a small update is not rounded away, and points where float32's does.
    """
    looks = {}
    for dtype in (torch.float32, torch.bfloat16):
        backbone = dk.wrap(pipelines.stable_diffusion().to(dtype=dtype))
        sampler = dk.Sampler(
            backbone, dk.DATE(brightness, rho=1e-3), num_steps=10, guidance_scale=W
        )
        info = looks[dtype] = sampler.start(prompts, seeds=[0, 1, 2]).step()
        assert backbone.dtype == dtype
        assert info.c.dtype == info.x0bar.dtype == info.grad.dtype == torch.float32
        torch.testing.assert_close(info.distance, torch.full((3,), 1e-3), rtol=1e-3, atol=0)
        moved = info.c - sampler.init(prompts, seeds=[0, 1, 2]).c_org
        assert (
            torch.nn.functional.cosine_similarity(moved.flatten(1), info.direction.flatten(1))
            > 0.9999
        ).all()
    cosine = torch.nn.functional.cosine_similarity(*(looks[d].direction.flatten(1) for d in looks))
    assert (cosine > 0.98).all()


def test_predictions_can_be_differentiated_also_after_a_look(float64_backbone, prompts):
    """A Jacobian-vector product through a used denoiser, against central differences."""
    sampler = dk.Sampler(
        float64_backbone, dk.DATE(pipelines.Brightness()), num_steps=10, guidance_scale=W
    )
    state = sampler.init(prompts, seeds=[0, 1, 2])
    denoiser = sampler.denoiser(state)
    denoiser.value_and_grad(pipelines.Brightness())

    def f(c):
        return denoiser.predict(state.cond.replace(sequence=c)).x0bar

    v = torch.randn(state.c.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, exact = torch.func.jvp(f, (state.c,), (v,))
    torch.testing.assert_close(
        exact, (f(state.c + 1e-4 * v) - f(state.c - 1e-4 * v)) / 2e-4, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("option", [{"checkpointing": True}, {"keep_graph": False}])
def test_what_waits_for_backward(random_backbone, brightness, prompts, option):
    """Bytes that autograd holds at most, by hooks: each option lowers them and is undone after."""

    def peak(**options) -> int:
        live = {"now": 0, "peak": 0}

        class Held:
            def __init__(self, tensor):
                self.tensor, self.size = tensor.detach(), tensor.numel() * tensor.element_size()
                live["now"] += self.size
                live["peak"] = max(live.values())

            def __del__(self):
                live["now"] -= self.size

        run = dk.Sampler(random_backbone, dk.DATE(brightness), num_steps=3, **options).start(
            prompts, seeds=[0, 1, 2]
        )
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            run.peek()
        assert live["now"] == 0
        return live["peak"]

    assert peak(**option) < 0.9 * peak()
    modules = [m for m in random_backbone.pipe.components.values() if hasattr(m, "parameters")]
    assert not random_backbone.pipe.unet.is_gradient_checkpointing
    assert not random_backbone.pipe.vae.is_gradient_checkpointing
    assert not [p for m in modules for p in m.parameters() if p.requires_grad or p.grad is not None]
