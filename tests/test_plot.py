"""Figures: the artists hold the data, and nothing global is touched."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import datekit as dk


@pytest.fixture(scope="module")
def runs(random_backbone, brightness, prompts):
    date = dk.Sampler(random_backbone, dk.DATE(brightness, rho=0.5, when=dk.every(2)), num_steps=6).start(prompts, seeds=[0, 1, 2])
    return date.finish(), date.fork(dk.Fixed(), at=0).finish()


@pytest.fixture(autouse=True)
def nothing_global():
    before, figures = dict(mpl.rcParams), set(plt.get_fignums())
    yield
    assert dict(mpl.rcParams) == before
    plt.close("all")
    assert not figures


def test_reward_curves(runs):
    ax = dk.plot.reward(*runs, labels=["DATE", "fixed"])
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["DATE"].get_ydata(), runs[0].rewards().mean(1))
    np.testing.assert_allclose(lines["fixed"].get_ydata(), runs[1].rewards(runs[0].sampler.method.reward).mean(1))
    marks = [line for line in ax.lines if line.get_marker() == "^"]
    assert list(marks[0].get_xdata()) == [0, 2, 4]
    assert len(marks[1].get_xdata()) == 0
    with pytest.raises(ValueError, match="say which"):
        dk.plot.reward(runs[1])


def test_filmstrip_and_compare(runs):
    ax = plt.subplots()[1]
    assert dk.plot.filmstrip(*runs, sample=1, steps=[0, 5], ax=ax) is ax
    canvas = ax.images[0].get_array()
    assert canvas.shape == (64 * 2 + 4, 64 * 2 + 4, 3)
    last = runs[0].history[5]
    expected = last.decode(last.x0bar_hat[1:2])[0].clamp(0, 1).permute(1, 2, 0)
    np.testing.assert_allclose(canvas[:64, 68:], expected, atol=1e-6)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["step 0", "step 5"]
    ax = dk.plot.compare(*runs, labels=["DATE", "fixed"])
    np.testing.assert_allclose(ax.images[0].get_array()[68:, :64], runs[1].pixels[0].permute(1, 2, 0), atol=1e-6)
    with pytest.raises(ValueError, match="not among those that were taken, 0 to 5"):
        dk.plot.filmstrip(*runs, steps=[3, 9])


def test_runs_at_different_steps_share_their_columns(runs):
    short = runs[0].fork(at=3)
    ax = dk.plot.filmstrip(runs[1], short, steps=8)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["step 0", "step 1", "step 2"]
    with pytest.raises(ValueError, match="no step in common"):
        dk.plot.filmstrip(runs[0].fork(at=0))
