"""Figures: the artists hold the data, words stand for them, and nothing global is touched."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import datekit as dk
from datekit.rewards import as_reward


@pytest.fixture(scope="module")
def runs(random_backbone, brightness, prompts):
    method = dk.DATE(brightness, rho=0.5, when=dk.every(2))
    date = dk.Sampler(random_backbone, method, num_steps=6).start(prompts, seeds=[0, 1, 2])
    return date.finish(), date.fork(dk.Fixed(), at=0).finish()


@pytest.fixture(autouse=True)
def nothing_global():
    before, figures = dict(mpl.rcParams), set(plt.get_fignums())
    yield
    assert dict(mpl.rcParams) == before
    plt.close("all")
    assert not figures


def draw(figure, *data, **options):
    """The axes given are the axes returned; they and the words for them."""
    ax = plt.subplots()[1]
    assert figure(*data, ax=ax, **options) is ax
    return ax, dk.plot.alt_text(ax)


def test_reward_curves(runs):
    ax, words = draw(dk.plot.reward, *runs, labels=["DATE", "fixed"])
    lines = {line.get_label(): line for line in ax.lines}
    h = runs[0].rewards().mean(1)
    np.testing.assert_allclose(lines["DATE"].get_ydata(), h)
    plain = runs[1].rewards(runs[0].sampler.method.reward).mean(1)
    np.testing.assert_allclose(lines["fixed"].get_ydata(), plain)
    marks = [list(line.get_xdata()) for line in ax.lines if line.get_marker() == "^"]
    assert marks == [[0, 2, 4], []]
    assert f"DATE: {h[0]:.3g} at 0 to {h[5]:.3g} at 5" in words
    assert "Updated in steps 0, 2, 4." in words
    ax = dk.plot.reward(runs[0], runs[0])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["DATE #1", "DATE #2"]
    with pytest.raises(TypeError, match="must be callable"):
        dk.plot.reward(runs[1])


def test_filmstrip_and_compare(runs):
    ax, words = draw(dk.plot.filmstrip, *runs, sample=1, steps=[0, 5])
    canvas, last = ax.images[0].get_array(), runs[0].history[5]
    assert canvas.shape == (64 * 2 + 4, 64 * 3 + 8, 3)
    expected = last.decode(last.x0bar_hat[1:2])[0].clamp(0, 1).permute(1, 2, 0)
    np.testing.assert_allclose(canvas[:64, 68:132], expected, atol=1e-6)
    finished = runs[0].pixels[1].permute(1, 2, 0)
    np.testing.assert_allclose(canvas[:64, 136:], finished, atol=1e-6)
    columns = ["step 0", "step 5", "finished"]
    assert [label.get_text() for label in ax.get_xticklabels()] == columns
    assert "a green star" in words
    ax = dk.plot.filmstrip(*runs, sample=1, steps=[5], difference=True)
    apart = (finished - runs[1].pixels[1].permute(1, 2, 0)).abs().mean(2)
    row = 1 - ax.images[0].get_array()[136:, :, 0]
    assert row.max() == 1  # where they differ most of all columns
    shown = row[:, 68:]
    np.testing.assert_allclose(shown * apart.max().item(), apart * shown.max(), atol=1e-6)
    ax, words = draw(dk.plot.compare, *runs, labels=["DATE", "fixed"])
    expected = runs[1].pixels[0].permute(1, 2, 0)
    np.testing.assert_allclose(ax.images[0].get_array()[68:, :64], expected, atol=1e-6)
    assert "a green star" in words
    short = dk.plot.filmstrip(runs[1], runs[0].fork(at=3), steps=8)
    assert [label.get_text() for label in short.get_xticklabels()] == ["step 0", "step 1", "step 2"]
    with pytest.raises(ValueError, match="no step in common"):
        dk.plot.filmstrip(runs[0].fork(at=0))


def test_the_diagram_shows_the_numbers_of_a_step(runs):
    info = runs[0].history[2]
    ax, words = draw(dk.plot.diagram, info, sample=1)
    shown = [text.get_text() for text in ax.texts]
    assert f"{info.h[1]:.3f}" in shown
    assert f"moved by {info.distance[1]:.2f}" in shown
    (picture,) = ax.child_axes[0].images
    expected = info.decode(info.x0bar[1:2])[0].clamp(0, 1).permute(1, 2, 0)
    np.testing.assert_allclose(picture.get_array(), expected, atol=1e-6)
    for name in ("info.prompts", "info.at", "info.x0bar", "info.h", "info.grad", "info.c"):
        assert name in shown
        assert name in words


def test_a_dollar_in_a_prompt_is_a_dollar(random_backbone, brightness):
    """Two make a formula for matplotlib, and a broken one ends the figure."""
    prompt = r"a $\frac{star$ for $5"
    reward = as_reward(brightness)
    reward.name = prompt
    run = dk.Sampler(random_backbone, dk.DATE(reward), num_steps=2).start([prompt], seeds=[0])
    run.step()
    for ax in (
        dk.plot.filmstrip(run, labels=[prompt]),
        dk.plot.compare(run, labels=[prompt]),
        dk.plot.reward(run, labels=[prompt]),
        dk.plot.tokens(dk.analysis.token_shares(run)),
        dk.plot.guidance(dk.guidance_term(run)),
        dk.plot.chain(dk.analysis.chain_rule(run)),
    ):
        ax.figure.canvas.draw()


def test_alt_text_of_figures_and_of_bare_matplotlib(runs):
    figure, (left, right) = plt.subplots(1, 2)
    assert dk.plot.alt_text(figure) == ""
    left.errorbar([0, 2], [1, 3], yerr=0.1, label="measured")
    left.bar([0, 1], [3, 4], label="bars")
    left.axhline(2, label="limit")
    left.scatter([0], [0], label="points")
    left.set(xlabel="x", ylabel="a\nb", title="bare")
    right.imshow(np.eye(2))
    words = dk.plot.alt_text(left)
    for part in (
        "bare. a b against x.",
        "measured: 1 at 0 to 3 at 2",
        "bars: 3 to 4.",
        "limit: 2 throughout.",
        "points.",
    ):
        assert part in words
    assert dk.plot.alt_text(figure) == f"{words} 2 x 2 values."
    dk.plot.compare(*runs, ax=right).set_title("mine")
    assert dk.plot.alt_text(right).startswith("mine: 2 x 3 pictures")


def test_a_notebook_shows_every_figure_with_its_words(monkeypatch):
    """This holds whether or not `%matplotlib inline` comes later, and the PNG is the same."""
    monkeypatch.delenv("MPLBACKEND", raising=False)
    kernels = Path(sys.prefix) / "share" / "jupyter"  # of this environment
    monkeypatch.setenv("JUPYTER_PATH", str(kernels))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    bare = "import matplotlib.pyplot as plt\nplt.plot([0, 1], [2, 3], label='line')\nplt.show()"
    ours = "dk.plot.curves({'one': ([0, 1], [2, 3])}, ylabel='h')"
    inline = f"%matplotlib inline\n{bare}"
    cells = [bare, "import datekit as dk\ndk.plot", inline, ours, "plt.figure()"]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    NotebookClient(notebook, kernel_name="python3").execute()
    shown = []
    for cell in notebook.cells:
        shown.append([out for out in cell.outputs if "image/png" in out.get("data", {})])
    (before,), none, (after,), (curve,), empty = shown
    assert none == empty == []
    assert before.data["image/png"] == after.data["image/png"]
    assert before.metadata == {}
    assert after.metadata["image/png"]["alt"] == "line: 2 at 0 to 3 at 1, highest 3 at 1."
    assert curve.metadata["image/png"]["alt"].startswith("Lines of h against the step")


def test_curves_mark_the_updates_leave_gaps_and_have_bands():
    lines = {"a": ([0, 1, 2], [1.0, np.nan, 3.0]), "b": ([0, 1], [np.nan, np.nan])}
    lines["c"] = [0, 1], [2.0, 3.0], [1.5, 2.5], [2.5, 3.5]
    ax, words = draw(dk.plot.curves, lines, updated={"a": [2]}, ylabel="h")
    marks = [list(line.get_xdata()) for line in ax.lines if line.get_marker() == "^"]
    assert marks == [[2], [], []]
    assert "a: 1 at 0 to 3 at 2, highest 3 at 2. Updated in steps 2." in words
    assert "b: no values." in words
    (band,) = ax.collections
    assert band.get_paths()[0].get_extents().intervaly.tolist() == [1.5, 3.5]


def test_figures_of_instruments(runs):
    directions, paused = dk.analysis.directions(runs[0]), runs[0].fork(at=2)
    shares, error = dk.analysis.token_shares(paused), dk.analysis.taylor_error(paused)
    ax, words = draw(dk.plot.cosines, directions)
    np.testing.assert_allclose(ax.images[0].get_array(), directions.matrix)
    assert "Heat map" in words
    ax, words = draw(dk.plot.tokens, shares)
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], shares.share[0])
    assert "Largest: " in words
    ax, words = draw(dk.plot.slopes, error)
    np.testing.assert_allclose(ax.lines[0].get_xydata().T, [error.rhos, error.score_error[:, 0]])
    assert f"score: slope {error.score_slope[0]:.2f}: " in words
    assert "Columns: step 2 length" in draw(dk.plot.guidance, dk.guidance_term(paused))[1]
    ax, words = draw(dk.plot.chain, dk.analysis.chain_rule(paused))
    assert "step 2: 3 x 3 pictures. Rows: x0bar, push along grad_x0bar h" in words


# Vienot, Brettel and Mollon (1999): linear RGB as seen without the long- or the middle-wave cones
DEFICIENT = {
    "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


def least_distance(colours, kind):
    """The least distance between two of these colours as such eyes see them."""
    rgb = np.array([mpl.colors.to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(DEFICIENT[kind]).T, 0, 1) ** (1 / 2.4)
    return np.linalg.norm(seen[:, None] - seen[None], axis=2)[np.triu_indices(len(seen), 1)].min()


@pytest.mark.parametrize("kind", DEFICIENT)
def test_colours_are_told_apart_with_any_colour_vision(kind):
    assert least_distance(dk.plot.COLOURS, kind) > 0.12
    assert least_distance(mpl.colormaps["tab10"].colors[:6], kind) < 0.12  # matplotlib's own
    assert len(set(map(str, dk.plot.STYLES))) == len(dk.plot.STYLES) == len(dk.plot.COLOURS)
