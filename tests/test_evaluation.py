"""Bootstrap intervals against theory."""

from __future__ import annotations

import numpy as np
import pytest

from datekit.statistics import bootstrap


def test_bootstrap_of_a_normal_sample_is_the_textbook_interval():
    values = np.random.default_rng(0).normal(2, 3, 400)
    mean, low, high = bootstrap(values)
    half = 1.96 * values.std() / 20
    assert mean == pytest.approx(values.mean())
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.06)


def test_paired_differences_cancel_what_pairs_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 100, 200)
    interval = bootstrap(shared + 1 + rng.normal(0, 0.1, 200), minus=shared)
    assert 0.95 < interval.low < interval.high < 1.05


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")]])
def test_bootstrap_refuses(bad):
    with pytest.raises(ValueError, match="non-empty row of finite"):
        bootstrap(bad)
    with pytest.raises(ValueError, match="same length"):
        bootstrap([1.0], minus=[1.0, 2.0])
