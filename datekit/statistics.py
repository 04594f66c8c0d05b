"""Means with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ENDS, RESAMPLES = (0.025, 0.975), 10_000


class Interval(NamedTuple):
    """A mean and the ends of its 95 % percentile-bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(values: Sequence[float], *, minus: Sequence[float] | None = None) -> Interval:
    """The mean of values, or of the paired differences values - minus, with its interval.

    values, minus: (N,), one a pair of prompt and seed, in the same order.
    """
    values = np.asarray(values, dtype=float)
    if minus is not None:
        if len(minus) != len(values):
            raise ValueError(f"pairs need the same length, got {len(values)} and {len(minus)}")
        values = values - np.asarray(minus, dtype=float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError("bootstrap needs a non-empty row of finite numbers")
    rng = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES // 500):  # a few at a time, for memory
        means.append(values[rng.integers(len(values), size=(500, len(values)))].mean(1))
    low, high = np.quantile(np.concatenate(means), ENDS)
    return Interval(float(values.mean()), float(low), float(high))


def bootstrap_pairs(sums: np.ndarray, counts: np.ndarray, units: np.ndarray) -> Interval:
    """sum(sums) / sum(counts), a mean over pairs of samples, with its interval over units of them.

    sums, counts: (B, B), of the values of each pair; units: (B,), the number of the unit, such as a
    prompt, to which each sample belongs. Units are drawn anew with all their samples: a pair within
    a unit counts as often as the unit was drawn, one of two units as often as both were drawn
    together. The ends are NaN where every draw would give the same.
    """
    if not counts.any():
        raise ValueError("there is no pair of directions of this kind: take more samples or steps")
    mean, number = float(sums.sum() / counts.sum()), int(units.max()) + 1
    member = np.eye(number)[units]
    sums, counts = (member.T @ (x + x.T) @ member / 2 for x in (sums, counts))
    if number < (2 if np.diag(counts).any() else 3):
        return Interval(mean, float("nan"), float("nan"))
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(number, np.full(number, 1 / number), size=RESAMPLES).astype(float)
    totals = []
    for x in (sums, counts):
        within = np.diag(x)
        totals.append(drawn @ within + ((drawn @ (x - np.diag(within))) * drawn).sum(1))
    top, bottom = totals
    low, high = np.quantile(top[bottom > 0] / bottom[bottom > 0], ENDS)
    return Interval(mean, float(low), float(high))
