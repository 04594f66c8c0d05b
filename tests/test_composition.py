"""Methods added up: the order in a step, and what cannot combine."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import datekit as dk
from datekit.methods import Composition

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


def test_saved_and_resumed(target, tmp_path):
    guidance = dk.UniversalGuidance(target, 2.0, recurrence=2)
    method = guidance + dk.DATE(target, rho=0.5, when=dk.every(2))
    sampler = dk.Sampler(dk.load("gaussian"), method, num_steps=4)
    run = sampler.start(PROMPTS, seeds=[0, 1])
    run.step(2)
    loaded = dk.Run.load(run.save(tmp_path / "run.pt"))
    assert repr(loaded.sampler) == repr(sampler)
    assert torch.equal(loaded.finish().state.xt, run.finish().state.xt)
    other = sampler.replace(method=guidance + dk.DATE(target, rho=0.7, when=dk.every(2)))
    with pytest.raises(ValueError, match=r"method\.parts\[0\]\.rho was 0\.5, now 0\.7$"):
        dk.Run.load(tmp_path / "run.pt", other)


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
