"""Figures of study results: the artists hold the data, and words stand for them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from studies import figures

import datekit as dk


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_quality_against_time():
    names = [f"method {n}" for n in range(9)]
    rows = {name: {"s": 1.0 + n, "h": (n, n - 1, n + 2)} for n, name in enumerate(names)}
    ax = figures.quality(rows, cost="s", measure="h")
    words = dk.plot.alt_text(ax)
    for n, bars in enumerate(ax.containers):
        np.testing.assert_allclose(bars.lines[0].get_xydata(), [[1 + n, n]])
        np.testing.assert_allclose(bars.lines[2][0].get_segments()[0][:, 1], [n - 1, n + 2])
        assert bars.get_label() in words
    markers = {bars.lines[0].get_marker() for bars in ax.containers}
    assert len(markers) == len(rows)  # told apart in grey print too
    ax = figures.quality({"one": {"steps": 3, "h": 0.5}}, cost="steps", measure="h")
    np.testing.assert_allclose(ax.containers[0].lines[0].get_xydata(), [[3, 0.5]])


def test_a_ladder_climbs_from_cheap_to_dear():
    rows = {"dear": {"s": 3.0, "h - fixed": (2, 1, 4)}, "cheap": {"s": 1.0, "h - fixed": (0, 0, 0)}}
    figure = figures.ladder(rows, {"h": "gain"}, "s")
    (ax,) = figure.axes
    (bars,) = ax.containers
    np.testing.assert_allclose(bars.lines[0].get_xydata(), [[0, 0], [2, 1]])
    np.testing.assert_allclose(bars.lines[2][0].get_segments()[1][:, 0], [1, 4])
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["cheap   1.00 s", "dear   3.00 s"]
    assert ax.yaxis_inverted()  # the cheapest on top
    assert "cheap +0, dear +2" in dk.plot.alt_text(ax)
