"""What the explorer gives away: lines of Python that make the same bytes, pictures, an animation."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

import datekit as dk
from datekit.widgets import Controller, Settings
from datekit.widgets.export import gif, picture_png, png, python
from datekit.widgets.settings import method_code, schedule_code

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def closed_form():
    return dk.load("gaussian")


def played(controller):
    controller.play()
    return controller.finish()


def test_schedules_in_python():
    for when in (
        dk.every(3),
        dk.fraction(0.25),
        dk.early(),
        dk.middle(),
        dk.late(),
        dk.steps(0, 4),
    ):
        assert eval(schedule_code(when), {"dk": dk}) == when
    assert (
        method_code(Settings(when=lambda i: i < 2))
        == "dk.DATE(reward, rho=0.5, when=dk.steps(0, 1), anchor='original')"
    )
    assert method_code(Settings(when=None)) == "dk.Fixed()"
    both = Settings(
        method="DATE + Universal Guidance",
        rho=np.float32(2),
        scale=3,
        when=dk.every(2),
        seed=np.int64(1),
    )
    assert method_code(both) == (
        "dk.DATE(reward, rho=2.0, when=dk.every(2), anchor='original')"
        " + dk.UniversalGuidance(reward, scale=3.0, when=dk.every(2))"
    )
    assert repr(both.seed) == "1"
    ruled = Settings(
        method="DATE + SoftREPA", rule="unnormalised", scale=200, tokens="shapes", when=dk.late()
    )
    assert method_code(ruled) == (
        "dk.DATE(reward, rho=dk.rho_rules.Unnormalised(scale=200.0, most=0.5), when=dk.late(), anchor='original')"
        " + dk.SoftREPA(tokens='shapes', when=dk.late())"
    )


def reproduced(controller, **given):
    names = dict(given)
    exec(python(controller), names)
    return names["image"], names["fixed_image"]


def test_the_exported_lines_make_the_picture_again(shapes, reward):
    judge = dk.rewards.load("shapes-clip-heldout", device="cpu")
    controller = Controller(
        shapes,
        [reward, judge],
        num_steps=5,
        weights=((reward.name, 0.5), (judge.name, 0.25)),
        when=dk.every(2),
    )
    controller.scrub(2)
    controller.finish()
    controller.change(guidance_scale=3.0, rho=1.5)
    played(controller)
    controller.change(method="DATE + SoftREPA", rule="signal to noise")
    played(controller)
    assert [a.tobytes() for a in reproduced(controller)] == [
        controller.frame(r).pictures["decoded"].tobytes() for r in ("run", "fixed")
    ]
    given = Controller(shapes, lambda images, prompts: images.mean((1, 2, 3)), num_steps=3)
    assert "the one that dk.explore was given" in python(played(given))


ACTS = st.sampled_from(
    [
        lambda c: c.play(),
        lambda c: c.step(),
        lambda c: c.back(),
        lambda c: c.restart(),
        lambda c: c.pause(),
        lambda c: c.fork(),
        lambda c: c.join(),
        lambda c: c.scrub(2),
        lambda c: c.scrub(0),
        lambda c: c.toggle(1),
        lambda c: c.change(rho=2.0),
        lambda c: c.change(rho=0.5),
        lambda c: c.change(guidance_scale=2.0),
        lambda c: c.change(when=None),
        lambda c: c.change(method="random direction"),
        lambda c: c.change(method="fixed"),
        lambda c: c.change(method="DATE", anchor="running"),
        lambda c: c.change(method="DATE + Universal Guidance", scale=5.0),
        lambda c: c.change(rule="Taylor"),
        lambda c: c.change(rule="unnormalised", scale=20.0),
        lambda c: c.change(seed=4),
        lambda c: c.change(num_steps=3),
    ]
)


@settings(max_examples=20)
@given(acts=st.lists(st.tuples(ACTS, st.integers(0, 2)), min_size=1, max_size=7))
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
    controller.finish()
    assert [a.tobytes() for a in reproduced(controller)] == [
        controller.frame(r).pictures["decoded"].tobytes() for r in ("run", "fixed")
    ]


def test_pictures_to_take_away(closed_form, target):
    controller = played(Controller(closed_form, target, prompt=PROMPT, num_steps=6))
    controller.scrub(2)
    controller.fork()
    assert Image.open(io.BytesIO(png(controller.finish()))).width > 500
    animation = Image.open(io.BytesIO(gif(played(controller))))
    assert len(list(ImageSequence.Iterator(animation))) == 7
    assert animation.width == 3 * 128 + 2 * 6  # the run, its twin, and the run from before the fork


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((32, 32), (160, 160)),
        ((64, 32), (192, 96)),
        ((200, 200), (200, 200)),
        ((1024, 512), (288, 144)),
    ],
)
def test_a_picture_is_sent_in_a_size_for_the_screen(size, shown):
    """... so that one of 1024 pixels does not travel in full to be shown in some hundred."""
    assert Image.open(io.BytesIO(picture_png(Image.new("RGB", size), 144))).size == shown
