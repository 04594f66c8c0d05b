"""Means with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean and the ends of its 95 % percentile-bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    values: Sequence[float],
    *,
    minus: Sequence[float] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean of values, or of paired differences values - minus, with its 95 % percentile-bootstrap interval.

    values, minus: (N,), one a prompt-seed pair, in the same order. Raises ValueError on different lengths, no
    values, or NaN.
    """
    values = np.asarray(values, dtype=float)
    if minus is not None:
        minus = np.asarray(minus, dtype=float)
        if minus.shape != values.shape:
            raise ValueError(
                f"paired values must have the same length, got {len(values)} and {len(minus)}"
            )
        values = values - minus
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError("bootstrap needs a non-empty row of finite numbers")
    if resamples < 1:
        raise ValueError(f"resamples must be a whole number from 1 up, got {resamples}")
    rng, sizes = (
        np.random.default_rng(seed),
        [500] * (resamples // 500) + [resamples % 500] * (resamples % 500 > 0),
    )
    means = np.concatenate(
        [values[rng.integers(len(values), size=(size, len(values)))].mean(1) for size in sizes]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))
