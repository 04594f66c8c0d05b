"""The explorer's controller samples what `dk.Sampler` samples, and its exports make it again."""

from __future__ import annotations

import dataclasses
import io
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

import datekit as dk
from datekit.widgets import Controller, Settings
from datekit.widgets.export import gif, png, python
from datekit.widgets.settings import method_names, notch, schedule_in_words

STEPS = 6
PROMPT = "a red circle"


class _Counting(dk.GaussianBackbone):
    """The closed-form model, which counts how often it was asked."""

    calls = 0

    def predict(self, xt, t, cond):
        type(self).calls += 1
        return super().predict(xt, t, cond)


@pytest.fixture(scope="module")
def closed_form():
    return dk.load("gaussian")


@pytest.fixture
def make(closed_form, target):
    def build(rewards=target, backbone=closed_form, **more):
        return Controller(backbone, rewards, **{"prompt": PROMPT, "num_steps": STEPS} | more)

    return build


def sampled(controller, method, seed=0, steps=STEPS):
    guidance = controller.settings.guidance_scale
    sampler = dk.Sampler(controller.backbone, method, num_steps=steps, guidance_scale=guidance)
    return sampler.start([PROMPT], seeds=[seed])


def end(controller, row="run"):
    return controller.run(row).finish().state.xt


def reproduces(controller):
    """Whether the exported lines make the picture on screen again, to the same bits."""
    namespace = {}
    exec(python(controller), namespace)
    return namespace["image"].tobytes() == controller.frame().picture.tobytes()


def test_it_samples_what_the_sampler_samples_and_the_twin_starts_from_the_same_noise(make, target):
    controller = make(when=dk.every(2), seed=3).finish()
    date = dk.DATE(target, rho=0.5, when=dk.every(2))
    assert torch.equal(end(controller), sampled(controller, date, 3).finish().state.xt)
    plain = sampled(controller, dk.Fixed(), 3).finish()
    assert torch.equal(end(controller, "fixed"), plain.state.xt)
    assert controller.frame("fixed").picture.tobytes() == plain.images[0].tobytes()
    assert not torch.equal(end(controller), end(controller, "fixed"))


METHODS = ["Fixed", "DATE", "RandomDirection", "UniversalGuidance", "LiDAR", "EBCA", "SoftREPA"]


@pytest.mark.parametrize("name", METHODS)
def test_each_method_samples_as_its_own_class(make, target, shapes, reward, name):
    network = name in ("EBCA", "SoftREPA")  # these need one
    backbone, reward = (shapes, reward) if network else (make().backbone, target)
    given = {"scale": 2.0, "when": dk.steps(1), "rho": 0.5}
    controller = make(reward, backbone, method=name, num_steps=3, **given)
    controller.finish()
    assert name in method_names(controller.settings)
    updated = [] if name == "Fixed" else [1]
    assert [f.i for f in controller.curves()["run"] if f.updated] == updated
    assert list(controller.updates) == updated
    given |= {"reward": reward, "tokens": "shapes"}
    read = {field.name for field in dataclasses.fields(getattr(dk, name))}
    method = getattr(dk, name)(**{key: given[key] for key in read & given.keys()})
    run = sampled(controller, method, steps=3).finish()
    assert torch.equal(end(controller), run.state.xt)
    assert reproduces(controller)


def picture(run, i, row):
    """What a run expects at step i, or its end, of one of its samples."""
    if i == STEPS:
        return run.images[row].tobytes()
    info = run.history[i]
    return info.replace(x0bar=info.x0bar_hat).images[row].tobytes()


def test_steering_shows_its_best_particle_beside_one_that_is_alone(make, target):
    controller = make(method="FKSteering", strength=60.0, seed=3).finish()
    settings = {"num_steps": STEPS, "eta": 1.0}
    settings["guidance_scale"] = controller.settings.guidance_scale
    sampler = dk.FKSteering(controller.backbone, reward=target, strength=60.0, **settings)
    run = sampler.start([PROMPT], seeds=[3]).finish()
    alone = dk.Sampler(controller.backbone, **settings).start([PROMPT], seeds=[3]).finish()
    best = [*run.rewards(target).argmax(1).tolist(), *sampler.best(run.state)]
    assert len({*best}) > 1
    for i, row in enumerate(best):
        controller.scrub(i)
        assert controller.frame().picture.tobytes() == picture(run, i, row)
        assert controller.frame("fixed").picture.tobytes() == picture(alone, i, 0)
        weights = [each.extras.get("fk_log_weights") for each in run.history[: i + 1]]
        weights = [each.softmax(0) for each in weights if each is not None][-1]
        told = f"particle {row + 1} of 4, .* {1 / (weights**2).sum():.1f} \\(effective sample size"
        assert re.match(told, controller.frame().told)
        assert reproduces(controller)


def test_reno_pauses_after_each_noise_and_shows_the_run_of_the_best(make, target):
    controller = make(method="ReNO", iterations=3, rate=1.0)
    for _ in zip(range(STEPS + 3), controller.work()):  # the twin, its picture, two noises
        pass
    assert "2 of 4 noises judged, each by 6 steps" in controller.status()
    next(controller.work())
    assert "3 of 4 noises" in controller.status()
    guidance = controller.finish().settings.guidance_scale
    sampler = dk.Sampler(controller.backbone, num_steps=STEPS, guidance_scale=guidance)
    search = dk.ReNO(sampler, target, 3, rate=1.0).start([PROMPT], seeds=[0]).finish()
    assert search.index > 0
    for i in (STEPS, 2):
        controller.scrub(i)
        assert controller.frame().picture.tobytes() == picture(search.run.finish(), i, 0)
        assert f"noise {search.index.item() + 1} of 4" in controller.frame().told
        assert reproduces(controller)


@pytest.mark.parametrize("name", ["FKSteering", "ReNO"])
def test_what_shapes_a_whole_run_goes_with_no_fork(make, name):
    for first, then in ((name, "Fixed"), ("DATE", name)):
        controller = make(method=first, iterations=1)
        controller.scrub(3)
        controller.finish().fork()
        before = dict(controller.timelines)
        with pytest.raises(ValueError, match=f"{name} shapes a run as a whole.*join first"):
            controller.change(method=then)
        assert controller.timelines == before
        controller.join()
        controller.change(method=then)
        assert reproduces(controller.finish())


def test_a_frame_holds_what_the_formulas_say(make, target):
    controller = make(when=dk.steps(0, 3)).finish()
    run = sampled(controller, dk.DATE(target, rho=0.5, when=dk.steps(0, 3))).finish()
    for i in (3, 4):
        frame, info, state = controller.frame(i=i), run.history[i], run.states[i]
        picture = controller.backbone.decode(info.x0bar_hat)
        assert frame.values == {"target": pytest.approx(target(picture, [PROMPT]).item())}
        assert frame.updated == (i == 3)
        assert frame.distance == pytest.approx((info.c - state.c_org).norm().item())
        wanted = (picture[0].clamp(0, 1) * 255).round().permute(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(frame.picture), wanted)
    frames = controller.curves()["run"]
    np.testing.assert_allclose([f.values["target"] for f in frames], run.rewards()[:, 0])
    assert [f.i for f in frames if f.updated] == [0, 3]
    assert controller.frame().picture.tobytes() == run.images[0].tobytes()


def test_the_oracle_speaks_of_prompts_of_its_grammar_only(shapes, reward):
    controller = Controller(shapes, reward, num_steps=4).finish()
    prompt, picture = controller.settings.prompt, controller.frame().picture
    assert controller.frame().verdict == dk.shapes.judge([picture], [prompt])[0]
    controller.change(prompt="a cat")
    assert controller.finish().frame().verdict is None


def test_several_rewards_look_on_and_one_guides(make, target, brightness):
    controller = make({"near": target, "bright": brightness}).finish()
    assert set(controller.frame().values) == {"near", "bright"}
    controller.change(reward="bright")
    run = sampled(controller.finish(), dk.DATE(brightness, rho=0.5)).finish()
    assert torch.equal(end(controller), run.state.xt)
    combined = 0.5 * target + 2.0 * dk.rewards.as_reward(brightness)
    run = sampled(controller, dk.DATE(combined, rho=0.5)).finish()
    assert torch.equal(end(make(combined).finish()), run.state.xt)


def test_a_change_during_the_work_begins_again_and_the_step_on_screen_stays(make, target):
    controller = make()
    for _ in zip(range(STEPS + 3), controller.work()):  # the twin, its picture, two steps
        pass
    assert "sampling step 2 of 6" in controller.status()
    controller.change(rho=4.0)
    again = sampled(controller.finish(), dk.DATE(target, rho=4.0)).finish()
    assert torch.equal(end(controller), again.state.xt)
    controller.scrub(3)
    controller.change(guidance_scale=3.0)
    assert controller.finish().shown == 3


def test_a_final_picture_of_many_steps_begins_with_a_draft(make, target):
    controller = make(num_steps=20, when=dk.steps(0, 1, 19))
    seen = []
    for _ in controller.work():
        seen += [frame for frame in controller.pictures().values() if frame not in seen]
    assert [frame.steps for frame in seen] == [5, 5, 20, 20]
    for steps, frame in ((5, seen[1]), (20, seen[3])):
        date = dk.DATE(target, rho=0.5, when=dk.steps(*([0, 4] if steps == 5 else [0, 1, 19])))
        again = sampled(controller, date, steps=steps).finish()
        assert frame.picture.tobytes() == again.images[0].tobytes()
    assert controller.pictures()["run"] is controller.frame()


def test_the_neighbours_of_rho_are_there_before_they_are_asked_for(make):
    controller = make(backbone=_Counting()).finish()
    list(controller.ahead())
    before = _Counting.calls
    for by in (1, 2, 3, 0, -1, -2, -3):
        controller.change(rho=notch(0.5, by))
        assert controller.answered
    assert _Counting.calls == before
    controller.change(rho=notch(0.5, 4))
    assert not controller.answered


@pytest.mark.parametrize(
    ("updates", "words"),
    [
        (range(10), "every step"),
        (range(4, 10), "every step"),  # that is left after a fork at 4
        (range(4, 8), "steps 4 to 7"),
        ((0, 1, 2), "no update"),
        ((5,), "steps 5"),
        ((4, 5, 9), "steps 4, 5, 9"),
    ],
)
def test_a_schedule_after_a_fork_in_words(updates, words):
    assert schedule_in_words(updates, 4, 10) == words


def test_words_that_the_model_does_not_know_are_answered_with_those_it_does(shapes, reward):
    prompt = "A purple cat, left of 2 red circles"
    controller = Controller(shapes, reward, prompt=prompt, num_steps=2)
    assert "cat, 2;" in controller.finish().hint()
    assert "square" in controller.hint()
    controller.change(prompt="two purple stars")
    assert controller.finish().hint() == ""


def test_scrubbing_samples_as_far_as_is_asked_for(make):
    controller = make()
    for to in (0, 1, 3, 2):
        controller.scrub(to)
        assert controller.finish().shown == to
    assert controller.head == 4
    assert controller.run(i=2).state.i == 4


def test_fork_keeps_the_run_for_comparison(make, target):
    controller = make().finish()
    before = end(controller)
    controller.scrub(4)
    controller.fork()
    controller.change(rho=3.0, when=dk.every(1))
    controller.scrub(STEPS)
    controller.finish()
    assert "from step 4 on" in controller.status()
    assert "from step 4: DATE, rho 3" in controller.status()
    run = sampled(controller, dk.DATE(target, rho=0.5))
    run.step(4)
    assert torch.equal(end(controller), run.fork(dk.DATE(target, rho=3.0)).finish().state.xt)
    assert torch.equal(end(controller, "old"), before)
    assert controller.frame(i=2) is controller.frame("old", 2)  # the past is one
    assert reproduces(controller)
    controller.change(method="Fixed")
    assert controller.updates == (0, 1, 2, 3)  # what happened before the fork stays
    controller.join()
    assert set(controller.timelines) == {"run", "fixed"}
    assert torch.equal(end(controller.finish()), end(controller, "fixed"))


@pytest.mark.parametrize(
    "change", [{"prompt": "a star"}, {"seed": 9}, {"num_steps": 4}, {"solver": "euler"}]
)
def test_another_prompt_seed_or_length_ends_the_fork(make, change):
    controller = make()
    controller.scrub(3)
    controller.finish().fork()
    controller.change(**change)
    assert (controller.at, controller.base, "old" in controller.timelines) == (3, 0, False)
    assert controller.finish().shown == 3


def test_nothing_is_sampled_twice(make):
    controller = make(backbone=_Counting()).finish()
    for rho in (2.0, 0.5):
        before = _Counting.calls
        controller.change(rho=rho)
        controller.finish()
    controller.change(when=dk.steps(*range(STEPS)))  # every step, in other words
    for i in range(STEPS + 1):
        controller.scrub(i)
        controller.finish().frame(), controller.frame("fixed"), controller.curves()
    assert _Counting.calls == before
    controller.change(rho=0.25)
    next(controller.work())
    assert _Counting.calls > before


def test_what_a_method_does_not_read_does_not_count():
    set_here = Settings().change(anchor="reset", rho=3.0, when=dk.late())
    fixed = set_here.change(method="Fixed", reward="other")
    assert fixed.plain() == set_here.change(when=None).plain() == Settings(method="Fixed").plain()
    every = Settings().change(when=dk.every(1))
    assert every.plain() == every.change(when=dk.steps(range(20))).plain() == Settings().plain()
    assert every.plain() != every.change(when=dk.every(2)).plain()
    assert Settings().change(rho=1.0).plain() != Settings().change(rho=2.0).plain()
    assert every.change(when=dk.steps(0, 19)).change(num_steps=1).updates == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 5000}, "5000"),
        ({"num_steps": 10**12}, "num_steps must be a whole number from 1 to 10000"),
        ({"prompt": 3}, "a prompt is a text"),
        ({"method": "magic"}, "unknown method"),
        ({"reward": "magic"}, "unknown reward"),
        ({"magic": 1.0}, "unknown setting 'magic'"),
        ({"rho": -1.0}, "rho"),
        ({"rho": float("nan")}, "rho"),
        ({"rho": dk.rho_rules.Taylor()}, "sets rho to a number or a word"),
        ({"solver": "none"}, "solver"),
        ({"anchor": "none"}, "anchor"),
        ({"method": "ReNO", "iterations": -1}, "iterations"),
        ({"method": "FKSteering", "particles": 0}, "particles"),
        ({"method": "FKSteering", "eta": 0.0}, "adds no noise"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(make, change, message):
    controller = make().finish()
    before = controller.settings, dict(controller.timelines), controller.at
    with pytest.raises(ValueError, match=message):
        controller.change(**change)
    assert (controller.settings, controller.timelines, controller.at) == before


def test_bad_rewards_and_steps_are_refused_and_a_long_prompt_is_noted(make, target):
    with pytest.raises(TypeError, match="callable"):
        make("target")
    with pytest.raises(ValueError, match="one reward at least"):
        make({})
    with pytest.raises(ValueError, match="0 to 6"):
        make().scrub(7)
    controller = make(prompt="one two three four five six seven eight nine")
    assert "cut from the end" in controller.finish().hint()


def test_exports_of_a_joint_transformer_with_a_sum_of_rewards(reward):
    flow = dk.load("shapes-flow", device="cpu", text_encoder_3=None, tokenizer_3=None)
    judge = dk.rewards.load("shapes-clip-heldout", device="cpu")
    summed = 0.5 * reward + 0.25 * judge
    controller = Controller(flow, summed, num_steps=4, rho=np.float32(2), when=dk.every(2)).finish()
    plain = dk.Sampler(flow, num_steps=4).start([controller.settings.prompt], seeds=[0]).finish()
    assert torch.equal(end(controller, "fixed"), plain.state.xt)
    assert reproduces(controller)
    assert "the one that dk.explore was given" not in python(controller)
    controller.scrub(2)
    controller.fork()
    controller.change(guidance_scale=3.0, rho=1.5, anchor="running", when=dk.steps(3))
    controller.scrub(3)
    assert reproduces(controller.finish())


def test_the_name_of_a_reward_cannot_become_code(make):
    def mean(images, prompts):
        return images.mean((1, 2, 3))

    mean.__name__ = "y\nraise SystemExit"
    lines = python(make({"x\nimport os": mean}).finish())
    assert "reward  # the one that dk.explore was given" in lines
    assert not [line for line in lines.splitlines() if line.startswith(("import os", "raise"))]


ACTS = [
    lambda c: c.fork(),
    lambda c: c.join(),
    lambda c: c.scrub(max(c.shown - 1, 0)),
    lambda c: c.scrub(2),
    lambda c: c.scrub(c.num_steps),
    lambda c: c.change(rho=2.0),
    lambda c: c.change(guidance_scale=2.0),
    lambda c: c.change(when=None),
    lambda c: c.change(when=dk.every(2)),
    lambda c: c.change(method="RandomDirection"),
    lambda c: c.change(method="Fixed"),
    lambda c: c.change(method="DATE", anchor="running"),
    lambda c: c.change(method="UniversalGuidance", scale=5.0),
    lambda c: c.change(method="FKSteering", strength=60.0),
    lambda c: c.change(method="ReNO", iterations=1),
    lambda c: c.change(seed=4),
    lambda c: c.change(num_steps=3),
]


@settings(max_examples=20)
@given(acts=st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 2)), min_size=1, max_size=7))
def test_whatever_is_done_the_exported_lines_make_the_picture_again(closed_form, target, acts):
    """... to the same bits, and the cursor stays within the run."""
    controller = Controller(closed_form, target, prompt=PROMPT, num_steps=4)
    for act, units in acts:
        try:
            act(controller)
        except ValueError as error:
            assert "takes no fork" in str(error)  # noqa: PT017
        for _ in zip(range(units), controller.work()):
            pass
        assert 0 <= controller.shown <= controller.num_steps
        assert controller.base < controller.num_steps
    assert reproduces(controller.finish())


def test_pictures_to_take_away(make):
    controller = make(prompt="a $red$ circle for $5").finish()
    controller.scrub(2)
    controller.fork()
    assert Image.open(io.BytesIO(png(controller))).width == 3 * 512  # run, twin, before the fork
    controller.scrub(STEPS)
    animation = Image.open(io.BytesIO(gif(controller.finish())))
    assert len(list(ImageSequence.Iterator(animation))) == STEPS + 1


def test_the_controller_needs_no_widgets():
    modules = ", ".join(f"datekit.widgets.{name}" for name in ("controller", "export", "worker"))
    code = f"import sys, {modules}; print('ipywidgets' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "False"
