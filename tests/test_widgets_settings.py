"""What the explorer can be set to: rewards with weights, steps to click, and what is refused."""

from __future__ import annotations

import pytest
import torch

import datekit as dk
from datekit.widgets import Controller, Settings

STEPS = 6
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def closed_form():
    return dk.load("gaussian")


@pytest.fixture
def make(closed_form, target):
    return lambda rewards=target, **more: Controller(
        closed_form, rewards, **{"prompt": PROMPT, "num_steps": STEPS, "rho": 0.5} | more
    )


def played(controller):
    controller.play()
    return controller.finish()


def end(controller, row="run"):
    return controller.branch(row).state(controller.num_steps).xt


def test_what_a_method_does_not_read_does_not_count():
    plain = Settings(
        method="fixed", rho=3.0, rule="Taylor", tokens="shapes", anchor="reset", when=dk.late()
    ).plain()
    assert plain == Settings(method="fixed").plain()
    assert Settings(when=None).plain() == plain
    assert (
        Settings(when=dk.every(1)).plain()
        == Settings(when=dk.steps(range(20))).plain()
        != Settings(when=dk.every(2)).plain()
    )
    assert Settings(rho=1.0).plain() != Settings(rho=2.0).plain()
    assert Settings(scale=2.0).plain() == Settings().plain() != Settings(rule="Taylor").plain()
    assert Settings(rule="unnormalised", scale=2.0).plain() != Settings(rule="unnormalised").plain()


def test_steps_to_click(make):
    controller = make(when=dk.every(3))
    controller.toggle(1)
    controller.toggle(3)
    assert controller.settings.updates == (0, 1)
    controller.change(num_steps=20)
    controller.change(num_steps=1)
    assert controller.settings.updates == (0,)
    controller.toggle(0)
    assert controller.settings.when is None
    played(controller)
    assert torch.equal(end(controller), end(controller, "fixed"))
    with pytest.raises(ValueError, match="steps 0 to 0"):
        controller.toggle(1)


def test_rewards_by_name_and_weight(make, target, brightness):
    controller = played(make(rewards={"near": target, "bright": brightness}))
    assert controller.settings.weights == (("near", 1.0), ("bright", 0.0))
    frame = controller.frame()
    assert set(frame.values) == {"near", "bright"}
    assert frame.h == frame.values["near"]
    controller.change(weights=(("near", 0.5), ("bright", 2.0)))
    frame = controller.finish().frame()
    assert frame.h == pytest.approx(0.5 * frame.values["near"] + 2.0 * frame.values["bright"])
    method = dk.DATE(0.5 * target + 2.0 * dk.rewards.as_reward(brightness), rho=0.5)
    sampler = dk.Sampler(
        controller.backbone, method, num_steps=STEPS, guidance_scale=1.0, solver="ddim"
    )
    assert torch.equal(end(controller), sampler.start([PROMPT], seeds=[0]).finish().state.xt)
    weighted = make(rewards=0.5 * target + 2.0 * dk.rewards.as_reward(brightness))
    assert weighted.settings.weights == (("target", 0.5), ("brightness", 2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"seed": -1}, "seed"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 5000}, "num_steps"),
        ({"method": "magic"}, "unknown method"),
        ({"rule": "magic"}, "unknown rule for rho"),
        ({"method": "SoftREPA"}, "none ship for this model"),
        ({"rule": "unnormalised", "scale": 0.0}, "scale"),
        ({"rho": -1.0}, "rho"),
        ({"rho": float("nan")}, "rho"),
        ({"solver": "none"}, "solver"),
        ({"weights": (("target", 0.0),)}, "weight 0"),
        ({"when": dk.steps(1, 2), "anchor": "none"}, "anchor"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(make, change, message):
    controller = played(make())
    before = (controller.settings, controller.timeline, controller.head, controller.goal)
    with pytest.raises(ValueError, match=message):
        controller.change(**change)
    assert (controller.settings, controller.timeline, controller.head, controller.goal) == before


def test_bad_rewards_are_refused(make, target):
    with pytest.raises(TypeError, match="callable"):
        make(rewards="target")
    with pytest.raises(ValueError, match="different names"):
        make(rewards=[target, target])
    with pytest.raises(ValueError, match="0 to 6"):
        make().scrub(7)


def test_words_beyond_the_window_are_noted(make):
    controller = make(prompt="one two three four five six seven eight nine")
    controller.step()
    assert "cut from the end" in controller.finish().notes()[0]
