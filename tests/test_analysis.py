"""The instruments: on the closed form against oracles, then on the shipped and on random Stable-Diffusion-shaped pipelines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import datekit as dk
from datekit import analysis
from datekit.analysis.taylor import slopes
from datekit.types import unit

PROMPTS = ["a red circle", "a blue square beside a dog", "a red circle"]


def paused(model, reward, at, w=1.0, rho=0.5, num_steps=20):
    run = dk.Sampler(model, dk.DATE(reward, rho=rho), num_steps=num_steps, guidance_scale=w).start(
        PROMPTS, seeds=[0, 1, 2]
    )
    if at:
        run.step(at)
    return run


@pytest.mark.parametrize("kind", ["sampler", "total"])
@pytest.mark.parametrize(("at", "w"), [(0, 1.0), (1, 1.0), (9, 1.0), (18, 1.0), (9, 3.0)])
def test_theorem_2_has_slope_two(model, target, kind, at, w):
    error = analysis.taylor_error(paused(model, target, at, w), kind=kind)
    assert (error.decades >= 3).all()
    assert (error.score_slope - 2).abs().max() <= 0.05
    # where h hardly bends along the gradient its third derivative shows too, so one sample may stray
    assert (error.reward_slope - 2).abs().median() <= 0.05
    assert (error.reward_slope - 2).abs().max() <= 0.2


def plain_total(model, target, state, rho):
    """grad_x log p(x | c_org + rho eps_hat(x)) written out with autograd, no library code of the instrument."""
    alpha, sigma = model.level(state.t)
    x, c = state.xt.clone().requires_grad_(), state.c_org.clone().requires_grad_()
    cond = lambda values: state.cond_org.replace(sequence=values)
    x0bar = (x - sigma * model.predict(x, state.t, cond(c))) / alpha
    (g,) = torch.autograd.grad(
        target(model.decode(x0bar), state.prompts).sum(), c, create_graph=True
    )
    c_hat = c + rho * g / g.flatten(1).norm(dim=1)[:, None, None]
    return torch.autograd.grad(model.log_prob(x, state.t, cond(c_hat)).sum(), x)[0]


@pytest.mark.parametrize("at", [0, 9])
def test_total_reading_equals_differences_of_the_plain_derivation(model, target, at):
    run = paused(model, target, at)
    state, rho = run.state, 0.3
    found = analysis.guidance_term(run, kind="total", rho=rho)
    exact = plain_total(model, target, state, rho) - plain_total(model, target, state, 0.0)
    torch.testing.assert_close(found.exact, exact, rtol=1e-8, atol=1e-8)
    step = 1e-5
    slope = (plain_total(model, target, state, step) - plain_total(model, target, state, -step)) / (
        2 * step
    )
    assert ((found.term - rho * slope).norm() / found.term.norm()).item() < 1e-6


def test_the_two_readings_differ_by_what_depends_on_eps_hat(model, target):
    run = paused(model, target, 0)
    sampler, total = (analysis.guidance_term(run, kind=kind) for kind in ("sampler", "total"))
    assert (sampler.term - total.term).norm() / total.term.norm() > 1e-4
    explicit = (
        model.grad_c_log_prob
    )  # d/dx of eps_hat(x) . b with b = grad_c log p held: by differences of eps_hat
    state, look = run.state, run.peek()
    b, v = (
        explicit(state.xt, state.t, state.cond),
        torch.randn(
            state.xt.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        ),
    )
    direction = lambda x: run.sampler.look(state.replace(xt=x)).direction
    moved = (direction(state.xt + 1e-5 * v) - direction(state.xt - 1e-5 * v)) / 2e-5
    wanted = 0.5 * (moved * b).flatten(1).sum(1)
    torch.testing.assert_close(
        ((total.term - sampler.term) * v).flatten(1).sum(1), wanted, rtol=1e-5, atol=1e-7
    )
    assert look.h.isfinite().all()


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_forward_mode_equals_central_differences_on_the_closed_form(model, target, w):
    for at in (0, 9):
        run = paused(model, target, at, w)
        forward, central = (
            analysis.guidance_term(run, derivative=how) for how in ("forward", "central")
        )
        assert (forward.how, central.how[:7]) == ("forward mode", "central")
        assert ((forward.term - central.term).norm() / central.term.norm()).item() <= 1e-5


def test_forward_mode_equals_central_differences_on_networks(backbone, brightness, prompts):
    """Within 1 %, in float32."""
    run = dk.Sampler(
        backbone, dk.DATE(brightness, rho=0.5), num_steps=20, guidance_scale=3.0
    ).start(prompts, seeds=[0, 1, 2])
    for at in (0, 10):
        if at:
            run.step(at)
        forward, central = (
            analysis.guidance_term(run, derivative=how) for how in ("auto", "central")
        )
        assert forward.how == "forward mode"
        assert ((forward.term - central.term).norm() / forward.term.norm()).item() <= 1e-2


class _WithoutForwardMode(torch.autograd.Function):
    """The identity, for a network that knows backward only."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_without_forward_mode_it_takes_central_differences_and_says_so(target):
    model = dk.load("gaussian")
    forward = dk.guidance_term(paused(model, target, 4))
    plain = model.predict
    model.predict = lambda *args: _WithoutForwardMode.apply(plain(*args))
    run = paused(model, target, 4)
    central = dk.guidance_term(run)
    assert central.how.startswith("central differences, step 3.0e-05")
    assert "central differences" in central._repr_html_()
    assert ((forward.term - central.term).norm() / forward.term.norm()).item() <= 1e-5
    with pytest.raises(RuntimeError):
        dk.guidance_term(run, derivative="forward")


@pytest.mark.parametrize("kind", ["sampler", "total"])
def test_rho_zero_gives_exactly_zero(model, target, kind):
    found = analysis.guidance_term(paused(model, target, 3), kind=kind, rho=0.0)
    assert not found.term.any()
    assert not found.exact.any()
    assert not found.shift.any()


def test_every_instrument_on_every_pipeline(backbone, brightness, prompts):
    """Shapes of results, tables, notebook repr; nothing advances."""
    method = dk.DATE(brightness, rho=0.5)
    run = dk.Sampler(backbone, method, num_steps=4, guidance_scale=3.0).start(
        [prompts[0], prompts[0], prompts[1]], seeds=[0, 1, 2]
    )
    run.step(2)
    before, rows = run.state, {}
    results = [
        dk.guidance_term(run),
        analysis.taylor_error(run, [0.5, 1.0, 2.0]),
        analysis.directions(run),
        analysis.token_shares(run),
        analysis.signal_to_noise(run, steps=[0, 2], draws=2),
        analysis.chain_rule(run),
    ]
    for result in results:
        rows[type(result).__name__] = len(result.to_frame())
        assert type(result).__name__ in result._repr_html_()
        assert len(repr(result)) < 300
    length = run.state.c.shape[1]
    assert rows == {
        "GuidanceTerm": 3,
        "TaylorError": 9,
        "Directions": 4,
        "TokenShares": 3 * length,
        "SignalToNoise": 2,
        "ChainRule": 3,
    }
    assert run.state is before
    assert len(run.history) == 2
    chain = results[5]
    torch.testing.assert_close(chain.closes.float(), run.peek().grad_norm, rtol=2e-2, atol=1e-7)
    by_state = dk.guidance_term(run.state, sampler=run.sampler)
    assert torch.equal(by_state.term, results[0].term)


def test_taylor_error_of_a_network_falls_as_rho_squared(float64_backbone, brightness, prompts):
    run = dk.Sampler(float64_backbone, dk.DATE(brightness), num_steps=4, guidance_scale=3.0).start(
        prompts, seeds=[0, 1, 2]
    )
    error = analysis.taylor_error(run, np.logspace(-4, -1.5, 6))
    assert (error.score_slope - 2).abs().max() <= 0.05


def test_slopes_leave_out_what_rounding_made():
    rhos = torch.logspace(-6, 0, 13, dtype=torch.float64)
    errors = torch.stack([3 * rhos**2 + 1e-9, rhos**3 + 1e-9], dim=1)
    torch.testing.assert_close(
        slopes(rhos, errors, torch.full((2,), 1e-9)),
        torch.tensor([2.0, 3.0], dtype=torch.float64),
        rtol=2e-3,
        atol=0,
    )
    assert slopes(rhos, errors, torch.full((2,), 1.0)).isnan().all()


def test_cosines_against_pairs_counted_one_by_one(model, target):
    run = paused(model, target, 5)
    found = analysis.directions(run)
    d = [[info.direction[b].flatten() for b in range(3)] for info in run.history]
    steps = [
        torch.dot(d[s][b], d[t][b]) for b in range(3) for s in range(5) for t in range(s + 1, 5)
    ]
    torch.testing.assert_close(found.cosines("timesteps"), torch.stack(steps))
    torch.testing.assert_close(
        found.cosines("samples of one prompt"),
        torch.stack([torch.dot(row[0], row[2]) for row in d]),
    )
    torch.testing.assert_close(
        found.cosines("prompts"),
        torch.stack([torch.dot(row[a], row[b]) for row in d for a, b in ((0, 1), (1, 2))]),
    )
    torch.testing.assert_close(found.matrix, run.history.cosine("direction"))
    row = found.to_frame().set_index("between").loc["timesteps"]
    assert row["below 0.1"] == np.mean([c < 0.1 for c in steps])
    two = analysis.directions([run, run])
    assert two.samples.shape == (5, 6, 6)


@pytest.mark.parametrize("dimension", [8, 96, 1152])
def test_random_shares_are_those_of_drawn_directions(dimension):
    g = torch.Generator().manual_seed(0)
    a, b = (unit(torch.randn(40_000, dimension, generator=g)) for _ in range(2))
    cosines = (a * b).sum(1)
    for limit in (0.1, 0.05):
        share = (cosines.abs() < limit).double().mean().item()
        assert abs(analysis.random_share(limit, dimension) - share) < 0.012
    assert abs(cosines.std().item() * dimension**0.5 - 1) < 0.02


def test_stable_share_of_a_known_mixture_of_signal_and_noise():
    """g_n = signal + noise of known sizes: the estimate is unbiased."""
    from datekit.analysis.gradient_snr import _shares

    g = torch.Generator().manual_seed(0)
    signal = torch.randn(1, 400, 4, 25, generator=g, dtype=torch.float64)
    noise = torch.randn(4, 400, 4, 25, generator=g, dtype=torch.float64) * 2
    share, parts = _shares(signal + noise)
    assert parts.shape == (400, 4)
    assert abs(share.mean().item() - 1 / 5) < 0.01  # ||signal||^2 : ||noise||^2 = 1 : 4
    assert abs(_shares(noise)[0].mean().item()) < 0.01


def test_signal_to_noise_falls_with_strength(target):
    run = paused(dk.load("gaussian-mixture"), target, 3)
    weak, strong = (
        analysis.signal_to_noise(run, steps=[0, 1, 2], draws=6, strength=s) for s in (0.05, 0.6)
    )
    assert (weak.stable > strong.stable).all()
    assert (weak.stable <= 1 + 1e-12).all()
    kept = analysis.signal_to_noise(run, rewards=[target, -target], draws=3, keep=True)
    assert kept.grads.shape == (2, 1, 3, 3, 8, 6)
    torch.testing.assert_close(kept.grads[0], -kept.grads[1])
    assert weak.grads is None
    assert kept.rewards == ("target", "-1 * target")


def test_token_shares(model, target):
    run = paused(model, target, 4)
    found, look = analysis.token_shares(run), run.peek()
    torch.testing.assert_close(found.grad.sum(1), look.grad_norm**2)
    torch.testing.assert_close(found.moved.sum(1), torch.full((3,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(
        found.share, found.moved_share
    )  # anchor "original" moves along the gradient
    assert found.tokens[0][:5] == ("<start>", "a", "red", "circle", "<end>")
    assert found.tokens[0][5:] == ("<pad>",) * 3
    fixed = analysis.token_shares(run.fork(dk.Fixed(), at=0), reward=target)
    assert not fixed.moved.any()
    assert not fixed.moved_share.any()


def test_the_chain_rule_closes(model, target):
    run = paused(model, target, 4, w=2.0)
    found = analysis.chain_rule(run)
    torch.testing.assert_close(found.closes, run.peek().grad_norm, rtol=1e-9, atol=0)
    step = unit(found.grad_x0bar) * found.x0bar.flatten(1).norm(dim=1)[:, None, None, None] * 0.01
    torch.testing.assert_close(
        model.decode(found.x0bar + step) - found.image, found.push, rtol=0, atol=1e-12
    )  # decode is affine


@pytest.mark.parametrize("num_steps", [2, 3])
def test_the_performance_guarantee(model, target, num_steps):
    run = dk.Sampler(model, dk.DATE(target, rho=0.5), num_steps=num_steps).start(
        PROMPTS, seeds=[0, 1, 2]
    )
    found = analysis.guarantee(run, rounds=40)
    v, slack = found.values, 1e-12
    for less, more in (
        ("fixed", "sequential"),
        ("sequential", "constrained"),
        ("DATE", "constrained"),
        ("constrained", "unconstrained"),
    ):
        assert (v[more] >= v[less] - slack).all(), (less, more)
    assert (v["constrained"] > v["fixed"] + 0.02).all()
    assert (v["unconstrained"] > v["constrained"] + 0.02).all()
    for name in ("DATE", "sequential", "constrained"):
        assert (found.far[name] <= 0.5 * (1 + 1e-9)).all()
    assert (found.far["unconstrained"] > 0.5).all()
    date = run.finish(progress=False)
    with torch.no_grad():
        final = target(model.decode(date.state.xt), PROMPTS)
    torch.testing.assert_close(
        v["DATE"], final
    )  # the value of DATE's embeddings is that of the run itself
    assert len(found.to_frame()) == 5


def test_public_names_are_things_to_call():
    """A submodule of the same name would shadow its function."""
    for name in analysis.__all__:
        assert callable(getattr(analysis, name)), name
    assert dk.guidance_term is analysis.guidance_term


def test_bad_input(target, random_backbone, brightness, prompts):
    model = dk.load("gaussian")
    run = paused(model, target, 2)
    fixed = run.fork(dk.Fixed(), at=0)
    fixed.step(2)
    with pytest.raises(ValueError, match=r"recorded no gradients.*dk.DATE"):
        analysis.directions(fixed)
    with pytest.raises(ValueError, match="different steps"):
        analysis.directions([run, run.fork().rewind(1)])
    with pytest.raises(ValueError, match="finite number from 0 up"):
        dk.guidance_term(run, rho=-1.0)
    for rho in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="above 0"):
            analysis.taylor_error(run, [rho, 1.0])
    with pytest.raises(ValueError, match="nothing to optimise"):
        analysis.guarantee(run, rho=0.0)
    with pytest.raises(ValueError, match="no reward of its own"):
        dk.guidance_term(fixed)
    with pytest.raises(ValueError, match="no radius of its own"):
        dk.guidance_term(fixed, reward=target)
    broken = lambda images, texts: target(images, texts) * torch.tensor([1.0, torch.nan, 1.0])
    for instrument in (
        dk.guidance_term,
        analysis.taylor_error,
        analysis.token_shares,
        analysis.chain_rule,
        analysis.signal_to_noise,
    ):
        name = "rewards" if instrument is analysis.signal_to_noise else "reward"
        with pytest.raises(dk.NonFiniteError, match=r"sample 1 at step 2"):
            instrument(run, **{name: broken})
    with pytest.raises(ValueError, match=r"no log p\(xt \| c\).*kind='sampler'"):
        dk.guidance_term(
            dk.Sampler(random_backbone, dk.DATE(brightness), num_steps=3).start(
                prompts, seeds=[0, 1, 2]
            ),
            kind="total",
        )
    with pytest.raises(ValueError, match="kind must be"):
        dk.guidance_term(run, kind="both")
    with pytest.raises(ValueError, match="from 2 up"):
        analysis.signal_to_noise(run, draws=1)
    with pytest.raises(ValueError, match="strength"):
        analysis.signal_to_noise(run, strength=0.0)
    with pytest.raises(ValueError, match="has not come to"):
        analysis.signal_to_noise(run, steps=[7])
    with pytest.raises(RuntimeError, match="rewind first"):
        dk.guidance_term(run.finish(progress=False))
    with pytest.raises(TypeError, match="with its sampler"):
        dk.guidance_term(run.state)


def test_zero_gradient_gives_no_term(target):
    model = dk.load("gaussian")
    blind = lambda images, texts: target(images, texts) * torch.tensor([0.0, 1.0, 1.0])
    for kind in ("sampler", "total"):
        found = dk.guidance_term(paused(model, target, 1), reward=blind, kind=kind)
        assert not found.term[0].any()
        assert not found.exact[0].any()
        assert found.term[1].any()
        assert found.term.isfinite().all()


def test_figures_draw_on_the_axes_they_are_given(target):
    import matplotlib.pyplot as plt

    run = paused(dk.load("gaussian"), target, 3)
    found = analysis.directions(run)
    figure, ax = plt.subplots(2, 4)
    term = dk.guidance_term(run)
    drawn = [
        dk.plot.cosines(found, ax=ax[0, 0]),
        dk.plot.agreement(found, ax=ax[0, 1]),
        dk.plot.tokens(analysis.token_shares(run), ax=ax[0, 2]),
        dk.plot.guidance(term, term, ax=ax[0, 3]),
        dk.plot.slopes(analysis.taylor_error(run), ax=ax[1, 0]),
        dk.plot.stability(analysis.signal_to_noise(run, draws=2), ax=ax[1, 1]),
        dk.plot.chain(analysis.chain_rule(run), ax=ax[1, 2]),
    ]
    assert drawn == [*ax[0], *ax[1][:3]]
    assert [len(a.patches) for a in (ax[0, 2],)] == [8]
    np.testing.assert_allclose(ax[0, 0].images[0].get_array(), found.matrix)
    np.testing.assert_allclose(ax[1, 0].lines[0].get_xdata(), analysis.taylor_error(run).rhos)
    plt.close(figure)
