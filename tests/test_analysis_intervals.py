"""Intervals of mean cosines hold for other prompts too: coverage in a simulation with nested causes of variation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datekit import analysis
from datekit.evaluation import bootstrap

PROMPTS, EACH, STEPS, DRAWS = 16, 3, 5, 50
TRUTH = {"timesteps": 0.3, "samples of one prompt": 0.2, "prompts": 0.1}


def simulated(rng):
    """Cosines with an effect of each prompt, of each sample, and of each entry."""
    count, of = PROMPTS * EACH, np.repeat(np.arange(PROMPTS), EACH)
    effect = rng.normal(size=PROMPTS)
    timesteps = (
        TRUTH["timesteps"]
        + 0.15 * effect[of, None, None]
        + 0.05 * rng.normal(size=(count, 1, 1))
        + 0.02 * rng.normal(size=(count, STEPS, STEPS))
    )
    inside = TRUTH["samples of one prompt"] + 0.15 * effect[of][:, None]
    across = TRUTH["prompts"] + 0.1 * (effect[of][:, None] + effect[of])
    samples = np.where(of[:, None] == of, inside, across) + 0.02 * rng.normal(
        size=(STEPS, count, count)
    )
    return analysis.Directions(
        steps=tuple(range(STEPS)),
        prompts=tuple(f"prompt {n}" for n in of),
        seeds=tuple(range(count)),
        dimension=100,
        timesteps=torch.from_numpy(timesteps),
        samples=torch.from_numpy(samples),
    )


def test_intervals_cover_the_mean_over_prompts():
    """Near 95 % (a percentile bootstrap over 16 units falls somewhat short); one over samples or steps covers far less."""
    rng, hits, naive = np.random.default_rng(0), dict.fromkeys(TRUTH, 0), dict.fromkeys(TRUTH, 0)
    for _ in range(DRAWS):
        found = simulated(rng)
        for between, truth in TRUTH.items():
            low, high = found.mean(between)[1:]
            hits[between] += low <= truth <= high
            units = (
                found.timesteps.mean((1, 2)) if between == "timesteps" else found.by_step[between]
            )
            _, low, high = bootstrap(units.tolist(), resamples=500)
            naive[between] += low <= truth <= high
    for between in TRUTH:
        assert hits[between] >= 0.85 * DRAWS, (between, hits)
        assert naive[between] < 0.8 * DRAWS, (between, naive)


def test_the_mean_is_that_of_all_cosines():
    found = simulated(np.random.default_rng(1))
    found.timesteps[2] = torch.nan  # a sample whose gradients were zero has no cosines
    for between in TRUTH:
        mean, low, high = found.mean(between)
        assert mean == pytest.approx(found.cosines(between).mean().item())
        assert low < mean < high


def test_one_prompt_and_few_prompts():
    """One prompt: its samples are drawn. Too few of anything to draw from: no ends."""
    found = simulated(np.random.default_rng(2))
    some = lambda rows: found.replace(
        prompts=tuple(found.prompts[n] for n in rows),
        seeds=tuple(rows),
        timesteps=found.timesteps[rows],
        samples=found.samples[:, rows][:, :, rows],
    )
    one = some([0, 1, 2])
    low, high = one.mean("timesteps")[1:]
    each = [one.timesteps[n][np.triu_indices(STEPS, 1)].mean().item() for n in range(3)]
    assert (low, high) == pytest.approx(
        (min(each), max(each))
    )  # of 3 units, each is drawn 3 times in 1 of 27
    assert np.isfinite(one.mean("samples of one prompt")).all()
    with pytest.raises(ValueError, match="no pair of directions of this kind"):
        one.mean("prompts")
    two = some([0, 3])
    assert np.isfinite(two.mean("prompts").mean)
    assert np.isnan(two.mean("prompts")[1:]).all()
    assert np.isnan(some([0]).mean("timesteps")[1:]).all()
