"""The explorer's controller samples what `dk.Sampler` samples and shows what the formulas say."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import datekit as dk
from datekit import registry
from datekit.analysis import rho_sweep
from datekit.widgets import Controller, Settings
from datekit.widgets.export import python

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


def played(controller):
    controller.play()
    return controller.finish()


def sampled(controller, method, seed=0, steps=STEPS):
    guidance = controller.settings.guidance_scale
    sampler = dk.Sampler(controller.backbone, method, num_steps=steps, guidance_scale=guidance)
    return sampler.start([PROMPT], seeds=[seed])


def end(controller, row="run"):
    return controller.library.run(controller.timelines[row]).states[controller.num_steps].xt


def test_it_samples_what_the_sampler_samples_and_the_twin_starts_from_the_same_noise(make, target):
    controller = played(make(when=dk.every(2), seed=3))
    date = dk.DATE(target, rho=0.5, when=dk.every(2))
    assert torch.equal(end(controller), sampled(controller, date, 3).finish().state.xt)
    plain = sampled(controller, dk.Fixed(), 3).finish()
    assert torch.equal(end(controller, "fixed"), plain.state.xt)
    assert controller.done
    assert not torch.equal(end(controller), end(controller, "fixed"))


def parts(reward, on, scale):
    """The methods by name, made by hand."""
    return {
        "Fixed": dk.Fixed(),
        "DATE": dk.DATE(reward, rho=0.5, when=on),
        "RandomDirection": dk.RandomDirection(rho=0.5, when=on),
        "UniversalGuidance": dk.UniversalGuidance(reward, scale=scale, when=on),
        "EBCA": dk.EBCA(when=on),
        "SoftREPA": dk.SoftREPA("shapes", when=on),
    }


NAMES = ["Fixed", "DATE", "RandomDirection", "UniversalGuidance", "DATE + UniversalGuidance"]
NETWORK = ["EBCA", "DATE + EBCA", "DATE + EBCA + UniversalGuidance", "SoftREPA", "DATE + SoftREPA"]


@pytest.mark.parametrize("name", NAMES + NETWORK)
def test_each_method_and_sum_samples_as_its_own_class(make, target, shapes, reward, name):
    network = name in NETWORK
    backbone, reward = (shapes, reward) if network else (make().backbone, target)
    on = dk.steps(1)
    made = make(reward, backbone, method=name, scale=2.0, when=on, rho=0.5, num_steps=3)
    controller = played(made)
    assert name in made.methods() or name.count("+") == 2
    assert controller.curves()["run"]["updated"] == ([] if name == "Fixed" else [1])
    moved = controller.frame(i=1).scales["guidance"], controller.frame(i=0).scales["guidance"]
    assert (moved[0] > 0, moved[1]) == (name != "Fixed", 0)
    methods = [parts(reward, on, 2.0)[part] for part in name.split(" + ")]
    method = sum(methods[1:], start=methods[0])
    assert torch.equal(end(controller), sampled(controller, method, steps=3).finish().state.xt)


def test_the_menu_has_what_can_be_chosen(make, shapes, reward):
    assert not any("SoftREPA" in name for name in make().methods())  # it has no tokens
    assert "DATE + SoftREPA" in make(reward, shapes).methods()
    assert "DATE + RandomDirection" not in make().methods()  # both choose the embedding


@pytest.mark.parametrize("rule", ["Taylor", "SignalToNoise", "Unnormalised"])
def test_a_rule_for_rho_goes_no_further_than_the_slider(make, target, rule):
    scale = {"scale": 30.0} if rule == "Unnormalised" else {}
    controller = played(make(rule=rule, rho=0.25, **scale))
    made = getattr(dk.rho_rules, rule)(most=0.25, **scale)
    run = sampled(controller, dk.DATE(target, rho=made)).finish()
    assert torch.equal(end(controller), run.state.xt)
    distances = controller.curves()["run"]["distance"]
    assert distances == pytest.approx([info.distance.item() for info in run.history])
    assert 0 < max(distances) <= 0.25 * (1 + 1e-9)


def test_a_method_of_another_file_is_offered_with_its_options(make, tmp_path, monkeypatch):
    (tmp_path / "own_method.py").write_text(
        """from dataclasses import dataclass
import datekit as dk
from datekit.methods import Method
from datekit.methods.base import MethodUpdate
from datekit.registry import option

@dataclass(frozen=True)
class Shift(Method):
    amount: float = option(0.25, help="What is added to every number.", range=(0.0, 1.0))

    def condition(self, denoiser, state):
        cond = state.cond_org
        return MethodUpdate(cond.replace(sequence=cond.sequence + self.amount), moved=True)
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.ENTRIES, "method", registry.entries("method"))
    import own_method

    controller = make(method="Shift", amount=0.5)
    assert {"Shift", "UniversalGuidance + Shift"} < {*controller.methods()}
    run = sampled(played(controller), own_method.Shift(0.5)).finish()
    assert torch.equal(end(controller), run.state.xt)
    namespace = {}
    exec(python(controller), namespace)
    assert namespace["image"].tobytes() == run.images[0].tobytes()


def test_a_frame_holds_what_the_formulas_say(make, target):
    controller = played(make(when=dk.steps(0, 3)))
    run = sampled(controller, dk.DATE(target, rho=0.5, when=dk.steps(0, 3))).finish()
    for i in (3, 4):
        frame, info, state = controller.frame(i=i), run.history[i], run.states[i]
        look = run.fork(at=i).peek()
        picture = controller.backbone.decode(info.x0bar_hat)
        assert frame.h == frame.values["target"] == pytest.approx(target(picture, [PROMPT]).item())
        assert frame.updated == (i == 3)
        assert frame.grad_norm == pytest.approx(look.grad_norm.item())
        assert frame.distance == pytest.approx((info.c - state.c_org).norm().item())
        wanted = (picture[0].clamp(0, 1) * 255).round().permute(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(frame.pictures["decoded"]), wanted)
        plain = sampled(controller, dk.Fixed()).sampler.predict(state, state.cond_org).x0bar
        for name, map_ in {"guidance": info.x0bar_hat - plain, "grad": look.grad_x0bar}.items():
            assert frame.scales[name] == pytest.approx(map_[0].pow(2).mean(0).sqrt().max().item())
        squares = look.grad[0].pow(2).sum(1)
        words = [w for w in state.cond_org.tokens[0] if w != "<pad>"]
        assert list(frame.words) == [*words, f"<pad> x{8 - len(words)}"]
        np.testing.assert_allclose(
            frame.shares[: len(words)], squares[: len(words)] / squares.sum()
        )
        assert (sum(frame.shares), sum(frame.moved)) == (pytest.approx(1), pytest.approx(1))
    final = controller.frame()
    assert (final.i, final.t) == (STEPS, 0)
    np.testing.assert_array_equal(np.asarray(final.pictures["decoded"]), np.asarray(run.images[0]))


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


def test_the_oracle_speaks_of_prompts_of_its_grammar_only(shapes, reward):
    controller = played(Controller(shapes, reward, num_steps=4))
    prompt = controller.settings.prompt
    verdict = dk.shapes.judge([controller.frame().pictures["decoded"]], [prompt])[0]
    assert controller.frame().statements == verdict.statements
    controller.change(prompt="a cat")
    assert controller.finish().frame().statements == ()


def test_a_change_acts_from_the_paused_step_on_and_begins_a_run_under_way_again(make, target):
    controller = make()
    controller.scrub(2)
    controller.finish().change(rho=4.0)
    assert "paused before step 2 of 6" in controller.status()
    run = sampled(played(controller), dk.DATE(target, rho=0.5))
    run.step(2)
    assert torch.equal(end(controller), run.fork(dk.DATE(target, rho=4.0)).finish().state.xt)
    assert "from step 2: DATE, rho 4" in controller.status()

    controller = make()
    controller.play()
    units = [unit for _, unit in zip(range(2), controller.work())]
    assert (units, controller.head) == (["step", "step"], 2)
    assert "sampling step 2 of 6" in controller.status()
    controller.change(rho=4.0)
    assert (controller.head, controller.goal) == (0, STEPS)
    again = sampled(controller.finish(), dk.DATE(target, rho=4.0)).finish()
    assert torch.equal(end(controller), again.state.xt)
    controller.scrub(3)
    controller.change(guidance_scale=3.0)  # of a finished run: from its start
    assert controller.head == 0
    assert controller.finish().shown == 3
    assert controller.done


@pytest.mark.parametrize(
    "change", [{"prompt": "a star"}, {"seed": 9}, {"num_steps": 4}, {"solver": "euler"}]
)
def test_another_prompt_seed_or_length_is_another_run_as_far_as_the_last(make, change):
    controller = make()
    controller.scrub(3)
    controller.finish().fork()
    controller.change(**change)
    assert (controller.goal, controller.old, controller.base) == (3, None, 0)
    assert controller.finish().head == 3


def test_fork_keeps_the_run_for_comparison(make):
    controller = played(make())
    before = end(controller)
    controller.scrub(4)
    controller.fork()
    assert (controller.head, controller.base, controller.paused) == (4, 4, True)
    controller.change(rho=3.0)
    played(controller)
    assert torch.equal(end(controller, "old"), before)
    assert not torch.equal(end(controller), before)
    past = controller.frame(i=2).scales["guidance"]
    controller.change(method="Fixed")
    assert controller.finish().frame(i=2).scales["guidance"] == past > 0  # it stays done
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
    controller.back()
    assert controller.head == 0
    played(controller).play()
    assert controller.head == 0  # once more, from what is known
    played(controller).scrub(3)
    controller.fork()
    controller.back()
    played(controller).change(rho=6.0)
    assert controller.head == controller.base == 2  # as far back as one went


def test_nothing_is_sampled_twice(make, target):
    controller = played(make(backbone=_Counting()))
    controller.change(rho=2.0)
    controller.finish()
    before = _Counting.calls
    controller.change(rho=0.5)
    controller.finish()
    for i in range(STEPS + 1):
        controller.scrub(i)
        controller.frame(), controller.frame("fixed"), controller.curves(), controller.cosines()
    controller.change(when=dk.steps(*range(STEPS)))  # every step, in other words
    controller.finish()
    assert _Counting.calls == before
    controller.change(rho=0.25)
    next(controller.work())
    assert _Counting.calls > before


def test_a_sweep_is_the_reward_at_each_radius(make, target):
    controller = make(rho=1.0)
    controller.scrub(2)
    controller.sweep()
    assert controller.swept() is None
    told = [controller.status() for unit in controller.work() if unit == "sweep"]
    assert [f"radius {n} of 7" in told[n - 2] for n in range(2, 8)] == [True] * 6
    swept = controller.swept()
    run = sampled(controller, dk.DATE(target, rho=1.0))
    run.step(2)
    look = run.peek()
    assert swept.rhos.tolist() == [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
    for rho, h, images in zip(swept.rhos, swept.h, swept.images, strict=True):
        x0bar = run.sampler.predict(run.state, look.c + rho * look.direction).x0bar
        picture = controller.backbone.decode(x0bar)
        assert h.item() == pytest.approx(target(picture, [PROMPT]).item())
        torch.testing.assert_close(images, picture.float())
    torch.testing.assert_close(swept.predicted[:, 0], look.h + swept.rhos * look.grad_norm)
    # to first order, the two agree: the error falls with the square of the radius
    small = rho_sweep(run, [1e-3, 2e-3])
    errors = (small.h - small.predicted).abs()[:, 0]
    assert (errors[1] / errors[0]).item() == pytest.approx(4, rel=0.05)
    assert len(small.to_frame()) == 2
    with pytest.raises(ValueError, match="finite radii from 0 up"):
        rho_sweep(run, [-1.0])


def test_what_a_method_does_not_read_does_not_count():
    set_here = Settings().change(anchor="reset", rho=3.0, when=dk.late())
    fixed = set_here.change(method="Fixed", rule="Taylor")
    assert fixed.plain() == set_here.change(when=None).plain() == Settings(method="Fixed").plain()
    every = Settings().change(when=dk.every(1))
    assert every.plain() == every.change(when=dk.steps(range(20))).plain() == Settings().plain()
    assert every.plain() != every.change(when=dk.every(2)).plain()
    assert Settings().change(rho=1.0).plain() != Settings().change(rho=2.0).plain()
    scaled = Settings().change(scale=2.0)
    assert scaled.plain() == Settings().plain()
    assert scaled.change(rule="Unnormalised").plain() != Settings(rule="Unnormalised").plain()


def test_steps_to_click(make):
    controller = make(when=dk.every(3))
    controller.toggle(1)
    controller.toggle(3)
    assert controller.settings.updates == (0, 1)
    controller.change(num_steps=1)
    assert controller.settings.updates == (0,)
    controller.toggle(0)
    assert controller.settings.value("when") is None
    assert torch.equal(end(played(controller)), end(controller, "fixed"))


def test_rewards_by_name_and_weight(make, target, brightness):
    controller = played(make({"near": target, "bright": brightness}))
    assert controller.settings.weights == (("near", 1.0), ("bright", 0.0))
    assert set(controller.frame().values) == {"near", "bright"}
    controller.change(weights={"near": 0.5, "bright": 2.0})
    frame = controller.finish().frame()
    assert frame.h == pytest.approx(0.5 * frame.values["near"] + 2.0 * frame.values["bright"])
    combined = 0.5 * target + 2.0 * dk.rewards.as_reward(brightness)
    run = sampled(controller, dk.DATE(combined, rho=0.5)).finish()
    assert torch.equal(end(controller), run.state.xt)
    assert make(combined).settings.weights == (("target", 0.5), (brightness.name, 2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"seed": -1}, "seed"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 5000}, "num_steps"),
        ({"method": "magic"}, "unknown method"),
        ({"rule": "magic"}, "unknown rho rule"),
        ({"magic": 1.0}, "unknown setting 'magic'"),
        ({"method": "SoftREPA"}, "needs tokens"),
        ({"method": "DATE + EBCA"}, "cross-attention of a U-Net"),
        ({"rule": "Unnormalised", "scale": 0.0}, "scale"),
        ({"rho": -1.0}, "rho"),
        ({"rho": float("nan")}, "rho"),
        ({"solver": "none"}, "solver"),
        ({"weights": {"target": 0.0}}, "weight 0"),
        ({"anchor": "none"}, "anchor"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(make, change, message):
    controller = played(make())
    before = (controller.settings, controller.timeline, controller.head, controller.goal)
    with pytest.raises(ValueError, match=message):
        controller.change(**change)
    assert (controller.settings, controller.timeline, controller.head, controller.goal) == before


def test_bad_rewards_and_steps_are_refused_and_a_long_prompt_is_noted(make, target):
    with pytest.raises(TypeError, match="callable"):
        make("target")
    with pytest.raises(ValueError, match="different names"):
        make([target, target])
    with pytest.raises(ValueError, match="0 to 6"):
        make().scrub(7)
    controller = make(prompt="one two three four five six seven eight nine")
    controller.step()
    assert "cut from the end" in controller.finish().notes()[0]


def test_a_joint_transformer_sampled_as_a_flow(reward):
    """Pictures, verdict, sweep and exported lines, as with a U-Net."""
    flow = dk.load("shapes-flow", device="cpu", text_encoder_3=None, tokenizer_3=None)
    controller = Controller(flow, reward, num_steps=4, rho=2.0, when=dk.every(2))
    controller.scrub(2)
    controller.fork()
    controller.change(method="DATE + UniversalGuidance", scale=4.0)
    played(controller).scrub(2)
    controller.sweep()
    frame, twin = controller.finish().frame(), controller.frame("fixed")
    prompt = controller.settings.prompt
    assert [word for word in frame.words if not word.startswith("<")] == prompt.split()
    assert frame.scales["guidance"] > 0 == twin.scales["guidance"]
    assert frame.distance == pytest.approx(2.0, rel=1e-3)
    assert frame.statements == dk.shapes.judge([frame.pictures["decoded"]], [prompt])[0].statements
    plain = dk.Sampler(flow, num_steps=4).start([prompt], seeds=[0]).finish()
    assert torch.equal(end(controller, "fixed"), plain.state.xt)
    swept = controller.swept()
    slopes = (swept.predicted[:, 0] - swept.h0) / swept.rhos
    np.testing.assert_allclose(slopes, frame.grad_norm, rtol=1e-5)
    namespace = {}
    exec(python(controller), namespace)
    assert namespace["image"].tobytes() == frame.pictures["decoded"].tobytes()
    assert namespace["fixed_image"].tobytes() == twin.pictures["decoded"].tobytes()


def test_the_controller_needs_no_widgets():
    modules = ", ".join(f"datekit.widgets.{name}" for name in ("controller", "export", "worker"))
    code = f"import sys, {modules}; print('ipywidgets' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "False"
