"""Intervals against theory, and files of results."""

from __future__ import annotations

import numpy as np
import pytest

from datekit.evaluation import bootstrap
from datekit.evaluation.machine import write_json


def test_bootstrap_of_a_normal_sample_is_the_textbook_interval():
    values = np.random.default_rng(0).normal(2, 3, 400)
    mean, low, high = bootstrap(values)
    half = 1.96 * values.std() / 20
    assert mean == pytest.approx(values.mean())
    assert (mean - low, high - mean) == (
        pytest.approx(half, rel=0.06),
        pytest.approx(half, rel=0.06),
    )


def test_paired_differences_cancel_what_pairs_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 100, 200)
    result = bootstrap(shared + 1 + rng.normal(0, 0.1, 200), minus=shared)
    assert result.low > 0.95
    assert result.high < 1.05


def test_coverage_is_near_95_percent():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        _, low, high = bootstrap(rng.normal(0, 1, 60), resamples=1000)
        inside += low <= 0 <= high
    assert 180 <= inside <= 199


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")]])
def test_bootstrap_refuses(bad):
    with pytest.raises(ValueError, match="non-empty row of finite"):
        bootstrap(bad)
    with pytest.raises(ValueError, match="same length"):
        bootstrap([1.0], minus=[1.0, 2.0])


def test_files_of_results_are_whole_or_absent(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert not (tmp_path / "a.json").exists()
