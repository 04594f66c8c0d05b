"""The instruments on the closed form against oracles, then on the shipped and random pipelines."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
import torch

import datekit as dk
from datekit import analysis
from datekit.analysis.agreement import stable_shares
from datekit.analysis.guidance import fit
from datekit.tensors import norm, unit

PROMPTS = ["a red circle", "a blue square beside a dog", "a red circle"]


def paused(model, reward, at, w=1.0, rho=0.5, num_steps=20):
    sampler = dk.Sampler(model, dk.DATE(reward, rho=rho), num_steps=num_steps, guidance_scale=w)
    run = sampler.start(PROMPTS, seeds=[0, 1, 2])
    if at:
        run.step(at)
    return run


def apart(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kind", ["sampler", "total"])
@pytest.mark.parametrize(("at", "w"), [(0, 1.0), (9, 1.0), (18, 1.0), (9, 3.0)])
def test_theorem_2_has_slope_two(model, target, kind, at, w):
    error = analysis.taylor_error(paused(model, target, at, w), kind=kind)
    assert (error.decades >= 3).all()
    assert (error.score_slope - 2).abs().max() <= 0.05
    # where h hardly bends along the gradient its third derivative shows too: one sample may stray
    assert (error.reward_slope - 2).abs().median() <= 0.05
    assert (error.reward_slope - 2).abs().max() <= 0.2


def test_the_error_of_a_network_falls_as_rho_squared(float64_backbone, brightness, prompts):
    sampler = dk.Sampler(float64_backbone, dk.DATE(brightness), num_steps=4, guidance_scale=3.0)
    run = sampler.start(prompts, seeds=[0, 1, 2])
    error = analysis.taylor_error(run, np.logspace(-4, -1.5, 6))
    assert (error.score_slope - 2).abs().max() <= 0.05


def test_slopes_leave_out_what_rounding_made():
    rhos = torch.logspace(-6, 0, 13, dtype=torch.float64)
    errors = torch.stack([3 * rhos**2 + 1e-9, rhos**3 + 1e-9], dim=1)
    slopes, decades = fit(rhos, errors, torch.full((2,), 1e-9))
    torch.testing.assert_close(slopes, slopes.new_tensor([2.0, 3.0]), rtol=2e-3, atol=0)
    torch.testing.assert_close(decades, decades.new_tensor([3.0, 2.0]))
    slopes, decades = fit(rhos, errors, torch.full((2,), 1.0))
    assert slopes.isnan().all()
    assert not decades.any()


def test_without_forward_mode_it_takes_central_differences_and_says_so(target, monkeypatch):
    run = paused(dk.load("gaussian"), target, 4)
    forward = dk.guidance_term(run)
    monkeypatch.setattr(torch.func, "jvp", Mock(side_effect=RuntimeError))
    central = dk.guidance_term(run)
    assert central.how == "central differences, step 3.0e-05"
    assert central.how in central._repr_html_()
    assert apart(forward.term, central.term) <= 1e-5


@pytest.mark.parametrize("kind", ["sampler", "total"])
def test_without_a_radius_or_a_gradient_there_is_exactly_no_term(model, target, kind):
    run = paused(model, target, 3)
    term = analysis.guidance_term(run, kind=kind, rho=0.0)
    for nothing in (term.term, term.exact, term.shift):
        assert not nothing.any()

    def blind(images, texts):
        return target(images, texts) * torch.tensor([0.0, 1.0, 1.0])

    term = dk.guidance_term(run, reward=blind, kind=kind)
    assert not term.term[0].any()
    assert not term.exact[0].any()
    assert term.term[1].any()
    assert term.term.isfinite().all()


def test_every_instrument_on_every_pipeline(backbone, brightness, prompts):
    """Tables and how results show; nothing advances; forward mode equals float32 differences."""
    sampler = dk.Sampler(backbone, dk.DATE(brightness, rho=0.5), num_steps=4, guidance_scale=3.0)
    run = sampler.start([prompts[0], prompts[0], prompts[1]], seeds=[0, 1, 2])
    run.step(2)
    before, term, look = run.state, dk.guidance_term(run), run.peek()
    for result, count in {
        term: 3,
        analysis.taylor_error(run, [0.5, 1.0, 2.0]): 3,
        analysis.directions(run): 4,
        analysis.token_shares(run): 3 * run.state.c.shape[1],
        analysis.signal_to_noise(run, steps=[0, 2], draws=2): 2,
        analysis.guidance_cosine(run, dk.Fixed(), sampler.method, steps=[0, 1]): 2,
        analysis.chain_rule(run): 3,
    }.items():
        assert len(result.to_frame()) == count
        assert repr(result)[1:-1] in result._repr_html_()
        assert len(repr(result)) < 300
    assert run.state is before
    sigma = sampler.solver.level(2)[1]
    with torch.no_grad():
        ends = [sampler.predict(before, look.c + r * look.direction).eps for r in (0.025, -0.025)]
    assert apart(0.5 * (ends[1] - ends[0]) / 0.05 / sigma, term.term) <= 1e-2


def test_cosines_against_pairs_counted_one_by_one(model, target):
    run = paused(model, target, 5)
    result = analysis.directions(run)
    d = [[info.direction[b].flatten() for b in range(3)] for info in run.history]
    steps = [
        torch.dot(d[s][b], d[t][b]) for b in range(3) for s in range(5) for t in range(s + 1, 5)
    ]
    across = [torch.dot(row[a], row[b]) for a, b in ((0, 1), (1, 2)) for row in d]
    inside = [torch.dot(row[0], row[2]) for row in d]
    torch.testing.assert_close(result.cosines("timesteps"), torch.stack(steps))
    torch.testing.assert_close(result.cosines("samples of one prompt"), torch.stack(inside))
    torch.testing.assert_close(result.cosines("prompts"), torch.stack(across))
    torch.testing.assert_close(result.matrix, run.history.cosine("direction"))
    row = result.to_frame().set_index("between").loc["timesteps"]
    assert row["below 0.1"] == np.mean([c < 0.1 for c in steps])


@pytest.mark.parametrize("dimension", [8, 96, 1152])
def test_random_shares_are_those_of_drawn_directions(dimension):
    g = torch.Generator().manual_seed(0)
    a, b = (unit(torch.randn(40_000, dimension, generator=g)) for _ in range(2))
    cosines = (a * b).sum(1)
    for limit in (0.1, 0.05):
        share = (cosines.abs() < limit).double().mean().item()
        assert abs(analysis.random_share(limit, dimension) - share) < 0.012


COUNT, EACH, STEPS, DRAWS = 16, 3, 5, 50
TRUTH = {"timesteps": 0.3, "samples of one prompt": 0.2, "prompts": 0.1}


def simulate(rng):
    """Cosines with an effect of each prompt, of each sample, and of each entry."""
    count, of = COUNT * EACH, np.repeat(np.arange(COUNT), EACH)
    effect = rng.normal(size=COUNT)
    timesteps = TRUTH["timesteps"] + 0.15 * effect[of, None, None]
    timesteps = timesteps + 0.05 * rng.normal(size=(count, 1, 1))
    timesteps = timesteps + 0.02 * rng.normal(size=(count, STEPS, STEPS))
    inside = TRUTH["samples of one prompt"] + 0.15 * effect[of][:, None]
    across = TRUTH["prompts"] + 0.1 * (effect[of][:, None] + effect[of])
    noise = 0.02 * rng.normal(size=(STEPS, count, count))
    samples = np.where(of[:, None] == of, inside, across) + noise
    names, seeds = tuple(f"prompt {n}" for n in of), tuple(range(count))
    cosines = torch.from_numpy(timesteps), torch.from_numpy(samples)
    return analysis.Directions(tuple(range(STEPS)), names, seeds, 100, *cosines)


def test_intervals_cover_the_mean_over_prompts():
    """Near 95 %, if less, with 16 units; an interval over samples or steps would cover far less."""
    rng, hits = np.random.default_rng(0), dict.fromkeys(TRUTH, 0)
    for _ in range(DRAWS):
        cosines = simulate(rng)
        for between, truth in TRUTH.items():
            _, low, high = cosines.mean(between)
            hits[between] += low <= truth <= high
    assert min(hits.values()) >= 0.85 * DRAWS, hits


def test_means_of_cosines_of_few_prompts():
    """Of one prompt the samples are drawn; with too few of anything there are no ends."""
    cosines = simulate(np.random.default_rng(2))
    cosines.timesteps[0] = torch.nan  # a sample whose gradients were zero has no cosines

    def of(*rows):
        names, rows = tuple(cosines.prompts[n] for n in rows), list(rows)
        samples = cosines.samples[:, rows][:, :, rows]
        parts = {"timesteps": cosines.timesteps[rows], "samples": samples}
        return cosines.replace(prompts=names, seeds=rows, **parts)

    one = of(0, 1, 2)
    mean, low, high = one.mean("timesteps")
    assert mean == pytest.approx(one.cosines("timesteps").mean().item())
    assert low < mean < high
    with pytest.raises(ValueError, match="no pair of directions of this kind"):
        one.mean("prompts")
    assert np.isnan([*of(0, 3).mean("prompts")[1:], *of(1).mean("timesteps")[1:]]).all()


def test_stable_share_of_a_known_mixture_of_signal_and_noise():
    """g_n = signal + noise of known sizes: the estimate is unbiased."""
    g = torch.Generator().manual_seed(0)
    signal = torch.randn(1, 400, 4, 25, generator=g, dtype=torch.float64)
    noise = torch.randn(4, 400, 4, 25, generator=g, dtype=torch.float64) * 2
    shares = stable_shares(signal + noise)
    assert shares.shape == (400,)
    assert abs(shares.mean().item() - 1 / 5) < 0.01  # ||signal||^2 : ||noise||^2 = 1 : 4
    assert abs(stable_shares(noise).mean().item()) < 0.01


def test_token_shares_and_the_chain_rule(model, target):
    run = paused(model, target, 4, w=2.0)
    shares, seen = analysis.token_shares(run), run.peek()
    squares = seen.grad.square().sum(2)
    torch.testing.assert_close(shares.share, squares / squares.sum(1, keepdim=True))
    words = ("<start>", "a", "red", "circle", "<end>", "<pad>", "<pad>", "<pad>")
    assert shares.tokens[0] == words
    chain = analysis.chain_rule(run)
    torch.testing.assert_close(chain.closes, seen.grad_norm, rtol=1e-9, atol=0)
    step = unit(chain.grad_x0bar) * norm(seen.x0bar)[:, None, None, None] * 0.01
    moved = model.decode(seen.x0bar + step) - chain.image  # decode is affine
    torch.testing.assert_close(moved, chain.push, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_steps", [2, 3])
def test_the_performance_guarantee(model, target, num_steps):
    run = paused(model, target, 0, num_steps=num_steps)
    bounds = analysis.guarantee(run, rounds=40)
    v = bounds.values
    assert (v["constrained"] >= v["DATE"] - 1e-12).all()
    assert (v["constrained"] > v["fixed"] + 0.02).all()
    assert (v["unconstrained"] > v["constrained"] + 0.02).all()
    for name in ("DATE", "constrained"):
        assert (bounds.far[name] <= 0.5 * (1 + 1e-9)).all()
    assert (bounds.far["unconstrained"] > 0.5).all()
    assert len(bounds.to_frame()) == 4
    with torch.no_grad():
        final = target(model.decode(run.finish(progress=False).state.xt), PROMPTS)
    torch.testing.assert_close(v["DATE"], final)  # DATE's embeddings have the value of the run


def test_bad_input(target):
    run = paused(dk.load("gaussian"), target, 2)
    fixed = run.fork(dk.Fixed(), at=0)
    fixed.step(2)
    ruled = run.fork(dk.DATE(target, rho=dk.methods.rho_rules.Taylor()))
    assert dk.guidance_term(ruled, rho=0.2).rho == 0.2
    both = run.fork(dk.DATE(target) + dk.UniversalGuidance(target))
    denoiser = dk.Sampler(dk.load("shapes"), dk.DATE(target)).start(PROMPTS)
    for message, call in {
        r"recorded 'direction'.*dk.DATE": lambda: analysis.directions(fixed),
        "finite radii above 0": lambda: analysis.taylor_error(run, [0.0, 1.0]),
        "about the embedding alone": lambda: analysis.guarantee(both),
        "no reward of its own": lambda: dk.guidance_term(fixed),
        "rho must be a finite number": lambda: dk.guidance_term(ruled),
        r"'total' needs log p\(xt \| c\)": lambda: dk.guidance_term(denoiser, kind="total"),
        "kind must be": lambda: dk.guidance_term(run, kind="both"),
        "from 2 up": lambda: analysis.signal_to_noise(run, draws=1),
        "from 0 to 2, got 7": lambda: analysis.signal_to_noise(run, steps=[7]),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(RuntimeError, match="rewind first"):
        dk.guidance_term(run.finish(progress=False))
