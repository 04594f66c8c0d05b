"""The explorer's controller: what it samples is what `dk.Sampler` samples, what it shows is what the formulas say, nothing twice."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import datekit as dk
from datekit.widgets import Controller, rho_sweep
from datekit.widgets.settings import METHODS

STEPS = 6
PROMPT = "a red circle"


class Counting(dk.GaussianBackbone):
    """The closed-form model, which counts how often it was asked."""

    calls = 0

    def predict(self, xt, t, cond):
        """As the model's."""
        type(self).calls += 1
        return super().predict(xt, t, cond)


@pytest.fixture(scope="module")
def closed_form():
    return dk.load("gaussian")


@pytest.fixture
def make(closed_form, target):
    return lambda backbone=closed_form, rewards=target, **more: Controller(
        backbone, rewards, **{"prompt": PROMPT, "num_steps": STEPS, "rho": 0.5} | more
    )


def played(controller):
    controller.play()
    return controller.finish()


def sampled(controller, method, seed=0, steps=STEPS):
    sampler = dk.Sampler(
        controller.backbone,
        method,
        num_steps=steps,
        guidance_scale=controller.settings.guidance_scale,
        solver="ddim",
    )
    return sampler.start([PROMPT], seeds=[seed])


def end(controller, row="run"):
    return controller.branch(row).state(controller.num_steps).xt


def test_it_samples_what_the_sampler_samples_and_the_twin_starts_from_the_same_noise(make, target):
    controller = played(make(when=dk.every(2), seed=3))
    assert torch.equal(
        end(controller),
        sampled(controller, dk.DATE(target, rho=0.5, when=dk.every(2)), 3).finish().state.xt,
    )
    assert torch.equal(
        end(controller, "fixed"), sampled(controller, dk.Fixed(), 3).finish().state.xt
    )
    assert torch.equal(controller.branch().state(0).xt, controller.branch("fixed").state(0).xt)
    assert controller.done
    assert not torch.equal(end(controller), end(controller, "fixed"))


@pytest.mark.parametrize(
    "name", [name for name in METHODS if not {"EBCA", "SoftREPA"} & {*name.split(" + ")}]
)  # these need a network
def test_each_method_of_the_menu_samples_as_its_own_class(make, target, name):
    controller = played(make(method=name, scale=2.0, when=dk.late()))
    date, push = (
        dk.DATE(target, rho=0.5, when=dk.late()),
        dk.UniversalGuidance(target, scale=2.0, when=dk.late()),
    )
    method = {
        "fixed": dk.Fixed(),
        "DATE": date,
        "random direction": dk.RandomDirection(rho=0.5, when=dk.late()),
        "Universal Guidance": push,
        "DATE + Universal Guidance": date + push,
    }[name]
    assert torch.equal(end(controller), sampled(controller, method).finish().state.xt)


@pytest.mark.parametrize("rule", ["Taylor", "signal to noise", "unnormalised"])
def test_a_rule_for_rho_goes_no_further_than_the_slider(make, target, rule):
    controller = played(make(rule=rule, rho=0.25, scale=30.0))
    made = {
        "Taylor": dk.rho_rules.Taylor(most=0.25),
        "signal to noise": dk.rho_rules.SignalToNoise(most=0.25),
        "unnormalised": dk.rho_rules.Unnormalised(30.0, most=0.25),
    }[rule]
    run = sampled(controller, dk.DATE(target, rho=made)).finish()
    assert torch.equal(end(controller), run.state.xt)
    assert controller.curves()["run"]["distance"] == pytest.approx(
        [info.distance.item() for info in run.history]
    )
    assert 0 < max(controller.curves()["run"]["distance"]) <= 0.25 * (1 + 1e-9)


@pytest.mark.parametrize("name", ["SoftREPA", "DATE + SoftREPA"])
def test_soft_tokens_are_those_of_the_model(shapes, reward, name):
    controller = played(
        Controller(shapes, reward, method=name, prompt=PROMPT, num_steps=2, when=dk.steps(1))
    )
    assert controller.settings.tokens == "shapes"
    assert controller.curves()["run"]["updated"] == [1]
    assert controller.frame(i=1).scales["guidance"] > 0 == controller.frame(i=0).scales["guidance"]
    soft, date = dk.SoftREPA("shapes", when=dk.steps(1)), dk.DATE(reward, rho=0.5, when=dk.steps(1))
    sampler = dk.Sampler(shapes, soft if name == "SoftREPA" else date + soft, num_steps=2)
    assert torch.equal(end(controller), sampler.start([PROMPT], seeds=[0]).finish().state.xt)


@pytest.mark.parametrize("name", [name for name in METHODS if "EBCA" in name])
def test_ebca_alone_and_with_others_runs_on_a_u_net_and_leaves_its_mark(
    random_backbone, brightness, name
):
    controller = played(
        Controller(
            random_backbone,
            brightness,
            method=name,
            prompt=PROMPT,
            num_steps=3,
            when=dk.steps(1),
            scale=20.0,
        )
    )
    assert controller.curves()["run"]["updated"] == [1]
    assert controller.frame(i=1).scales["guidance"] > 0
    assert controller.frame(i=0).scales["guidance"] == 0
    on, reward = dk.steps(1), controller.reward
    parts = {
        "DATE": dk.DATE(reward, rho=0.5, when=on),
        "EBCA": dk.EBCA(when=on),
        "Universal Guidance": dk.UniversalGuidance(reward, scale=20.0, when=on),
    }
    method = dk.Fixed()
    for part in name.split(" + "):
        method = method + parts[part]
    assert torch.equal(end(controller), sampled(controller, method, steps=3).finish().state.xt)


def test_a_frame_holds_what_the_formulas_say(make, target):
    controller = played(make(when=dk.steps(0, 3)))
    run = sampled(controller, dk.DATE(target, rho=0.5, when=dk.steps(0, 3))).finish()
    for i in (3, 4):
        frame, info, state = controller.frame(i=i), run.history[i], run.states[i]
        look = run.sampler.look(state, target)
        picture = controller.backbone.decode(info.x0bar_hat)
        assert frame.h == pytest.approx(target(picture, [PROMPT]).item())
        assert frame.values == {"target": frame.h}
        assert frame.updated == (i == 3)
        assert (frame.h_before, frame.grad_norm) == (
            pytest.approx(look.h.item()),
            pytest.approx(look.grad_norm.item()),
        )
        assert frame.distance == pytest.approx((info.c - state.c_org).norm().item())
        wanted = (picture[0].clamp(0, 1) * 255).round().permute(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(frame.pictures["decoded"]), wanted)
        plain = sampled(controller, dk.Fixed()).sampler.predict(state, state.cond_org).x0bar
        assert frame.scales["guidance"] == pytest.approx(
            (info.x0bar_hat - plain)[0].pow(2).mean(0).sqrt().max().item()
        )
        assert frame.scales["grad"] == pytest.approx(
            look.grad_x0bar[0].pow(2).mean(0).sqrt().max().item()
        )
        squares = look.grad[0].pow(2).sum(1)
        words = [w for w in state.cond_org.tokens[0] if w != "<pad>"]
        assert list(frame.words) == [*words, f"<pad> x{8 - len(words)}"]
        np.testing.assert_allclose(
            frame.shares[: len(words)], squares[: len(words)] / squares.sum()
        )
        assert (sum(frame.shares), sum(frame.moved)) == (pytest.approx(1), pytest.approx(1))


def test_the_end_is_the_final_picture(make):
    controller = played(make())
    final = controller.frame()
    assert (final.done, final.i, final.t) == (True, STEPS, 0)
    np.testing.assert_array_equal(
        np.asarray(final.pictures["decoded"]),
        np.asarray(controller.branch().run.finish().images[0]),
    )


def test_curves_and_cosines(make, target):
    controller = played(make(when=dk.every(2)))
    run = sampled(controller, dk.DATE(target, rho=0.5, when=dk.every(2))).finish()
    lines = controller.curves()
    np.testing.assert_allclose(lines["run"]["h"], run.rewards()[:, 0])
    assert lines["run"]["updated"] == [0, 2, 4]
    assert lines["fixed"]["distance"] == [0] * STEPS
    controller.scrub(2)
    steps, values = controller.cosines()
    assert steps == list(range(STEPS))  # looked at ahead of time, updated or not
    matrix = run.history.cosine("direction")  # of the steps that updated
    np.testing.assert_allclose([values[i] for i in (0, 2, 4)], matrix[1])


def test_the_oracle_speaks_of_prompts_of_its_grammar_only(make, shapes, reward):
    controller = Controller(
        shapes, reward, num_steps=4, prompt="a red circle left of a blue square"
    )
    verdict = dk.shapes.judge(
        [played(controller).frame().pictures["decoded"]], [controller.settings.prompt]
    )[0]
    assert controller.frame().statements == verdict.statements
    controller.change(prompt="a cat")
    assert controller.finish().frame().statements is None
    assert played(make()).frame().statements is None  # not a model of that world


def test_work_can_be_left_between_any_two_steps(make, target):
    controller = make()
    controller.play()
    for n, unit in enumerate(controller.work(), 1):
        assert (unit, controller.head) == ("step", n)
        if n == 2:
            break
    assert "sampling step 2 of 6" in controller.status()
    assert torch.equal(
        end(controller.finish()), sampled(controller, dk.DATE(target, rho=0.5)).finish().state.xt
    )


def test_a_change_acts_from_the_paused_step_on(make, target):
    controller = make()
    controller.scrub(2)
    controller.finish()
    controller.change(rho=4.0)
    assert "paused before step 2 of 6" in controller.status()
    played(controller)
    run = sampled(controller, dk.DATE(target, rho=0.5))
    run.step(2)
    assert torch.equal(end(controller), run.fork(dk.DATE(target, rho=4.0)).finish().state.xt)
    assert "from step 2: DATE, rho 4" in controller.status()


def test_a_change_while_under_way_begins_again(make, target):
    controller = make()
    controller.play()
    work = controller.work()
    next(work), next(work)
    controller.change(rho=4.0)
    assert (controller.head, controller.goal) == (0, STEPS)
    assert torch.equal(
        end(controller.finish()), sampled(controller, dk.DATE(target, rho=4.0)).finish().state.xt
    )
    # from a pause on: the past of the pause stays
    controller.scrub(2)
    controller.fork()
    controller.play()
    next(controller.work())
    controller.change(rho=8.0)
    assert controller.head == 2


def test_a_change_of_a_finished_run_begins_again_and_stays_at_the_step_on_screen(make, target):
    controller = played(make())
    controller.scrub(3)
    controller.change(guidance_scale=3.0)
    assert controller.head == 0
    assert controller.finish().shown == 3
    assert controller.done


@pytest.mark.parametrize(
    "change", [{"prompt": "a star"}, {"seed": 9}, {"num_steps": 4}, {"solver": "ddim", "seed": 1}]
)
def test_another_prompt_seed_or_length_is_another_run_as_far_as_the_last(make, change):
    controller = make()
    controller.scrub(3)
    controller.finish()
    controller.fork()
    controller.change(**change)
    assert (controller.goal, controller.old, controller.base) == (3, None, 0)
    assert controller.finish().head == 3


def test_fork_keeps_the_run_for_comparison(make, target):
    controller = played(make())
    before = end(controller)
    controller.scrub(4)
    controller.fork()
    assert (controller.head, controller.base, controller.paused) == (4, 4, True)
    controller.change(rho=3.0)
    played(controller)
    assert torch.equal(end(controller, "old"), before)
    assert torch.equal(controller.branch("old").state(4).xt, controller.branch().state(4).xt)
    assert not torch.equal(end(controller), before)
    past = [
        dk.types.norm(controller.branch().change(2)).item(),
        controller.frame(i=2).scales["guidance"],
    ]
    controller.change(method="fixed")
    controller.finish()
    now = [
        dk.types.norm(controller.branch().change(2)).item(),
        controller.frame(i=2).scales["guidance"],
    ]
    assert past == now > [0, 0]  # what was done before the fork stays done
    assert controller.frame(i=5).scales["guidance"] == 0
    controller.change(method="DATE", rho=2.0)  # a finished fork begins again at the fork
    assert controller.head == 4
    controller.join()
    assert set(controller.timelines) == {"run", "fixed"}


def test_back_restart_and_steps(make):
    controller = make()
    for n in range(1, 4):
        controller.step()
        assert controller.finish().head == n
    controller.back()
    assert (controller.head, controller.shown, controller.paused) == (2, 2, True)
    controller.restart()
    assert controller.head == 0
    controller.back()
    assert controller.head == 0
    played(controller)
    controller.play()
    assert controller.head == 0  # once more, from what is known
    next(controller.work())
    controller.change(rho=7.0)
    assert controller.head == 0
    played(controller)
    controller.scrub(3)
    controller.fork()
    controller.back()
    played(controller)
    controller.change(rho=6.0)
    assert controller.head == controller.base == 2  # as far back as one went


def test_nothing_is_sampled_twice(target):
    controller = Controller(Counting(), target, prompt=PROMPT, num_steps=STEPS)
    played(controller)
    controller.change(rho=2.0)
    controller.finish()
    before = Counting.calls
    controller.change(rho=0.5)
    controller.finish()
    for i in range(STEPS + 1):
        controller.scrub(i)
        controller.frame(), controller.frame("fixed"), controller.curves(), controller.cosines()
    controller.change(when=dk.steps(*range(STEPS)))  # every step, in other words
    controller.finish()
    assert Counting.calls == before
    controller.change(rho=0.25)
    next(controller.work())
    assert Counting.calls > before


def test_a_sweep_is_the_reward_at_each_radius(make, target):
    controller = make(rho=1.0)
    controller.scrub(2)
    controller.sweep()
    assert controller.swept() is None
    told = [
        controller.status().rpartition("; ")[2] for unit in controller.work() if unit == "sweep"
    ]
    assert told[:-1] == [f"sweep over rho: radius {n} of 7" for n in range(2, 8)]
    assert "radius" not in told[-1]
    found = controller.swept()
    run = sampled(controller, dk.DATE(target, rho=1.0))
    run.step(2)
    look = run.peek()
    assert found.rhos.tolist() == [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
    for rho, h, images in zip(found.rhos, found.h, found.images, strict=True):
        picture = controller.backbone.decode(
            run.sampler.predict(run.state, look.c + rho * look.direction).x0bar
        )
        assert h.item() == pytest.approx(target(picture, [PROMPT]).item())
        torch.testing.assert_close(images, picture.float())
    torch.testing.assert_close(found.predicted[:, 0], look.h + found.rhos * look.grad_norm)
    # to first order, the two agree: the error falls with the square of the radius
    small = rho_sweep(run, [1e-3, 2e-3])
    errors = (small.h - small.predicted).abs()[:, 0]
    assert (errors[1] / errors[0]).item() == pytest.approx(4, rel=0.05)
    assert len(small.to_frame()) == 2
    with pytest.raises(ValueError, match="finite rho_rules from 0 up"):
        rho_sweep(run, [-1.0])


def test_the_controller_needs_no_widgets():
    code = "import sys, datekit.widgets.controller, datekit.widgets.export, datekit.widgets.worker; print('ipywidgets' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
        == "False"
    )
