"""What holds for every method, and methods added up: their order, and what cannot combine."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import families
import pipelines
import pytest
import torch
from soft import soft
from studies.rules import SignalToNoise

import datekit as dk
from datekit.methods import Composition
from datekit.methods.rho_rules import Taylor

PROMPTS = ["a red circle", "a green star on red"]
W = 4.0


@pytest.fixture
def sampler(random_backbone):
    return dk.Sampler(random_backbone, num_steps=3, guidance_scale=W)


def test_the_embedding_first_then_the_prediction_at_it(sampler, brightness):
    """DATE chooses as it does alone; the push is that of plain autograd at the chosen embedding."""
    date = dk.DATE(brightness, rho=0.5)
    guidance = dk.UniversalGuidance(brightness, 200.0, backward_steps=1)
    both = sampler.replace(method=date + guidance)
    state = both.init(PROMPTS, seeds=[0, 1])
    info, alone = both.step(state)[1], sampler.replace(method=date).step(state)[1]
    for name in ("c", "h", "grad", "at", "x0bar", "distance", "eps_c"):
        assert torch.equal(getattr(info, name), getattr(alone, name)), name
    assert info.updated
    plain = sampler.predict(state, info.c)
    x = state.xt.clone().requires_grad_()
    h = brightness(sampler.backbone.decode(sampler.predict(state, info.c, x).x0bar), PROMPTS)
    (grad,) = torch.autograd.grad(h.sum(), x)
    alpha, sigma = sampler.solver.level(0)
    forward, backward = info.extras["ug_forward"], info.extras["ug_backward"]
    torch.testing.assert_close(forward, -200.0 * sigma * grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(info.extras["ug_h"], h.detach())
    expected = (state.xt - sigma * (plain.eps + forward + backward)) / alpha
    torch.testing.assert_close(info.x0bar_hat, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(info.extras["ug_h"], info.h)  # one after the update, one before it


def test_the_order_of_adding_does_not_matter(sampler, brightness):
    a, c = dk.DATE(brightness, rho=0.5), dk.EBCA(1.0, 1.0)
    b = dk.UniversalGuidance(brightness, 100.0, recurrence=2)
    ways = [a + b + c, c + b + a, b + (a + c), Composition((c, Composition((a, b))))]
    assert all(way == ways[0] for way in ways)
    assert ways[0].parts == (c, a, b)
    assert repr(ways[0]) == " + ".join(map(repr, (c, a, b)))
    runs = [sampler.replace(method=way).start(PROMPTS, seeds=[0, 1]).finish() for way in ways[:2]]
    assert torch.equal(runs[0].state.xt, runs[1].state.xt)
    extras = runs[0].history[0].extras
    assert {"ug_h", "ug_forward", "ug_backward", "ebca_shift"} <= set(extras)
    assert runs[0].history.updated == [0, 1, 2]


def test_parts_that_do_nothing_leave_the_others_result(sampler, brightness):
    date = dk.DATE(brightness, rho=0.5, anchor="running")
    more = date + dk.UniversalGuidance(brightness, 0.0) + dk.EBCA(0, 0)
    alone, idle = (
        sampler.replace(method=method).start(PROMPTS, seeds=[0, 1]).finish().state
        for method in (date, more)
    )
    assert torch.equal(alone.xt, idle.xt)
    assert torch.equal(alone.c, idle.c)
    assert dk.Fixed() + date is date
    assert date + dk.Fixed() is date
    assert dk.Fixed() + dk.Fixed() == dk.Fixed()


def test_a_repetition_starts_from_the_embedding_before_the_step(target):
    """DATE's displacements do not add up over repetitions; each is taken at the xt of its own."""
    date = dk.DATE(target, rho=0.5, anchor="running")
    method = date + dk.UniversalGuidance(target, 2.0, recurrence=3)
    sampler = dk.Sampler(dk.load("gaussian"), method, num_steps=4)
    run = sampler.start(PROMPTS, seeds=[0, 1])
    state, info = run.state, run.step()
    torch.testing.assert_close(info.distance, torch.full((2,), 0.5, dtype=torch.float64))
    last = dk.Run(sampler.replace(method=date), state.replace(xt=info.xt))
    torch.testing.assert_close(info.grad, last.peek().grad)


EVERY = {
    "guidance": lambda h: dk.UniversalGuidance(h, 5.0, 1, recurrence=3, when=dk.every(2)),
    "both": lambda h: dk.UniversalGuidance(h, 2.0) + dk.DATE(h, rho=0.5, when=dk.every(2)),
    "LiDAR": lambda h: dk.LiDAR(h, samples=4, strength=80.0, scale=6.0),
    "Taylor": lambda h: dk.DATE(h, rho=Taylor(tolerance=0.3, trial=0.2, most=5.0)),
    "stable share": lambda h: dk.DATE(h, rho=SignalToNoise(most=2.0)),
}


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(("solver", "eta"), [("ddim", 0.7), ("dpm++", 0.0)])
def test_fork_rewind_and_resume_are_exact(target, tmp_path, kind, solver, eta):
    """By the file alone; a picture does not depend on its batch, nor on how memory is bounded."""
    settings = {"num_steps": 6, "solver": solver, "eta": eta}
    sampler = dk.Sampler(dk.load("gaussian"), EVERY[kind](target), **settings)
    whole, part = (sampler.start(PROMPTS, seeds=[3, 4]) for _ in range(2))
    whole.finish(), part.step(3)
    loaded = dk.Run.load(part.save(tmp_path / "run.pt"))
    assert repr(loaded.sampler) == repr(sampler)
    others = [loaded.finish(), part.fork().finish(), part.finish().rewind(1).finish()]
    for run in others:
        assert all(torch.equal(a.xt, b.xt) for a, b in zip(run.states, whole.states, strict=True))
    alone = sampler.start(PROMPTS[1:], seeds=[4]).finish()
    torch.testing.assert_close(alone.state.xt[0], whole.state.xt[1])
    parts = sampler.replace(micro_batch=1).start(PROMPTS, seeds=[3, 4]).finish()
    torch.testing.assert_close(parts.state.xt, whole.state.xt)


def test_what_cannot_combine_says_why(random_backbone, brightness):
    date, guidance = dk.DATE(brightness), dk.UniversalGuidance(brightness)
    with pytest.raises(ValueError, match="both decide the prediction"):
        guidance + guidance
    with pytest.raises(ValueError, match=r"DATE and RandomDirection cannot.*the text embedding"):
        dk.EBCA() + date + dk.RandomDirection()
    with pytest.raises(ValueError, match="needs two methods that do something"):
        Composition((date, dk.Fixed()))
    with pytest.raises(TypeError, match="unsupported operand"):
        date + brightness
    late = date + dk.UniversalGuidance(brightness, when=dk.steps(9))
    with pytest.raises(ValueError, match="names step 9"):  # each part is checked
        dk.Sampler(random_backbone, late, num_steps=5)


def test_a_method_of_ones_own_combines_by_what_it_overrides(sampler, brightness, monkeypatch):
    from datekit import registry

    monkeypatch.setitem(registry.ENTRIES, "method", registry.entries("method"))

    @dataclass(frozen=True)
    class Louder(dk.Method):
        """Twice the prediction."""

        def predict(self, denoiser, cond):
            prediction = denoiser.predict(cond)
            return prediction.replace(out=2 * prediction.out)

    run = sampler.replace(method=Louder() + dk.DATE(brightness)).start(PROMPTS, seeds=[0, 1])
    info, before = run.step(), run.states[0]
    out = 2 * sampler.predict(before, info.c).out
    doubled = sampler.solver.step(out, before.xt, 0, {}, (0, 1))[0]
    torch.testing.assert_close(run.state.xt, doubled, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"Louder and UniversalGuidance cannot combine"):
        Louder() + dk.UniversalGuidance(brightness)


@pytest.mark.parametrize("kind", ["ug_forward", "ebca_shift"])
def test_in_half_precision_what_a_method_adds_is_float32(brightness, kind):
    """On bf16 weights: what bf16 could not hold on its own points where float32 weights lead it."""
    found, latents = [], dk.noise.initial([0, 1], (4, 16, 16), torch.float32)
    method = dk.UniversalGuidance(brightness, 1e-3) if kind == "ug_forward" else dk.EBCA(3.0, 2.0)
    for dtype in (torch.float32, torch.bfloat16):
        pipe = pipelines.stable_diffusion().to(dtype=dtype)
        sampler = dk.Sampler(pipe, method, num_steps=5, guidance_scale=W)
        info = sampler.start(PROMPTS, seeds=[0, 1], latents=latents).step()
        assert info.extras[kind].dtype == torch.float32
        assert info.x0bar_hat.isfinite().all()
        found.append(info.extras[kind].flatten(1))
    assert (torch.cosine_similarity(*found) > 0.97).all()


PATCHED = [
    ("sd", dk.EBCA(3.0, 2.0)), ("sd", dk.SoftREPA(soft(("down", "up"), 32))),
    ("sd3", dk.SoftREPA(soft((0, 1), 32))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "method"), PATCHED)
@pytest.mark.parametrize(("place", "error"), [
    (None, None), ("network", KeyboardInterrupt), ("reward", OSError),
])  # fmt: skip
def test_the_network_is_untouched_afterwards(name, method, place, error, brightness):
    """No hooks, the same processors and weights: after a normal end, an exception, an interrupt."""
    backbone, armed = families.fresh(name), []
    network, processors = backbone.network, backbone.network.attn_processors
    before = {key: value.clone() for key, value in network.state_dict().items()}

    def stop(*seen, here="network"):
        if armed == [here]:
            raise error

    def reward(images, prompts):
        stop(here="reward")
        return brightness(images, prompts)

    alarm = list(network.modules())[-1].register_forward_pre_hook(stop)
    run = dk.Sampler(backbone, method + dk.DATE(reward, rho=0.1), num_steps=2).start(PROMPTS)
    for act in ("peek", "step"):
        armed[:], state = [place], run.state
        with pytest.raises(error) if place else contextlib.nullcontext():
            getattr(run, act)()
        assert not place or run.state is state
    alarm.remove(), armed.clear()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert all(network.attn_processors[key] is own for key, own in processors.items())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(run.rewind(0).step().x0bar_hat, run.fork(at=0).step().x0bar_hat)


@pytest.mark.parametrize(("name", "method"), PATCHED)
def test_date_beside_a_method_that_patches_differentiates_the_patched_network(name, method):
    """grad_c h against central differences in float64, also where a block runs twice."""
    backbone, reward = families.fresh(name, torch.float64), pipelines.Brightness()
    sampler = dk.Sampler(backbone, method + dk.DATE(reward), num_steps=4, guidance_scale=W)
    run = sampler.start(PROMPTS, seeds=[0, 1])
    state, gradient = run.state, run.peek().grad
    along = torch.randn(state.c.shape, generator=torch.Generator().manual_seed(0)).double()
    along = along if state.cond.mask is None else along * state.cond.mask[..., None]
    values = []
    for sign in (1, -1):
        x0bar = sampler.predict(state, state.c + sign * 1e-4 * along).x0bar
        values.append(reward(backbone.decode(x0bar), PROMPTS).detach())
    numeric = (values[0] - values[1]) / 2e-4
    torch.testing.assert_close((gradient * along).sum((1, 2)), numeric, rtol=1e-5, atol=1e-9)
    assert pipelines.off(run.fork(dk.DATE(reward)).peek().grad, gradient) > 0.01
    for settings in ({"checkpointing": True}, {"micro_batch": 1}):
        other = run.fork(**settings).peek().grad
        torch.testing.assert_close(other, gradient, rtol=1e-9, atol=1e-14)
    guided = method + dk.UniversalGuidance(reward, scale=1.0)  # differentiates both branches
    more = ({}, {"checkpointing": True}, {"micro_batch": 1})
    steps = [sampler.replace(method=guided, **each).step(state) for each in more]
    for following, info in steps[1:]:
        torch.testing.assert_close(following.xt, steps[0][0].xt, rtol=1e-9, atol=1e-12)
        for key, value in info.extras.items():
            torch.testing.assert_close(value, steps[0][1].extras[key], rtol=1e-9, atol=1e-12)
