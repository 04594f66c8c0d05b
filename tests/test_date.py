"""DATE against a second derivation of the update, written from the formulas with plain autograd."""

from __future__ import annotations

import pipelines
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import datekit as dk
from datekit.tensors import norm, unit

W, STEPS, SEEDS = 4.0, 8, [0, 1, 2]
ANCHORS, BRIGHTNESS = ("original", "running", "reset"), pipelines.Brightness()


def normal(shape, seed: int) -> torch.Tensor:
    """Standard normal numbers in double precision."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


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

    def encode(texts):
        ids = pipe.tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")
        return pipe.text_encoder(ids.input_ids)[0].detach()

    c_org, c_u = encode(prompts), encode([""] * len(prompts))
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


@pytest.mark.parametrize(("anchor", "inner_steps", "w"), [
    *((anchor, 1, w) for anchor in ANCHORS for w in (W, 1.0)), ("running", 3, W), ("reset", 3, W),
])  # fmt: skip
def test_equals_the_plain_derivation(backbone, reward, brightness, prompts, anchor, inner_steps, w):
    """On the trained network in double: there repeated updates amplify the rounding of single."""
    h, steps, updates = brightness, STEPS, [0, 3, 6]
    if backbone.name == "shapes":
        backbone = dk.load("shapes", device="cpu", dtype=torch.float64)
        h, steps, updates, prompts = reward, 4, [0, 3], prompts[:2]
    method = dk.DATE(h, rho=0.4, when=dk.every(3), anchor=anchor, inner_steps=inner_steps)
    sampler = dk.Sampler(backbone, method, num_steps=steps, guidance_scale=w)
    run = sampler.start(prompts, seeds=SEEDS[: len(prompts)])
    options = (steps, 0.4, anchor, inner_steps, updates, w)
    seen, xt = plain_date(backbone.pipe, h, prompts, run.state.xt, *options)
    c_org = run.finish().state.c_org
    for info, c in zip(run.history, seen, strict=True):
        assert ((info.c - c).norm() / (c - c_org).norm()).item() <= 1e-4, f"step {info.i}"
    assert ((run.state.xt - xt).norm() / xt.norm()).item() <= 1e-4
    assert run.history.updated == updates


@pytest.mark.parametrize("anchor", ANCHORS)
def test_rho_zero_is_fixed_bit_for_bit(backbone, reward, brightness, prompts, anchor):
    h = reward if backbone.name == "shapes" else brightness
    sampler = dk.Sampler(backbone, num_steps=6, guidance_scale=W)
    fixed = sampler.start(prompts, seeds=SEEDS).finish()
    date = fixed.fork(dk.DATE(h, rho=0.0, anchor=anchor), at=0).finish()
    assert torch.equal(date.state.xt, fixed.state.xt)
    assert torch.equal(date.state.c, date.state.c_org)
    assert not any(info.updated for info in date.history)


@given(rho=st.floats(1e-3, 30), seed=st.integers(0, 2**40))
def test_the_embedding_moves_by_rho_per_sample(random_backbone, brightness, prompts, rho, seed):
    sampler = dk.Sampler(random_backbone, dk.DATE(brightness, rho), num_steps=50, guidance_scale=W)
    info = sampler.start(prompts, seeds=[seed, seed + 1, seed + 2]).step()
    torch.testing.assert_close(info.distance, torch.full((3,), rho), rtol=1e-4, atol=2e-6)
    assert info.updated
    torch.testing.assert_close(info.direction.flatten(1).norm(dim=1), torch.ones(3))


def in_double(backbone, w=W):
    """A sampler for finite differences, and a function of c that gives the reward at a state."""
    sampler = dk.Sampler(backbone, dk.DATE(BRIGHTNESS), num_steps=10, guidance_scale=w)

    def h(state, c):
        return BRIGHTNESS(backbone.decode(sampler.predict(state, c).x0bar), state.prompts)

    return sampler, h


@pytest.mark.parametrize("w", [1.0, 4.0])
def test_gradient_equals_central_differences(float64_backbone, prompts, w):
    """grad_c h_t in float64, along random directions of the embedding, early and late."""
    sampler, h = in_double(float64_backbone, w)
    run = sampler.start(prompts, seeds=SEEDS)
    for steps in (0, 6):
        if steps:
            run.step(steps)
        look, state, step = run.peek(), run.state, 1e-4
        for seed in range(3):
            v = normal(state.c.shape, seed)
            above, below = h(state, state.c_org + step * v), h(state, state.c_org - step * v)
            exact = (look.grad * v).flatten(1).sum(1)
            torch.testing.assert_close(exact, (above - below) / (2 * step), rtol=1e-5, atol=1e-11)


def test_the_two_halves_are_the_chain_rule(float64_backbone, prompts):
    """grad_{x0bar} h by central differences; its pull-back equals the gradient in one graph."""
    sampler, h = in_double(float64_backbone)
    state = sampler.init(prompts, seeds=SEEDS)
    look = dk.Run(sampler, state).peek()
    v, step = normal(look.x0bar.shape, 1), 1e-5
    above, below = (
        BRIGHTNESS(float64_backbone.decode(look.x0bar + sign * step * v), prompts)
        for sign in (1, -1)
    )
    exact = (look.grad_x0bar * v).flatten(1).sum(1)
    torch.testing.assert_close(exact, (above - below) / (2 * step), rtol=1e-6, atol=1e-11)
    c = state.c.clone().requires_grad_()
    (whole,) = torch.autograd.grad(h(state, c).sum(), c)
    torch.testing.assert_close(look.grad, whole, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("between", ["hold", "revert"])
@pytest.mark.parametrize("anchor", ANCHORS)
def test_between_updates(random_backbone, brightness, prompts, anchor, between):
    method = dk.DATE(brightness, rho=0.5, when=dk.steps(1, 3), anchor=anchor, between=between)
    sampler = dk.Sampler(random_backbone, method, num_steps=5, guidance_scale=W)
    run = sampler.start(prompts, seeds=SEEDS).finish()
    c, c_org = [info.c for info in run.history], run.state.c_org
    assert torch.equal(c[0], c_org)
    assert not torch.equal(c[1], c_org)
    assert torch.equal(c[2], c[1] if between == "hold" else c_org)
    far = run.history[3].distance
    if (anchor, between) == ("running", "hold"):
        assert (far > 0.5001).all()
    else:
        torch.testing.assert_close(far, torch.full((3,), 0.5), rtol=1e-4, atol=0)


def test_random_direction(random_backbone, prompts):
    method = dk.RandomDirection(0.7, when=dk.every(2))
    sampler = dk.Sampler(random_backbone, method, num_steps=4)
    run = sampler.start(prompts, seeds=SEEDS).finish()
    far = run.history.stack("distance")
    torch.testing.assert_close(far, torch.full((4, 3), 0.7), rtol=1e-5, atol=1e-5)
    moved = [info.c - run.state.c_org for info in run.history]
    assert torch.equal(moved[0], moved[1])
    cosine = torch.cosine_similarity(moved[0].flatten(1), moved[2].flatten(1))
    assert (cosine.abs() < 0.2).all()  # 512 dimensions: standard deviation 0.044
    alone = sampler.start(prompts[1:2], seeds=[1]).step()
    assert torch.equal(alone.c[0], run.history[0].c[1])


def test_zero_gradient_moves_nothing(random_backbone, prompts):
    """Of one sample, that sample alone; of all, nothing is updated."""
    for weight in ([0.0, 1.0, 1.0], [0.0, 0.0, 0.0]):
        weight = torch.tensor(weight)
        method = dk.DATE(lambda x, p, weight=weight: (x.mean((1, 2, 3)) * weight) ** 2, rho=0.5)
        run = dk.Sampler(random_backbone, method, num_steps=3).start(prompts, seeds=SEEDS)
        run.step(2)
        for info in run.history:
            assert torch.equal(info.c[0], run.state.c_org[0])
            torch.testing.assert_close(info.distance, 0.5 * weight, rtol=1e-4, atol=1e-6)
            assert info.updated == bool(weight.any())


@pytest.mark.parametrize("anchor", ANCHORS)
def test_zero_gradient_keeps_what_an_earlier_update_found(random_backbone, prompts, anchor):
    """The first step moves every sample; the second moves none, back to c_org least of all."""
    asked = []

    def once(images, texts):
        asked.append(1)
        return images.mean((1, 2, 3)) ** 2 * (len(asked) == 1)

    sampler = dk.Sampler(random_backbone, dk.DATE(once, rho=0.5, anchor=anchor), num_steps=3)
    run = sampler.start(prompts, seeds=SEEDS)
    first, second = run.step(), run.step()
    assert (first.updated, second.updated) == (True, False)
    assert torch.equal(second.c, first.c)


@given(st.integers(-150, 150))
def test_unit_survives_tiny_and_huge_gradients(exponent):
    grad = normal((2, 3, 4), 0)
    grad[1] = 0
    direction = unit(grad * 10.0**exponent)
    torch.testing.assert_close(direction[0], grad[0] / grad[0].norm())
    assert not direction[1].any()
    expected = grad.flatten(1).norm(dim=1) * 10.0**exponent
    torch.testing.assert_close(norm(grad * 10.0**exponent), expected)


def test_half_precision_still_moves_by_rho(prompts, brightness):
    """bf16 weights: a small update is not rounded away, and points where float32's does."""
    directions, noise = [], dk.noise.initial(SEEDS, (4, 16, 16), torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        backbone = dk.wrap(pipelines.stable_diffusion().to(dtype=dtype))
        method = dk.DATE(brightness, rho=1e-3)
        sampler = dk.Sampler(backbone, method, num_steps=10, guidance_scale=W)
        run = sampler.start(prompts, seeds=SEEDS, latents=noise)  # torch < 2.12 draws other bf16
        info, moved = run.step(), (run.state.c - run.state.c_org).flatten(1)
        directions.append(info.direction.flatten(1))
        assert backbone.dtype == dtype
        assert info.c.dtype == info.x0bar.dtype == info.grad.dtype == torch.float32
        torch.testing.assert_close(info.distance, torch.full((3,), 1e-3), rtol=1e-3, atol=0)
        assert (torch.cosine_similarity(moved, directions[-1]) > 0.9999).all()
    assert (torch.cosine_similarity(*directions) > 0.98).all()


def test_predictions_can_be_differentiated_also_after_a_look(float64_backbone, prompts):
    """A Jacobian-vector product through a used denoiser, against central differences."""
    sampler, _ = in_double(float64_backbone)
    state = sampler.init(prompts, seeds=SEEDS)
    denoiser = sampler.denoiser(state)
    denoiser.value_and_grad(BRIGHTNESS)

    def x0bar(c):
        return denoiser.predict(state.cond.replace(sequence=c)).x0bar

    v = normal(state.c.shape, 0)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, exact = torch.func.jvp(x0bar, (state.c,), (v,))
    numeric = (x0bar(state.c + 1e-4 * v) - x0bar(state.c - 1e-4 * v)) / 2e-4
    torch.testing.assert_close(exact, numeric, rtol=1e-5, atol=1e-7)
