"""Rules for rho, against the formulas written out again, and what DATE makes of their answers."""

from __future__ import annotations

from types import SimpleNamespace

import families
import pipelines
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from studies.ablate import NoisyDATE
from studies.rules import SignalToNoise, Unnormalised

import datekit as dk
from datekit.methods.rho_rules import Taylor

W, RHO = 4.0, 0.4
RULES = [Taylor(tolerance=0.3, trial=0.2, most=5.0), SignalToNoise(most=2.0), Unnormalised(3.0)]


class Parabola:
    """A reward of which every derivative is known: 0.7 + slope rho + bend rho^2, a row a sample."""

    def __init__(self, slope, bend):
        self.slope, self.bend = slope, bend
        self.gradient = SimpleNamespace(h=torch.full_like(slope, 0.7))

    def h(self, rho):
        return 0.7 + self.slope * rho + self.bend * rho**2


def start(backbone, rule, prompts, **settings):
    method = dk.DATE(pipelines.Brightness(), rho=rule, **settings)
    sampler = dk.Sampler(backbone, method, num_steps=6, guidance_scale=W)
    return sampler.start(prompts, seeds=[0, 1, 2][: len(prompts)])


SHARE = st.floats(0.05, 2)


@given(st.floats(0.01, 10), st.floats(-10, 10).filter(lambda x: abs(x) > 1e-3), SHARE, SHARE)
def test_the_taylor_radius_is_where_the_first_order_is_that_wrong(slope, bend, tolerance, trial):
    line = Parabola(*(torch.tensor([x], dtype=torch.float64) for x in (slope, bend)))
    rho = Taylor(tolerance, trial, most=1e9)(line)
    wrong = (line.h(rho) - 0.7 - rho * slope).abs() / (rho * slope)
    torch.testing.assert_close(wrong, torch.full_like(wrong, tolerance), rtol=1e-4, atol=0)
    assert Taylor(tolerance, trial, most=0.01)(line) <= 0.01


def test_a_straight_line_and_a_zero_gradient_leave_taylor_finite():
    flat = Parabola(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]))
    assert Taylor(most=2.0)(flat).tolist() == [2.0, 2.0, 0.0]


def test_taylor_on_a_network_is_the_formula_written_out(float64_backbone, prompts):
    run = start(float64_backbone, RULES[0], prompts)
    run.step(2)
    look, state = run.peek(), run.state
    h = []
    for c in (state.c_org + 0.2 * look.direction, state.c_org):
        x0bar = run.sampler.predict(state, c).x0bar.detach()
        h.append(pipelines.Brightness()(float64_backbone.decode(x0bar), prompts).detach())
    first_order = 0.2 * look.grad_norm
    share = (h[0] - h[1] - first_order).abs() / first_order
    expected = (0.2 * 0.3 / share).clamp(max=5.0)
    info = run.step()
    torch.testing.assert_close(info.extras["rho"], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(info.distance, expected, rtol=1e-6, atol=0)


def test_the_stable_share_is_the_formula_written_out(float64_backbone, prompts):
    run = start(float64_backbone, SignalToNoise(most=2.0), prompts)
    run.step(2)
    look, state, sampler = run.peek(), run.state, run.sampler
    alpha_bar = sampler.backbone.scheduler.alphas_cumprod[int(state.t)].double()
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    eps, shape = (state.xt - alpha * look.x0bar) / sigma, state.xt.shape[1:]
    z = dk.noise.normal(state.seeds, 2, shape, torch.float64, purpose="radius 0")
    xt = alpha * look.x0bar + sigma * (0.75**0.5 * eps + 0.5 * z)
    g, other = look.grad.flatten(1), dk.Run(sampler, state.replace(xt=xt)).peek().grad.flatten(1)
    share = 2 * (g * other).sum(1) / (g.square() + other.square()).sum(1)
    assert (share < 1).all()
    expected = 2.0 * share.clamp(min=0)
    torch.testing.assert_close(run.step().extras["rho"], expected, rtol=1e-5, atol=1e-12)


def test_unnormalised_is_plain_gradient_ascent(float64_backbone, prompts):
    run = start(float64_backbone, Unnormalised(3.0), prompts)
    run.step(1)
    look, c_org = run.peek(), run.state.c_org
    torch.testing.assert_close(run.step().c, c_org + 3.0 * look.grad)


def test_a_rule_of_ones_own(random_backbone, prompts):
    """A constant is the number to the bit, for all or one a sample; a schedule is followed."""
    rules = (RHO, lambda line: RHO, lambda line: torch.full((3,), RHO))
    runs = [start(random_backbone, rule, prompts, anchor="running").finish() for rule in rules]
    assert torch.equal(runs[0].state.xt, runs[1].state.xt)
    assert torch.equal(runs[0].state.xt, runs[2].state.xt)
    run = start(random_backbone, lambda line: 0.1 + line.i / line.num_steps, prompts).finish()
    expected = torch.tensor([[0.1 + i / 6] * 3 for i in range(6)])
    torch.testing.assert_close(run.history.stack("distance"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, -1.0])
def test_bad_answers(random_backbone, prompts, bad):
    run = start(random_backbone, lambda line: torch.tensor([1.0, bad, 1.0]), prompts)
    with pytest.raises(dk.NonFiniteError, match="sample 1 at step 0; nothing was changed"):
        run.step()
    assert run.state.i == 0


def test_the_slope_is_that_of_all_that_moves(prompts):
    """Sequence and pooled vector together: the derivative of h by central differences."""
    backbone, seen = dk.wrap(families.sdxl().to(dtype=torch.float64)), []

    def rule(line):
        seen.append((line.slope, (line.h(1e-4) - line.h(-1e-4)) / 2e-4))
        return line.slope

    info = start(backbone, rule, prompts[:2], update="both").step()
    ((slope, numeric),) = seen
    torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(info.distance, slope, rtol=1e-6, atol=1e-12)


def test_the_reward_of_the_noisy_latent_has_the_gradient_of_the_schedulers_own_step(
    float64_backbone, prompts
):
    """Of the ablation: h of what diffusers' DDIM step leads to, by central differences in c."""
    method = NoisyDATE(pipelines.Brightness(), RHO)
    sampler = dk.Sampler(float64_backbone, method, num_steps=6, guidance_scale=W)
    run = sampler.start(prompts, seeds=[0, 1, 2])
    run.step(2)
    state, sampler, scheduler = run.state, run.sampler, run.sampler.backbone.pipe.scheduler
    scheduler.set_timesteps(6)

    def h(c):
        with torch.no_grad():
            out = sampler.predict(state, c).out
            after = scheduler.step(out, scheduler.timesteps[2], state.xt).prev_sample
            return pipelines.Brightness()(float64_backbone.decode(after), prompts)

    v = torch.randn(state.c.shape, generator=torch.Generator().manual_seed(0)).double()
    numeric = (h(state.c_org + 1e-4 * v) - h(state.c_org - 1e-4 * v)) / 2e-4
    of_x0bar, info = run.peek().direction, run.step()
    torch.testing.assert_close((info.grad * v).flatten(1).sum(1), numeric, rtol=1e-5, atol=1e-11)
    torch.testing.assert_close(info.h, h(state.c_org))
    assert not torch.allclose(info.direction, of_x0bar)
    torch.testing.assert_close(info.distance, torch.full((3,), RHO, dtype=torch.float64))
