"""FlowEdit against an independent derivation on a closed-form flow, and on the small random SD3 and FLUX."""

from __future__ import annotations

import families
import pytest
import torch
import torch.nn.functional as F
from flow import FlowGaussian
from soft import soft

import datekit as dk
from datekit import editing, noise

SOURCE, TARGET, STEPS = ["a cat", "a green dog"], ["a small fox", "two birds"], 6


class Pictured(FlowGaussian):
    """The closed-form flow with a way from pictures to latents."""

    def encode_images(self, images):
        return ((F.avg_pool2d(images, 4) - 0.5) / 0.3).to(self.dtype)


@pytest.fixture(scope="module")
def flow():
    return Pictured()


def pictures(backbone, count=2):
    return torch.rand(count, 3, *backbone.image_size(), generator=torch.Generator().manual_seed(0))


def by_hand(flow, w_source, w_target, n_max, n_min, n_avg, seeds, upto=None):
    """FlowEdit's Algorithm 1 with numbers only: velocities from the model, levels from diffusers' scheduler."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    scheduler.set_timesteps(STEPS)
    sigmas, ts = scheduler.sigmas.double(), scheduler.timesteps
    source, target, empty = flow.encode(SOURCE), flow.encode(TARGET), flow.encode(["", ""])

    def velocity(x, i, cond, w):
        uncond = flow.predict(x, ts[i].item(), empty)
        return uncond + w * (flow.predict(x, ts[i].item(), cond) - uncond)

    draw = lambda i, k: noise.normal(seeds, i, (3, 8, 8), torch.float64, purpose=f"flowedit {k}")
    x_src = flow.encode_images(pictures(flow))
    z = x_src.clone()
    for i in range(STEPS - n_max, STEPS - n_min):
        total = torch.zeros_like(z)
        for k in range(n_avg):
            zs = (1 - sigmas[i]) * x_src + sigmas[i] * draw(i, k)
            total += velocity(z + zs - x_src, i, target, w_target) - velocity(
                zs, i, source, w_source
            )
        z = z + (sigmas[i + 1] - sigmas[i]) * total / n_avg
    if n_min:
        i = STEPS - n_min
        x = z + ((1 - sigmas[i]) * x_src + sigmas[i] * draw(i, 0)) - x_src
        for i in range(STEPS - n_min, STEPS):
            x = x + (sigmas[i + 1] - sigmas[i]) * velocity(x, i, target, w_target)
        return x
    return z


@pytest.mark.parametrize("n_avg", [1, 2])
@pytest.mark.parametrize("n_min", [0, 2, 4])
@pytest.mark.parametrize("w", [(3.5, 13.5), (0.0, 1.0), (1.0, 2.0)])
def test_flowedit_is_the_algorithm(flow, n_avg, n_min, w):
    run = editing.flowedit(
        flow,
        pictures(flow),
        SOURCE,
        TARGET,
        num_steps=STEPS,
        n_max=4,
        n_min=n_min,
        n_avg=n_avg,
        source_guidance_scale=w[0],
        guidance_scale=w[1],
        seeds=[5, 6],
    )
    assert run.state.i == STEPS - 4
    # the scheduler's levels and its own steps are float32
    torch.testing.assert_close(
        run.finish().state.xt, by_hand(flow, *w, 4, n_min, n_avg, [5, 6]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["sd3", "flux", "flux-schnell"])
def test_with_the_source_as_target_nothing_changes(name):
    backbone = families.backbone(name)
    run = editing.flowedit(
        backbone,
        pictures(backbone),
        SOURCE,
        SOURCE,
        num_steps=8,
        n_max=6,
        n_avg=2,
        source_guidance_scale=3.0,
        guidance_scale=3.0,
        seeds=[0, 1],
    )
    for _ in run:
        assert (run.state.xt - backbone.encode_images(pictures(backbone))).abs().max() <= 1e-5
    other = editing.flowedit(
        backbone, pictures(backbone), SOURCE, TARGET, num_steps=8, n_max=6, seeds=[0, 1]
    ).finish()
    assert (other.state.xt - run.state.xt).abs().max() > 1e-2


def test_what_a_method_sees_is_the_targets_mean_prediction(flow):
    """x0bar = zt - sigma v_target(zt), h and its gradient there; the update has length rho and the source's velocity no part in it."""
    reward = dk.rewards.load("target")
    run = editing.flowedit(
        flow,
        pictures(flow),
        SOURCE,
        TARGET,
        dk.DATE(reward, rho=0.5),
        num_steps=STEPS,
        n_max=4,
        n_avg=2,
        guidance_scale=2.0,
        source_guidance_scale=1.0,
        seeds=[5, 6],
    )
    look, before, sigma = run.peek(), run.state, run.sampler.solver.levels[2][1]
    zs = (1 - sigma) * before.extras["x_src"] + sigma * noise.normal(
        [5, 6], 2, (3, 8, 8), torch.float64, purpose="flowedit 0"
    )
    zt = before.xt + zs - before.extras["x_src"]

    def x0bar(c):
        uncond = flow.predict(zt, before.t, flow.encode(["", ""]))
        return zt - sigma * (
            uncond + 2 * (flow.predict(zt, before.t, before.cond.replace(sequence=c)) - uncond)
        )

    torch.testing.assert_close(look.x0bar, x0bar(before.c), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(look.h, reward(flow.decode(x0bar(before.c)), run.prompts))
    leaf = before.c.clone().requires_grad_()
    (grad,) = torch.autograd.grad(reward(flow.decode(x0bar(leaf)), run.prompts).sum(), leaf)
    torch.testing.assert_close(look.grad, grad, rtol=1e-5, atol=1e-8)
    info = run.step()
    torch.testing.assert_close(
        info.c,
        before.c + 0.5 * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1),
        rtol=1e-5,
        atol=1e-6,
    )
    torch.testing.assert_close(info.xt, zt)
    assert torch.equal(info.notes["z"], before.xt)
    step = run.sampler.solver.levels[3][1] - sigma
    torch.testing.assert_close(run.state.xt, before.xt + step * info.notes["velocity"])


METHODS = {
    "date": lambda r: dk.DATE(r, rho=1.0, anchor="running"), "random": lambda r: dk.RandomDirection(1.0),
    "universal": lambda r: dk.UniversalGuidance(r, scale=1.0, backward_steps=1),
    "both": lambda r: dk.DATE(r, rho=1.0) + dk.UniversalGuidance(r, scale=1.0),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_every_method_acts_and_a_pause_changes_nothing(name, method, brightness, tmp_path):
    backbone, method = families.backbone(name), METHODS[method](brightness)
    start = lambda m: editing.flowedit(
        backbone,
        pictures(backbone),
        SOURCE,
        TARGET,
        m,
        num_steps=5,
        n_max=4,
        n_min=2,
        n_avg=2,
        seeds=[0, 1],
    )
    whole, part, plain = start(method).finish(), start(method), start(None).finish()
    assert not torch.equal(whole.state.xt, plain.state.xt)
    for _ in range(2):
        part.peek(brightness)
        part.step()
    path = part.save(tmp_path / "part.pt")
    resumed = dk.Run.load(path, part.sampler)
    fixed = resumed.fork(dk.Fixed(), at=1)
    assert all(
        torch.equal(a.xt, b.xt) and torch.equal(a.c, b.c)
        for a, b in zip(resumed.finish().states, whole.states, strict=True)
    )
    assert torch.equal(part.rewind().finish().state.xt, whole.state.xt)
    assert torch.equal(fixed.finish().state.xt, plain.state.xt)
    assert torch.equal(start(dk.DATE(brightness, rho=0.0)).finish().state.xt, plain.state.xt)
    with pytest.raises(ValueError, match="n_min cannot change"):
        resumed.fork(n_min=0)
    with pytest.raises(ValueError, match="n_avg was 2, now 3"):
        dk.Run.load(path, part.sampler.replace(n_avg=3))


def test_a_saved_edit_makes_its_sampler_again(flow, tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "source", "closed-form flow", raising=False)
    monkeypatch.setattr("datekit.serialize.load", lambda source, **kwargs: flow)
    run = editing.flowedit(
        flow,
        pictures(flow),
        SOURCE,
        TARGET,
        dk.DATE(dk.rewards.load("target"), rho=0.5),
        num_steps=STEPS,
        n_max=4,
        n_min=1,
        n_avg=2,
        source_guidance_scale=1.5,
        guidance_scale=3.0,
        seeds=[5, 6],
    )
    run.step()
    loaded = dk.Run.load(run.save(tmp_path / "run.pt"))
    options = lambda run: {
        name: getattr(run.sampler, name) for name in editing.FlowEditSampler.options
    }
    assert options(loaded) == options(run)
    assert torch.equal(loaded.finish().state.xt, run.finish().state.xt)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_an_edit_does_not_depend_on_its_batch(name):
    backbone = families.backbone(name)
    images, more = pictures(backbone), dict(num_steps=5, n_max=4, n_min=1, n_avg=2)
    together = (
        editing.flowedit(backbone, images, SOURCE, TARGET, seeds=[3, 4], **more).finish().state.xt
    )
    alone = (
        editing.flowedit(backbone, images[1:], SOURCE[1:], TARGET[1:], seeds=[4], **more)
        .finish()
        .state.xt
    )
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-4)
    other = (
        editing.flowedit(backbone, images[1:], SOURCE[1:], TARGET[1:], seeds=[3], **more)
        .finish()
        .state.xt
    )
    assert (other - alone).abs().max() > 1e-2  # the seed is the sample's own


def test_soft_tokens_act_on_the_target_only(brightness):
    """Of one step, z moves by (sigma' - sigma) (v_target with the tokens - v_source without), both from plain predictions."""
    backbone, method = families.backbone("sd3"), dk.SoftREPA(soft((0, 1), 32, time=False))
    start = lambda m: editing.flowedit(
        backbone,
        pictures(backbone),
        SOURCE,
        TARGET,
        m,
        num_steps=5,
        n_max=4,
        guidance_scale=3.0,
        source_guidance_scale=2.0,
        seeds=[0, 1],
    )
    run, sampler = (
        start(method),
        dk.Sampler(backbone, num_steps=5, guidance_scale=3.0, solver="euler"),
    )
    state, ((_, sigma), (_, after)) = run.state, run.sampler.solver.levels[1:3]
    x_src, drawn = (
        state.extras["x_src"],
        noise.normal([0, 1], 1, state.xt.shape[1:], torch.float32, purpose="flowedit 0"),
    )
    zs = (1 - sigma) * x_src + sigma * drawn
    target = run.sampler.backbone.encode(TARGET)
    with torch.no_grad():
        denoiser = sampler.denoiser(state.replace(xt=zs, cond=target))
        with method.patch(denoiser):
            v_target = method.predict(denoiser, target).out
        v_source = (
            sampler.replace(guidance_scale=2.0)
            .predict(state.replace(xt=zs, cond=state.extras["source"]))
            .out
        )
    run.step()
    torch.testing.assert_close(
        run.state.xt, x_src + (after - sigma) * (v_target - v_source), rtol=1e-5, atol=1e-5
    )
    plain = start(None).finish().state.xt
    assert (run.finish().state.xt - plain).abs().max() > 1e-3
    both = start(method + dk.DATE(brightness, rho=1.0)).finish().state.xt
    assert not torch.equal(both, run.state.xt)
    assert torch.equal(start(None).finish().state.xt, plain)  # nothing stays installed


@pytest.mark.parametrize("n_min", [0, 2])
def test_what_a_mask_keeps_stays_exactly(n_min):
    backbone, keep = families.backbone("sd3"), torch.zeros(64, 64)
    keep[:32] = 1
    run = editing.flowedit(
        backbone,
        pictures(backbone),
        SOURCE,
        TARGET,
        num_steps=5,
        n_max=4,
        n_min=n_min,
        keep=keep,
        seeds=[0, 1],
    ).finish()
    x0 = backbone.encode_images(pictures(backbone))
    rows = x0.shape[2] // 2
    torch.testing.assert_close(run.state.xt[:, :, :rows], x0[:, :, :rows], rtol=0, atol=1e-7)
    assert (run.state.xt[:, :, rows:] - x0[:, :, rows:]).abs().max() > 1e-2


def test_step_carries_gradient_to_z(flow):
    run = editing.flowedit(
        flow, pictures(flow), SOURCE, TARGET, num_steps=STEPS, n_max=4, seeds=[5, 6]
    )
    z = run.state.xt.clone().requires_grad_()
    (grad,) = torch.autograd.grad(run.sampler.step(run.state.replace(xt=z))[0].xt.sum(), z)
    assert grad.abs().sum() > 0


def test_defaults_are_the_papers():
    for name, steps, n_max, w_source, w in (("sd3", 50, 33, 3.5, 13.5), ("flux", 28, 24, 1.5, 5.5)):
        backbone = families.backbone(name)
        run = editing.flowedit(backbone, pictures(backbone, 1), "a cat", "a dog")
        assert (run.sampler.num_steps, run.sampler.num_steps - run.state.i) == (steps, n_max)
        assert (run.sampler.source_guidance_scale, run.sampler.guidance_scale) == (
            pytest.approx(w_source),
            pytest.approx(w),
        )
        assert (run.sampler.n_min, run.sampler.n_avg) == (0, 1)


def test_bad_input_is_refused(flow, brightness):
    start = lambda backbone=flow, source="a cat", target="a dog", **more: editing.flowedit(
        backbone, pictures(backbone), source, target, num_steps=4, **more
    )
    with pytest.raises(ValueError, match="FlowEdit needs a flow model"):
        start(families.backbone("sd"))
    with pytest.raises(ValueError, match="target prompt is empty"):
        start(target="")
    with pytest.warns(UserWarning, match="source prompt is empty"):
        start(source="")
    with pytest.raises(ValueError, match="n_min <= n_max <= num_steps"):
        start(n_min=3, n_max=2)
    with pytest.raises(ValueError, match="n_avg must be a whole number"):
        start(n_avg=0)
    with pytest.raises(ValueError, match="2 images take 2 source prompts"):
        start(source=["a", "b", "c"])
    with pytest.raises(
        TypeError, match="a source prompt is a string, or a list of them one an image, got int"
    ):
        start(source=3)
    listed = start(source=(s for s in SOURCE), target=(t for t in TARGET), seeds=[0, 1])
    assert torch.equal(listed.state.extras["source"].sequence, flow.encode(SOURCE).sequence)
    assert listed.prompts == tuple(TARGET)
    with pytest.raises(ValueError, match="2 images take 2 seeds, got 3"):
        start(seeds=[0, 1, 2])
    with pytest.raises(ValueError, match="FlowEdit takes Euler steps"):
        start(families.backbone("sd3"), solver="dpm++")
    with pytest.raises(ValueError, match="self-recurrence"):
        start(method=dk.UniversalGuidance(brightness, recurrence=2)).finish()
