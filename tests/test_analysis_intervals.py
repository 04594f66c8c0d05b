"""Intervals of mean cosines hold for other prompts too: coverage with nested causes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datekit import analysis
from datekit.statistics import bootstrap

PROMPTS, EACH, STEPS, DRAWS = 16, 3, 5, 50
TRUTH = {"timesteps": 0.3, "samples of one prompt": 0.2, "prompts": 0.1}


def simulate(rng):
    """Cosines with an effect of each prompt, of each sample, and of each entry."""
    count, of = PROMPTS * EACH, np.repeat(np.arange(PROMPTS), EACH)
    effect = rng.normal(size=PROMPTS)
    timesteps = TRUTH["timesteps"] + 0.15 * effect[of, None, None]
    timesteps = timesteps + 0.05 * rng.normal(size=(count, 1, 1))
    timesteps = timesteps + 0.02 * rng.normal(size=(count, STEPS, STEPS))
    inside = TRUTH["samples of one prompt"] + 0.15 * effect[of][:, None]
    across = TRUTH["prompts"] + 0.1 * (effect[of][:, None] + effect[of])
    noise = 0.02 * rng.normal(size=(STEPS, count, count))
    samples = np.where(of[:, None] == of, inside, across) + noise
    return analysis.Directions(
        steps=tuple(range(STEPS)),
        prompts=tuple(f"prompt {n}" for n in of),
        seeds=tuple(range(count)),
        dimension=100,
        timesteps=torch.from_numpy(timesteps),
        samples=torch.from_numpy(samples),
    )


def test_intervals_cover_the_mean_over_prompts():
    """Near 95 %, if less, with 16 units; an interval over samples or steps covers far less."""
    rng, hits, naive = np.random.default_rng(0), dict.fromkeys(TRUTH, 0), dict.fromkeys(TRUTH, 0)
    for _ in range(DRAWS):
        cosines = simulate(rng)
        for between, truth in TRUTH.items():
            _, low, high = cosines.mean(between)
            hits[between] += low <= truth <= high
            steps = between == "timesteps"
            units = cosines.timesteps.mean((1, 2)) if steps else cosines.by_step[between]
            _, low, high = bootstrap(units.tolist(), resamples=500)
            naive[between] += low <= truth <= high
    assert min(hits.values()) >= 0.85 * DRAWS, hits
    assert max(naive.values()) < 0.8 * DRAWS, naive


def test_the_mean_is_that_of_all_cosines():
    cosines = simulate(np.random.default_rng(1))
    cosines.timesteps[2] = torch.nan  # a sample whose gradients were zero has no cosines
    for between in TRUTH:
        mean, low, high = cosines.mean(between)
        assert mean == pytest.approx(cosines.cosines(between).mean().item())
        assert low < mean < high


def test_one_prompt_and_few_prompts():
    """Of one prompt the samples are drawn; with too few of anything there are no ends."""
    cosines = simulate(np.random.default_rng(2))

    def of(*rows):
        return cosines.replace(
            prompts=tuple(cosines.prompts[n] for n in rows),
            seeds=rows,
            timesteps=cosines.timesteps[list(rows)],
            samples=cosines.samples[:, rows][:, :, rows],
        )

    one = of(0, 1, 2)
    each = [one.timesteps[n][np.triu_indices(STEPS, 1)].mean().item() for n in range(3)]
    # of 3 units, each is drawn 3 times in 1 of 27
    assert one.mean("timesteps")[1:] == pytest.approx((min(each), max(each)))
    assert np.isfinite(one.mean("samples of one prompt")).all()
    with pytest.raises(ValueError, match="no pair of directions of this kind"):
        one.mean("prompts")
    two = of(0, 3).mean("prompts")
    assert np.isfinite(two.mean)
    assert np.isnan([two.low, two.high, *of(0).mean("timesteps")[1:]]).all()
