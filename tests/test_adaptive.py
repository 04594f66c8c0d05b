"""Rules for rho, against the formulas written out again, and what DATE makes of their answers."""

from __future__ import annotations

from types import SimpleNamespace

import families
import pipelines
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import datekit as dk
from datekit.methods.rho_rules import LineSearch, SignalToNoise, Taylor, Unnormalised, ask

W, RHO = 4.0, 0.4
RULES = [
    Taylor(tolerance=0.3, trial=0.2, most=5.0),
    SignalToNoise(most=2.0, draws=2),
    Unnormalised(3.0),
]


class Along:
    """A reward of which every derivative is known: h0 + slope rho + bend rho^2, a row a sample."""

    def __init__(self, slope, bend):
        self.slope, self.bend, self.look = (
            slope,
            bend,
            SimpleNamespace(h=torch.full_like(slope, 0.7)),
        )

    def h(self, rho):
        return 0.7 + self.slope * rho + self.bend * rho**2


def start(backbone, rule, prompts, **settings):
    method = dk.DATE(pipelines.Brightness(), **{"rho": rule} | settings)
    return dk.Sampler(backbone, method, num_steps=6, guidance_scale=W).start(
        prompts, seeds=[0, 1, 2]
    )


@given(
    st.floats(0.01, 10),
    st.floats(-10, 10).filter(lambda x: abs(x) > 1e-3),
    st.floats(0.05, 2),
    st.floats(0.05, 2),
)
def test_at_the_taylor_radius_the_first_order_is_wrong_by_the_tolerance(
    slope, bend, tolerance, trial
):
    line = Along(
        torch.tensor([slope], dtype=torch.float64), torch.tensor([bend], dtype=torch.float64)
    )
    rho = Taylor(tolerance, trial, most=1e9)(line)
    wrong = (line.h(rho) - 0.7 - rho * slope).abs() / (rho * slope)
    torch.testing.assert_close(
        wrong, torch.tensor([tolerance], dtype=torch.float64), rtol=1e-4, atol=0
    )
    assert Taylor(tolerance, trial, most=0.01)(line) <= 0.01


def test_a_straight_line_and_a_zero_gradient_leave_the_taylor_rule_finite():
    flat = Along(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]))
    assert Taylor(most=2.0)(flat).tolist() == [pytest.approx(2.0), pytest.approx(2.0), 0.0]


def test_taylor_on_a_network_is_the_formula_written_out(float64_backbone, prompts):
    run = start(float64_backbone, Taylor(tolerance=0.3, trial=0.2, most=5.0), prompts)
    run.step(2)
    look, state = run.peek(), run.state
    h = lambda c: pipelines.Brightness()(
        float64_backbone.decode(run.sampler.predict(state, c).x0bar), prompts
    )
    with torch.no_grad():
        rise = h(state.c_org + 0.2 * look.direction) - h(state.c_org)
    wanted = (0.2 * 0.3 / ((rise - 0.2 * look.grad_norm).abs() / (0.2 * look.grad_norm))).clamp(
        max=5.0
    )
    info = run.step()
    torch.testing.assert_close(info.notes["rho"], wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(info.distance, wanted, rtol=1e-6, atol=0)


def test_the_stable_share_is_the_formula_written_out(float64_backbone, prompts):
    run = start(float64_backbone, SignalToNoise(most=2.0, strength=0.5, draws=2), prompts)
    run.step(2)
    look, state, sampler = run.peek(), run.state, run.sampler
    alpha_bar = sampler.backbone.scheduler.alphas_cumprod[int(state.t)].double()
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    grads = [look.grad]
    for n in range(2):
        z = dk.noise.normal(
            state.seeds, 2, state.xt.shape[1:], torch.float64, purpose=f"radius {n}"
        )
        eps = (state.xt - alpha * look.x0bar) / sigma
        xt = alpha * look.x0bar + sigma * (0.75**0.5 * eps + 0.5 * z)
        grads.append(sampler.look(state.replace(xt=xt)).grad)
    dot = lambda a, b: (a * b).flatten(1).sum(1)
    pairs = sum(dot(a, b) for m, a in enumerate(grads) for n, b in enumerate(grads) if m < n) / 3
    share = pairs / (sum(dot(g, g) for g in grads) / 3)
    assert (share < 1).all()
    torch.testing.assert_close(
        run.step().notes["rho"], 2.0 * share.clamp(min=0), rtol=1e-5, atol=1e-12
    )


def test_a_gradient_that_no_noise_changes_gets_all_and_one_that_is_all_noise_nothing(
    random_backbone, prompts
):
    class Fake:
        state = SimpleNamespace(i=3)

    g = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for other, wanted in ((g, [1.0, 1.0]), (-g, [0.0, 0.0]), (torch.zeros_like(g), [0.0, 0.0])):
        line = LineSearch(Fake(), None, None, SimpleNamespace(grad=g), {"sequence": g})
        line._renoised = lambda n, strength, other=other: SimpleNamespace(grad=other)
        assert SignalToNoise(most=1.0)(line).tolist() == pytest.approx(wanted)


def test_unnormalised_is_plain_gradient_ascent(float64_backbone, prompts):
    run = start(float64_backbone, Unnormalised(3.0), prompts)
    run.step(1)
    look, c_org = run.peek(), run.state.c_org
    torch.testing.assert_close(run.step().c, c_org + 3.0 * look.grad)
    limited = start(float64_backbone, Unnormalised(1e6, most=0.25), prompts).step()
    torch.testing.assert_close(limited.distance, torch.full((3,), 0.25, dtype=torch.float64))


def test_a_constant_rule_is_the_number_to_the_bit(random_backbone, prompts):
    number, rule, one_each = (
        start(random_backbone, r, prompts, anchor="running").finish()
        for r in (RHO, lambda line: RHO, lambda line: torch.full((3,), RHO))
    )
    assert torch.equal(number.state.xt, rule.state.xt)
    assert torch.equal(number.state.xt, one_each.state.xt)


def test_a_schedule_over_time(random_backbone, prompts):
    run = start(random_backbone, lambda line: 0.1 + line.i / line.num_steps, prompts).finish()
    wanted = torch.tensor([[0.1 + i / 6] * 3 for i in range(6)])
    torch.testing.assert_close(run.history.stack("distance"), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_rule_is_a_function_of_the_state_and_of_the_sample_alone(random_backbone, prompts, rule):
    run = start(random_backbone, rule, prompts)
    run.step(2)
    first, again = (run.sampler.step(run.state)[1] for _ in range(2))
    assert torch.equal(first.c, again.c)
    assert torch.equal(first.notes["rho"], again.notes["rho"])
    alone = dk.Sampler(random_backbone, run.sampler.method, num_steps=6, guidance_scale=W).start(
        prompts[1:2], seeds=[1]
    )
    torch.testing.assert_close(
        alone.step().notes["rho"], run.history[0].notes["rho"][1:2], rtol=1e-2, atol=1e-6
    )
    parts = run.sampler.replace(micro_batch=2).step(run.state)[1]
    torch.testing.assert_close(parts.notes["rho"], first.notes["rho"], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_run_with_a_rule_is_saved_and_goes_on(tmp_path, rule):
    method = dk.DATE(dk.rewards.load("target"), rho=rule)
    run = dk.Sampler(dk.load("gaussian"), method, num_steps=6).start(
        ["a red star", "a blue circle"], seeds=[0, 1]
    )
    run.step(3)
    again = dk.Run.load(run.save(tmp_path / "run.pt"))
    assert again.sampler.method.rho == rule
    assert torch.equal(again.finish().state.xt, run.finish().state.xt)
    other = dk.Sampler(
        dk.load("gaussian"), dk.DATE(dk.rewards.load("target"), rho=0.5), num_steps=6
    )
    with pytest.raises(ValueError, match=r"method\.rho"):
        dk.Run.load(tmp_path / "run.pt", other)


def test_a_function_as_a_rule_needs_the_sampler_to_load(tmp_path, target):
    run = dk.Sampler(dk.load("gaussian"), dk.DATE(target, rho=lambda line: 0.5), num_steps=3).start(
        "a star", seeds=[0]
    )
    with pytest.raises(ValueError, match=r"cannot be loaded by a name: Run\.load\(path, sampler\)"):
        dk.Run.load(run.save(tmp_path / "run.pt"))


@pytest.mark.parametrize(("answer", "error", "message"), [
    (torch.ones(2), ValueError, r"one number or one a sample, \(3,\).* gave \(2,\)"),
    (torch.tensor([1.0, float("nan"), 1.0]), dk.NonFiniteError, "sample 1 at step 0; the embedding stays"),
    (torch.tensor([1.0, 1.0, -1.0]), dk.NonFiniteError, "sample 2 at step 0"),
])  # fmt: skip
def test_bad_answers(random_backbone, prompts, answer, error, message):
    run = start(random_backbone, lambda line: answer, prompts)
    with pytest.raises(error, match=message):
        run.step()
    assert run.state.i == 0


@pytest.mark.parametrize("make", [
    lambda: Taylor(tolerance=0), lambda: Taylor(trial=float("nan")), lambda: Taylor(most=True), lambda: SignalToNoise(strength=1.5),
    lambda: SignalToNoise(draws=0), lambda: Unnormalised(-1.0), lambda: dk.DATE(pipelines.Brightness(), rho="large"),
    lambda: dk.DATE(pipelines.Brightness(), seen="x1"),
])  # fmt: skip
def test_bad_settings(make):
    with pytest.raises(ValueError, match=r"must be|is a share|unknown view"):
        make()


def test_the_slope_is_that_of_all_that_moves(prompts):
    """Sequence and pooled vector together: the derivative of h along the joint direction, by central differences."""
    backbone = dk.wrap(families.sdxl().to(dtype=torch.float64))
    seen = []

    def rule(line):
        seen.append((line.slope, (line.h(1e-4) - line.h(-1e-4)) / 2e-4))
        return line.slope

    run = dk.Sampler(
        backbone, dk.DATE(pipelines.Brightness(), rho=rule, update="both"), num_steps=4
    ).start(prompts[:2], seeds=[0, 1])
    info = run.step()
    ((slope, numeric),) = seen
    torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(info.distance, slope, rtol=1e-6, atol=1e-12)


def test_the_reward_of_the_noisy_latent_has_the_gradient_of_the_schedulers_own_step(
    float64_backbone, prompts
):
    """seen="xt": h of what diffusers' DDIM step leads to, differentiated by central differences in the embedding."""
    run = start(float64_backbone, RHO, prompts, seen="xt")
    run.step(2)
    state, sampler = run.state, run.sampler
    scheduler = sampler.backbone.pipe.scheduler
    scheduler.set_timesteps(6)

    def h(c):
        with torch.no_grad():
            after = scheduler.step(
                sampler.predict(state, c).out, scheduler.timesteps[2], state.xt
            ).prev_sample
            return pipelines.Brightness()(float64_backbone.decode(after), prompts)

    v = torch.randn(state.c.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    numeric = (h(state.c_org + 1e-4 * v) - h(state.c_org - 1e-4 * v)) / 2e-4
    info = run.step()
    torch.testing.assert_close((info.grad * v).flatten(1).sum(1), numeric, rtol=1e-5, atol=1e-11)
    torch.testing.assert_close(info.h, h(state.c_org))
    assert not torch.allclose(info.direction, sampler.look(state).direction)
    torch.testing.assert_close(info.distance, torch.full((3,), RHO, dtype=torch.float64))


def test_an_answer_is_one_number_or_one_a_sample():
    line = SimpleNamespace(slope=torch.ones(3), i=0)
    assert ask(lambda line: 2, line).tolist() == [2.0, 2.0, 2.0]
    assert ask(lambda line: torch.tensor([1, 2, 3]), line).tolist() == [1.0, 2.0, 3.0]
