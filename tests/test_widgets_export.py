"""What the explorer gives away: lines of Python that make the same bytes, and pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

import datekit as dk
from datekit.widgets import Controller, Settings
from datekit.widgets.export import gif, method_code, png, python, schedule_code
from datekit.widgets.pictures import screen_png

PROMPT = "a red circle"
SCHEDULES = (dk.every(3), dk.fraction(0.25), dk.early(), dk.middle(), dk.late(), dk.steps(0, 4))


@pytest.fixture(scope="module")
def closed_form():
    return dk.load("gaussian")


def played(controller):
    controller.play()
    return controller.finish()


def reproduces(controller):
    """The exported lines make both pictures on screen again, to the same bits."""
    namespace = {}
    exec(python(controller), namespace)
    made = [namespace[name].tobytes() for name in ("image", "fixed_image")]
    return made == [controller.frame(r).pictures["decoded"].tobytes() for r in ("run", "fixed")]


def test_methods_and_schedules_in_python(target):
    for when in SCHEDULES:
        assert eval(schedule_code(when), {"dk": dk}) == when
    assert method_code(Settings().change(when=None)) == "dk.Fixed()"
    both = Settings(method="DATE + SoftREPA", rule="Unnormalised").change(
        rho=np.float32(2), scale=20, when=lambda i: i < 2, tokens="shapes"
    )
    on = dk.steps(0, 1)
    made = eval(method_code(both), {"dk": dk, "reward": target})
    date = dk.DATE(target, rho=dk.rho_rules.Unnormalised(20.0, most=2.0), when=on)
    assert [part for part in made.parts if isinstance(part, dk.DATE)] == [date]
    assert [part.when for part in made.parts] == [on, on]


def test_the_exported_lines_make_the_picture_again(shapes, reward):
    judge = dk.rewards.load("shapes-clip-heldout", device="cpu")
    weights = {reward.name: 0.5, judge.name: 0.25}
    controller = Controller(shapes, [reward, judge], num_steps=5, weights=weights, when=dk.every(2))
    controller.scrub(2)
    controller.finish().change(guidance_scale=3.0, rho=1.5)
    played(controller).change(method="DATE + SoftREPA", rule="SignalToNoise")
    assert reproduces(played(controller))


def test_the_name_of_a_reward_cannot_become_code(closed_form):
    def mean(images, prompts):
        return images.mean((1, 2, 3))

    controller = Controller(closed_form, {"x\nimport os": mean}, prompt=PROMPT, num_steps=3)
    mean.__name__ = "y\nraise SystemExit"
    lines = python(played(controller))
    assert "the one that dk.explore was given" in lines
    assert not [line for line in lines.splitlines() if line.startswith(("import os", "raise"))]


ACTS = [
    *(lambda c, name=name: getattr(c, name)() for name in ("play", "step", "back", "restart")),
    *(lambda c, name=name: getattr(c, name)() for name in ("pause", "fork", "join")),
    lambda c: c.scrub(2),
    lambda c: c.scrub(0),
    lambda c: c.toggle(1),
    lambda c: c.change(rho=2.0),
    lambda c: c.change(rho=0.5),
    lambda c: c.change(guidance_scale=2.0),
    lambda c: c.change(when=None),
    lambda c: c.change(method="RandomDirection"),
    lambda c: c.change(method="Fixed"),
    lambda c: c.change(method="DATE", anchor="running"),
    lambda c: c.change(method="DATE + UniversalGuidance", scale=5.0),
    lambda c: c.change(rule="Taylor"),
    lambda c: c.change(rule="Unnormalised", scale=20.0),
    lambda c: c.change(seed=4),
    lambda c: c.change(num_steps=3),
]


@settings(max_examples=20)
@given(acts=st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 2)), min_size=1, max_size=7))
def test_whatever_is_done_the_exported_lines_make_the_picture_again(closed_form, target, acts):
    """... to the same bits, and the cursor stays within the run."""
    controller = Controller(closed_form, target, prompt=PROMPT, num_steps=4)
    controller.eager = False
    for act, units in acts:
        act(controller)
        for _ in zip(range(units), controller.work()):
            pass
        assert 0 <= controller.shown <= controller.head <= controller.goal <= controller.num_steps
        assert controller.base <= controller.num_steps
    assert reproduces(controller.finish())


def test_pictures_to_take_away(closed_form, target):
    prompt = "a $red$ circle for $5"
    controller = played(Controller(closed_form, target, prompt=prompt, num_steps=6))
    controller.scrub(2)
    controller.fork()
    assert Image.open(io.BytesIO(png(controller.finish()))).width > 500
    animation = Image.open(io.BytesIO(gif(played(controller))))
    assert len(list(ImageSequence.Iterator(animation))) == 7
    assert animation.width == 3 * 128 + 2 * 6  # the run, its twin, and the run before the fork


@pytest.mark.parametrize(
    ("size", "shown"),
    [((32, 32), (160, 160)), ((200, 200), (200, 200)), ((1024, 512), (288, 144))],
)
def test_a_picture_is_sent_in_a_size_for_the_screen(size, shown):
    """... so that one of 1024 pixels does not travel in full to be shown in some hundred."""
    assert Image.open(io.BytesIO(screen_png(Image.new("RGB", size), 144))).size == shown
