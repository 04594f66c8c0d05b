"""Universal Guidance against a second derivation in plain autograd, and against formulas."""

from __future__ import annotations

import families
import pipelines
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from flow import FlowGaussian
from pipelines import guided, off

import datekit as dk
from datekit import noise

PROMPTS = ["a red circle", "a green star on red"]
W = 4.0


def plain_push(h, x0_of, x, alpha_bar, method):
    """eps'' - eps by the paper: one graph from xt to the loss, then gradient steps on Delta."""
    x = x.clone().requires_grad_()
    x0, loss_in_x = x0_of(x), torch.zeros_like(x)
    if method.scale:
        (loss_in_x,) = torch.autograd.grad(-h(x0).sum(), x)
    x0, delta = x0.detach(), torch.zeros_like(x)
    for _ in range(method.backward_steps):
        delta = delta.detach().requires_grad_()
        (downhill,) = torch.autograd.grad(-h(x0 + delta).sum(), delta)
        delta = delta.detach() - method.backward_rate * downhill
    forward = method.scale * (1 - alpha_bar).sqrt() * loss_in_x
    return forward - (alpha_bar / (1 - alpha_bar)).sqrt() * delta.detach()


def plain_run(pipe, state, reward, method, num_steps, w):
    """The whole sampler once more, in alpha_bar and eps, with DDIM written out: all latents."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(num_steps)
    table, v = scheduler.alphas_cumprod.double(), scheduler.config.prediction_type == "v_prediction"
    x, following, seen = state.xt, None, []

    def h(x0):
        pictures = pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample / 2 + 0.5
        return reward(pictures, PROMPTS)

    for i, t in enumerate(scheduler.timesteps):
        a = table[t].to(x)
        last = i + 1 == num_steps  # set_alpha_to_one is off
        a_next = table[0 if last else t - 1000 // num_steps].to(x)

        def eps_of(x, t=t, a=a):
            out = guided(pipe, state, x, t, w)
            return a.sqrt() * out + (1 - a).sqrt() * x if v else out

        def x0_of(x, a=a, eps_of=eps_of):
            return (x - (1 - a).sqrt() * eps_of(x)) / a.sqrt()

        for repetition in range(method.recurrence):
            if repetition:
                seeds = [noise.derived(seed, repetition, "repetition") for seed in state.seeds]
                fresh = noise.normal(seeds, i, x.shape[1:], torch.float32, purpose="recurrence")
                x = (a / a_next).sqrt() * following + (1 - a / a_next).sqrt() * fresh
            push = plain_push(h, x0_of, x, a, method)
            with torch.no_grad():
                eps = eps_of(x) + push
                x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
                following = a_next.sqrt() * x0 + (1 - a_next).sqrt() * eps
        x = following
        seen.append(x)
    return seen


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("settings", "w"), [
    ({"scale": 300.0}, W), ({"scale": 0.0, "recurrence": 3}, W),
    ({"scale": 300.0, "backward_steps": 1}, 1.0),
    ({"scale": 0.0, "backward_steps": 3, "backward_rate": 400.0}, W),
    ({"scale": 300.0, "backward_steps": 2, "backward_rate": 40.0, "recurrence": 2}, W),
])  # fmt: skip
def test_equals_the_plain_derivation(brightness, kind, settings, w):
    pipe = pipelines.stable_diffusion(kind)
    method = dk.UniversalGuidance(brightness, **settings)
    sampler = dk.Sampler(dk.wrap(pipe), method, num_steps=3, guidance_scale=w)
    run = sampler.start(PROMPTS, seeds=[0, 1])
    expected = plain_run(pipe, run.state, brightness, method, 3, w)
    found = [state.xt for state in run.finish().states[1:]]
    assert max(off(a, b) for a, b in zip(found, expected, strict=True)) <= 1e-4
    fixed = run.fork(dk.Fixed(), at=0).finish().state.xt
    assert off(run.state.xt, fixed) > 0.02  # the guidance is no rounding error


def uphill(model, reward, x0):
    """grad h at pictures x0."""
    x0 = x0.clone().requires_grad_()
    return torch.autograd.grad(reward(model.decode(x0), PROMPTS).sum(), x0)[0]


def test_forward_guidance_is_the_analytic_gradient_of_the_closed_form(target):
    """x0bar = mu + J (xt - alpha mu), J = alpha v / (alpha^2 v + sigma^2): grad_xt h = J grad h."""
    model = dk.load("gaussian")
    sampler = dk.Sampler(model, dk.UniversalGuidance(target, 7.0), num_steps=10)
    run = sampler.start(PROMPTS, seeds=[0, 1])
    for _ in range(10):
        state = run.state
        alpha, sigma = model.level(state.t)
        x0bar = model.x0bar(state.xt, state.t, state.cond_org)  # does not pass through the score
        slope = alpha * model._v[0] / (alpha**2 * model._v[0] + sigma**2)
        expected = -7.0 * sigma * slope.view(3, 8, 8) * uphill(model, target, x0bar)
        info = run.step()
        close = {"rtol": 1e-8, "atol": 1e-12}
        torch.testing.assert_close(info.extras["ug_forward"], expected, **close)
        torch.testing.assert_close(info.x0bar_hat, x0bar - sigma / alpha * expected, **close)


@pytest.mark.parametrize("recurrence", [1, 2])
def test_a_flow_is_guided_as_its_formulas_say(target, recurrence):
    """With v = eps - x0, x0bar moves by s sigma^2 / (1 - sigma) J grad h + Delta."""
    model = FlowGaussian()
    settings = {"backward_steps": 2, "backward_rate": 0.2, "recurrence": recurrence}
    sampler = dk.Sampler(model, dk.UniversalGuidance(target, 0.3, **settings))
    run = sampler.start(PROMPTS, seeds=[0, 1])
    sigmas = [run.sampler.solver.level(i)[1] for i in range(7)]
    x, cond = run.state.xt, run.state.cond_org
    assert (sigmas[0], sigmas[6]) == (1.0, 0.0)
    for i in range(6):
        sigma, after = sigmas[i], sigmas[i + 1]
        for repetition in range(recurrence if i else 1):  # at the start xt is pure noise
            if repetition:
                seeds = [noise.derived(seed, repetition, "repetition") for seed in (0, 1)]
                fresh = noise.normal(seeds, i, x.shape[1:], torch.float64, "recurrence")
                kept = (1 - sigma) / (1 - after)
                x = kept * x + (sigma**2 - kept**2 * after**2) ** 0.5 * fresh
            x0 = model.x0bar(x, sigma, cond)
            delta = 0.2 * uphill(model, target, x0)
            delta = delta + 0.2 * uphill(model, target, x0 + delta)
            gain = 0.0
            if i:
                slope = 0.3 * sigma**2 / (1 - sigma) * model.slope(sigma)
                gain = slope * uphill(model, target, x0) + delta
            x = x + (after - sigma) * (x - x0 - gain) / sigma
        torch.testing.assert_close(run.step().x0bar_hat, x0 + gain, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(run.state.xt, x, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", ["sdxl", "pixart-alpha", "sd3", "flux"])
def test_on_every_family(brightness, family):
    """Any network, any parametrisation, any solver: eps'' in one graph, the next latent from it."""
    backbone = families.backbone(family)
    settings = {"backward_steps": 1, "backward_rate": 10.0, "when": dk.steps(1)}
    method = dk.UniversalGuidance(brightness, 30.0, **settings)
    sampler = dk.Sampler(backbone, method, num_steps=4, guidance_scale=3.0)
    run = sampler.start(PROMPTS, seeds=[0, 1])
    run.step()
    state, info = run.state, run.step()
    solver = sampler.solver_for(state.xt.shape)
    alpha, sigma = solver.level(1)
    x = state.xt.clone().requires_grad_()
    x0 = sampler.predict(state, xt=x).x0bar
    in_x0, in_x = torch.autograd.grad(brightness(backbone.decode(x0), PROMPTS).sum(), (x0, x))
    expected = x0.detach() + 30.0 * sigma**2 / alpha * in_x + 10.0 * in_x0
    assert off(info.x0bar_hat, expected) < 1e-4
    assert off(info.x0bar_hat - info.x0bar, expected - x0.detach()) < 1e-2
    out = solver.out((state.xt - alpha * expected) / sigma, state.xt, 1)
    following = solver.step(out, state.xt, 1, state.solver_state, state.seeds)[0]
    assert off(run.state.xt, following) < 1e-4
    assert not torch.equal(run.state.xt, sampler.replace(method=dk.Fixed()).step(state)[0].xt)


def test_the_corrector_of_unipc_leaves_a_repeated_step_alone(target):
    """Fresh noise would be undone; diffusers' own, told not to correct that step, agrees."""
    method = dk.UniversalGuidance(target, 0.0, recurrence=2, when=dk.steps(2))
    sampler = dk.Sampler(dk.load("gaussian"), method, num_steps=5, solver="unipc")
    run, plain = sampler.start(PROMPTS, seeds=[0, 1]), sampler.replace(method=dk.Fixed())
    config = sampler.backbone.scheduler.config
    scheduler = UniPCMultistepScheduler.from_config(config, disable_corrector=[1])
    scheduler.set_timesteps(5)
    for i in range(2):
        scheduler.step(plain.predict(run.state).out, scheduler.timesteps[i], run.state.xt)
        run.step()
    state, (alpha, sigma) = run.state, sampler.solver.level(2)
    alpha_next, sigma_next = sampler.solver.level(3)
    seeds = [noise.derived(seed, 1, "repetition") for seed in state.seeds]
    fresh = noise.normal(seeds, 2, state.xt.shape[1:], torch.float64, purpose="recurrence")
    kept = alpha / alpha_next
    again = kept * plain.step(state)[0].xt + (sigma**2 - (kept * sigma_next) ** 2) ** 0.5 * fresh
    out = plain.predict(state, xt=again).out
    expected = scheduler.step(out, scheduler.timesteps[2], again, return_dict=False)[0]
    run.step()
    assert off(run.state.xt, expected) < 1e-6


def test_the_schedule_decides_and_nothing_asked_for_is_fixed(random_backbone, brightness):
    """To the bit."""
    sampler = dk.Sampler(random_backbone, num_steps=4, guidance_scale=W, eta=0.5)
    runs = []
    for scale in (0.0, 100.0):
        method = dk.UniversalGuidance(brightness, scale, when=dk.every(2))
        runs.append(sampler.replace(method=method).start(PROMPTS, seeds=[0, 1]).finish())
    idle, run = runs
    assert torch.equal(idle.state.xt, idle.fork(dk.Fixed(), at=0).finish().state.xt)
    assert not any(info.extras for info in idle.history)
    assert [bool(info.extras) for info in run.history] == [True, False, True, False]
    plain = run.fork(dk.Fixed(), at=0).step()
    torch.testing.assert_close(run.history[0].x0bar, plain.x0bar)
    assert not run.history.updated


def test_micro_batches_bound_memory_and_change_nothing(random_backbone, brightness):
    seen = []

    def watched(images, prompts):
        seen.append(len(images))
        return brightness(images, prompts)

    method = dk.UniversalGuidance(watched, 100.0, backward_steps=2)
    sampler = dk.Sampler(random_backbone, method, num_steps=4, guidance_scale=W)
    state = sampler.init([*PROMPTS, "a dog"], seeds=[0, 1, 2])
    whole = sampler.step(state)[0]
    seen.clear()
    parts = sampler.replace(micro_batch=2, checkpointing=True).step(state)[0]
    assert off(parts.xt, whole.xt) < 1e-5
    assert (max(seen), sum(seen)) == (2, 3 * 2)


def of_second(images, prompts):
    """The brightness of "b" alone."""
    chosen = torch.tensor([float(prompt == "b") for prompt in prompts])
    return images.mean((1, 2, 3)) * chosen


@pytest.mark.parametrize(("reward", "settings", "error", "says"), [
    (lambda x, p: of_second(x, p).log(), {}, dk.NonFiniteError, "gave a non-finite reward"),
    (lambda x, p: x.detach().mean((1, 2, 3)), {}, dk.RewardError, "carries no gradient"),
    (of_second, {"scale": 1e30}, dk.NonFiniteError, "too large for sample 1"),
    (of_second, {"scale": 0.0, "backward_steps": 1, "backward_rate": 1e30}, dk.NonFiniteError,
     "too large for sample 1"),
])  # fmt: skip
@pytest.mark.parametrize("step", [1, 3])
def test_what_cannot_guide_says_so_and_loses_nothing(
    random_backbone, reward, settings, error, says, step
):
    """At its own step, the last one too: finite in float32 is not enough, norms square it."""
    method = dk.UniversalGuidance(reward, **settings, recurrence=2, when=dk.steps(step))
    sampler = dk.Sampler(random_backbone, method, num_steps=4, guidance_scale=W, micro_batch=1)
    run = sampler.start(["a", "b"], seeds=[0, 1])
    run.step(step)
    before = run.state
    with pytest.raises(error, match=says):
        run.finish()
    assert run.state is before


def test_gradient_still_passes_through_a_guided_step(random_backbone, brightness):
    """The guidance is a constant to it: the derivative of the next latent is the plain step's."""
    method = dk.UniversalGuidance(brightness, 50.0)
    sampler = dk.Sampler(random_backbone, method, num_steps=4, guidance_scale=W)
    state = sampler.init(PROMPTS, seeds=[0, 1])
    slopes = []
    for each in (sampler, sampler.replace(method=dk.Fixed())):
        xt = state.xt.clone().requires_grad_()
        slopes.append(torch.autograd.grad(each.step(state.replace(xt=xt))[0].xt.sum(), xt)[0])
    assert slopes[1].any()
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-6)
