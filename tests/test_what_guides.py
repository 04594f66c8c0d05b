"""The study of what guides: its ideal, its areas under curves, the orders it counts, its figure."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import open_clip
import pytest
import torch
from scipy.stats import mannwhitneyu
from studies import figures, unshipped_guides, what_guides

import datekit as dk
from datekit.evaluation.metrics import real_pictures
from datekit.shapes import WEIGHTS

PROMPT = "a red circle left of a blue square"


def test_the_ideal_pulls_to_the_nearest_right_picture():
    right = torch.cat(list(real_pictures([PROMPT], least=unshipped_guides.RIGHT)))
    assert all(verdict.right for verdict in dk.shapes.judge(right, [PROMPT] * len(right)))
    images = (0.7 * right[[3, 9]] + 0.3 * torch.rand(2, 3, 64, 64)).requires_grad_()
    h = unshipped_guides.Ideal()(images, [PROMPT] * 2)
    distances = (images[:, None] - right).square().mean((2, 3, 4))
    torch.testing.assert_close(h, -distances.min(1).values)
    (grad,) = torch.autograd.grad(h.sum(), images)
    nearest = right[distances.argmin(1)]
    torch.testing.assert_close(grad, 2 * (nearest - images.detach()) / images[0].numel())
    ahead = images.detach() + grad * images[0].numel() / 2
    assert unshipped_guides.Ideal()(ahead, [PROMPT] * 2).abs().max() < 1e-12


def test_contrast_is_the_share_among_captions_that_are_nearly_right():
    reward, images = unshipped_guides.Contrast(), torch.rand(2, 3, 64, 64)
    near = unshipped_guides._near(PROMPT)
    assert len({PROMPT, *near}) == 1 + unshipped_guides.NEAR
    (right,) = torch.cat(list(real_pictures([PROMPT], least=1)))[:1]
    verdicts = dk.shapes.judge(torch.stack([right] * len(near)), near)
    assert not any(verdict.right for verdict in verdicts)
    clip = dk.rewards.load("shapes-clip").network
    tokens = open_clip.get_tokenizer(f"local-dir:{WEIGHTS / 'clip'}")([PROMPT, *near])
    logits = clip(2 * images - 1, tokens)
    wanted = (logits[2] * logits[0] @ logits[1].T).softmax(1)[:, 0].log()
    torch.testing.assert_close(reward(images, [PROMPT] * 2), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", unshipped_guides.HALVES)
def test_half_a_robust_guide_reads_as_the_plain_one_and_sees_otherwise(name, tmp_path):
    unshipped_guides.train(name, tmp_path, steps=2, pool=4)
    half, plain = dk.rewards.CLIPScore(tmp_path), dk.rewards.load("shapes-clip-plain")
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(half.text_features([PROMPT]), plain.text_features([PROMPT]))
    assert not torch.allclose(half.image_features(images), plain.image_features(images), atol=1e-4)


def test_the_area_under_the_curve_is_that_of_mann_and_whitney():
    rng = np.random.default_rng(0)
    right = (rng.random(40) < 0.6).astype(float)
    h = np.round(rng.normal(size=(3, 40)) + np.arange(3)[:, None] * right, 1)  # with ties
    found = what_guides._auc(h, right)
    for row, (mean, low, high) in zip(h, found["by step"], strict=True):
        good, bad = row[right == 1], row[right == 0]
        wanted = mannwhitneyu(good, bad).statistic / len(good) / len(bad)
        assert mean == pytest.approx(wanted, abs=5e-5)
        assert low < mean < high
    assert found["all steps"][0] == pytest.approx(
        np.mean([m for m, *_ in found["by step"]]), abs=1e-4
    )
    assert what_guides._auc(h, np.ones(40)) == {"all steps": None, "by step": [None] * 3}


def content(gains, told):
    """A file of results with these gains and values of one instrument, a guide each."""
    rows, instruments = {"fixed": {}}, {}
    for name, gain, value in zip("abcde", gains, told, strict=True):
        rows[name] = {what_guides.GAIN: [gain, gain - 0.1, gain + 0.2]}
        instruments[name] = {"attacked": {"all steps": value and [value, value - 0.3, value + 0.4]}}
    return {"rows": rows, "instruments": instruments}


@pytest.mark.parametrize(
    ("gains", "told", "wanted"),
    [
        ([1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5], (10, 10)),
        ([1, 2, 3, 4, 5], [0.5, 0.4, 0.3, 0.2, 0.1], (0, 10)),
        ([1, 2, 3, 5, 4], [0.1, 0.2, 0.3, 0.4, 0.5], (9, 10)),
        ([1, 1, 3, 4, 5], [0.1, 0.2, 0.3, 0.3, 0.5], (8, 9)),
        ([1, 2, 3, 4, 5], [None, 0.2, 0.3, 0.4, 0.5], (6, 10)),
    ],
)
def test_pairs_of_guides_in_the_same_order(gains, told, wanted):
    assert what_guides.same_order(content(gains, told), "attacked") == wanted


def test_two_instruments_are_compared_over_guides():
    file = content([1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5])
    for n, each in enumerate(file["instruments"].values()):
        each["right"] = {"all steps": [-n, -n, -n]}
        each["AUC"] = {"all steps": [(1, 0, 2, 4, 3)[n]] * 3}
    assert what_guides.order_apart(file, "attacked", "right") == (1, 1, 1)
    apart = what_guides.order_apart(file, "attacked", "AUC")
    assert apart.mean == pytest.approx(0.2)
    assert apart.low == 0 < apart.high


def test_the_figure_holds_both_intervals_of_each_guide():
    gains, told = [0.1, 0.2, 0.3, 0.4, 0.5], [0.9, 0.8, 0.7, None, 0.5]
    points = what_guides.points(content(gains, told), "attacked")
    ax = figures.alignment_against_gain(points)
    kept = [n for n, value in enumerate(told) if value]
    for n, bars in zip(kept, ax.containers, strict=True):
        np.testing.assert_allclose(bars.lines[0].get_xydata(), [[told[n], gains[n]]])
        across, up = (bars.lines[2][k].get_segments()[0] for k in (0, 1))
        np.testing.assert_allclose(across[:, 0], [told[n] - 0.3, told[n] + 0.4])
        np.testing.assert_allclose(up[:, 1], [gains[n] - 0.1, gains[n] + 0.2])
        assert bars.get_label() in dk.plot.alt_text(ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("the same under attack", "oracle - fixed")
    plt.close("all")


def test_eight_guides_are_told_apart_by_colour_and_by_marker():
    told = [0.07, 0.09, 0.13, 0.14, 0.08, 0.17, 0.08, 1.0]
    points = {
        f"guide {n}": {"cosine": (value, value / 2, min(1, 2 * value)), "gain": (0.1, 0.0, 0.2)}
        for n, value in enumerate(told)
    }
    ax = figures.alignment_against_gain(points, log=True)
    looks = [(bars.lines[0].get_color(), bars.lines[0].get_marker()) for bars in ax.containers]
    assert [len(set(kind)) for kind in zip(*looks, strict=True)] == [8, 8]
    labels = [text.get_text() for text in ax.get_xticklabels()]
    assert ax.get_xscale() == "log"
    assert len([label for label in labels if label]) >= 6
    plt.close("all")
