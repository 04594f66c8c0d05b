"""FlowEdit against an independent derivation on a closed-form flow, and on small random models."""

from __future__ import annotations

import families
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from flow import FlowGaussian
from soft import soft
from test_editing import pictures

import datekit as dk
from datekit import editing, noise

SOURCE, TARGET, STEPS = ["a cat", "a green dog"], ["a small fox", "two birds"], 6


@pytest.fixture(scope="module")
def flow():
    return FlowGaussian()


def begin(backbone, method=None, source=SOURCE, target=TARGET, **settings):
    settings = {"num_steps": 5, "n_max": 4, "seeds": [0, 1]} | settings
    return editing.flowedit(backbone, pictures(backbone), source, target, method, **settings)


def drawn(state, i, k, seeds):
    shape, dtype = state.shape[1:], state.dtype
    return noise.normal(seeds, i, shape, dtype, purpose=f"flowedit {k}")


def by_hand(flow, w_source, w_target, n_max, n_min, n_avg, seeds):
    """FlowEdit's Algorithm 1: velocities of the model, levels of diffusers' scheduler."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    scheduler.set_timesteps(STEPS)
    sigmas, ts = scheduler.sigmas.double(), scheduler.timesteps
    source, target, empty = flow.encode(SOURCE), flow.encode(TARGET), flow.encode(["", ""])

    def velocity(x, i, cond, w):
        uncond = flow.predict(x, ts[i].item(), empty)
        return uncond + w * (flow.predict(x, ts[i].item(), cond) - uncond)

    def noised(i, k):
        return (1 - sigmas[i]) * x_src + sigmas[i] * drawn(x_src, i, k, seeds)

    x_src = flow.encode_images(pictures(flow))
    z = x_src.clone()
    for i in range(STEPS - n_max, STEPS - n_min):
        total = torch.zeros_like(z)
        for k in range(n_avg):
            zs = noised(i, k)
            total += velocity(z + zs - x_src, i, target, w_target)
            total -= velocity(zs, i, source, w_source)
        z = z + (sigmas[i + 1] - sigmas[i]) * total / n_avg
    x = z + noised(STEPS - n_min, 0) - x_src if n_min else z
    for i in range(STEPS - n_min, STEPS):
        x = x + (sigmas[i + 1] - sigmas[i]) * velocity(x, i, target, w_target)
    return x


@pytest.mark.parametrize(("n_min", "n_avg"), [(0, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("w", [(3.5, 13.5), (0.0, 1.0)])
def test_flowedit_is_the_algorithm(flow, n_min, n_avg, w):
    scales = {"source_guidance_scale": w[0], "guidance_scale": w[1], "seeds": [5, 6]}
    run = begin(flow, num_steps=STEPS, n_min=n_min, n_avg=n_avg, **scales)
    assert run.state.i == STEPS - 4
    expected = by_hand(flow, *w, 4, n_min, n_avg, [5, 6])
    # the scheduler's levels and its own steps are float32
    torch.testing.assert_close(run.finish().state.xt, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sd3", "flux-schnell"])
def test_with_the_source_as_target_nothing_changes(name):
    backbone = families.backbone(name)
    scales = {"source_guidance_scale": 3.0, "guidance_scale": 3.0}
    run = begin(backbone, target=SOURCE, n_avg=2, **scales)
    for _ in run:
        assert (run.state.xt - backbone.encode_images(pictures(backbone))).abs().max() <= 1e-5
    assert (begin(backbone).finish().state.xt - run.state.xt).abs().max() > 1e-2


def test_what_a_method_sees_is_the_targets_mean_prediction(flow):
    """x0bar = zt - sigma v_target(zt), h and its gradient there, and an update of length rho."""
    reward = dk.rewards.load("target")
    scales = {"guidance_scale": 2.0, "source_guidance_scale": 1.0, "seeds": [5, 6]}
    run = begin(flow, dk.DATE(reward, rho=0.5), num_steps=STEPS, n_avg=2, **scales)
    seen, before, sigma = run.peek(), run.state, run.sampler.solver.level(2)[1]
    x_src = before.extras["x_src"]
    zt = before.xt + (1 - sigma) * x_src + sigma * drawn(x_src, 2, 0, [5, 6]) - x_src

    def x0bar(c):
        uncond = flow.predict(zt, before.t, flow.encode(["", ""]))
        out = flow.predict(zt, before.t, before.cond.replace(sequence=c))
        return zt - sigma * (uncond + 2 * (out - uncond))

    leaf = before.c.clone().requires_grad_()
    h = reward(flow.decode(x0bar(leaf)), run.prompts)
    (grad,) = torch.autograd.grad(h.sum(), leaf)
    torch.testing.assert_close(seen.x0bar, x0bar(before.c), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(seen.h, h.detach())
    torch.testing.assert_close(seen.grad, grad, rtol=1e-5, atol=1e-8)
    info = run.step()
    moved = before.c + 0.5 * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1)
    torch.testing.assert_close(info.c, moved, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(info.xt, zt)
    assert torch.equal(info.extras["z"], before.xt)
    change = (run.sampler.solver.level(3)[1] - sigma) * info.extras["velocity"]
    torch.testing.assert_close(run.state.xt, before.xt + change)
    z = before.xt.clone().requires_grad_()
    following, _ = run.sampler.step(before.replace(xt=z))
    assert torch.autograd.grad(following.xt.sum(), z)[0].abs().sum() > 0


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_methods_act_and_a_look_or_a_fork_changes_nothing(name, brightness):
    backbone, settings = families.backbone(name), {"n_min": 2, "n_avg": 2}
    plain = begin(backbone, **settings).finish().state.xt
    pushed = dk.UniversalGuidance(brightness, scale=1.0, backward_steps=1)
    for method in (dk.DATE(brightness, rho=1.0, anchor="running"), pushed):
        whole, part = (begin(backbone, method, **settings) for _ in range(2))
        assert not torch.equal(whole.finish().state.xt, plain)
        part.peek(brightness)
        part.step(2)
        assert torch.equal(part.fork(dk.Fixed(), at=1).finish().state.xt, plain)
        assert torch.equal(part.finish().state.xt, whole.state.xt)
    still = begin(backbone, dk.DATE(brightness, rho=0.0), **settings)
    assert torch.equal(still.finish().state.xt, plain)
    with pytest.raises(ValueError, match="n_min cannot change"):
        still.fork(n_min=0)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_an_edit_does_not_depend_on_its_batch(name):
    backbone, settings = families.backbone(name), {"num_steps": 5, "n_max": 4, "n_avg": 2}
    together = begin(backbone, seeds=[3, 4], **settings).finish().state.xt
    texts = pictures(backbone)[1:], SOURCE[1], TARGET[1]
    alone = editing.flowedit(backbone, *texts, seeds=[4], **settings).finish().state.xt
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("patch_source", [True, False])
def test_soft_tokens_act_on_both_velocities_or_on_the_targets(patch_source):
    """z moves by (sigma' - sigma) (v_target - v_source), by default both with the tokens."""
    backbone, method = families.backbone("sd3"), dk.SoftREPA(soft((0, 1), 32, time=False))
    own = {"guidance_scale": 3.0, "source_guidance_scale": 2.0, "patch_source": patch_source}
    run = begin(backbone, method, **own)
    assert run.sampler.describe()["patch_source"] == patch_source
    state, (sigma, after) = run.state, [run.sampler.solver.level(i)[1] for i in (1, 2)]
    x_src, target = state.extras["x_src"], backbone.encode(TARGET)
    zs = (1 - sigma) * x_src + sigma * drawn(x_src, 1, 0, [0, 1])
    plain = dk.Sampler(backbone, num_steps=5, guidance_scale=2.0, solver="euler")
    tokens = plain.replace(method=method, guidance_scale=3.0)
    with torch.no_grad():
        v_target = tokens.predict(state.replace(xt=zs, cond=target)).out
        of_source = plain.replace(method=method) if patch_source else plain
        v_source = of_source.predict(state.replace(xt=zs, cond=state.extras["source"])).out
    run.step()
    expected = x_src + (after - sigma) * (v_target - v_source)
    torch.testing.assert_close(run.state.xt, expected, rtol=1e-5, atol=1e-5)
    before = begin(backbone).finish().state.xt
    assert (run.finish().state.xt - before).abs().max() > 1e-3


def test_bad_input_is_refused(flow, brightness):
    for backbone, settings, said in (
        (families.backbone("sd"), {}, r"FlowEdit takes Euler steps of a flow model|solver"),
        (flow, {"n_min": 2, "n_max": 2}, "n_min < n_max <= num_steps"),
        (flow, {"n_avg": 0}, "n_avg must be a whole number"),
        (flow, {"source": ["a", "b", "c"]}, "3 prompts need 3 seeds, got 2"),
        (families.backbone("sd3"), {"solver": "dpm++"}, "FlowEdit takes Euler steps"),
    ):
        with pytest.raises(ValueError, match=said):
            begin(backbone, **settings)
    with pytest.raises(ValueError, match="use recurrence=1"):
        begin(flow, dk.UniversalGuidance(brightness, recurrence=2)).finish()
