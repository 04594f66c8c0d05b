"""Figures: the artists hold the data, and nothing global is touched."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import datekit as dk

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def runs(random_backbone, brightness, prompts):
    date = dk.Sampler(
        random_backbone, dk.DATE(brightness, rho=0.5, when=dk.every(2)), num_steps=6
    ).start(prompts, seeds=[0, 1, 2])
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
    np.testing.assert_allclose(
        lines["fixed"].get_ydata(), runs[1].rewards(runs[0].sampler.method.reward).mean(1)
    )
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
    np.testing.assert_allclose(
        ax.images[0].get_array()[68:, :64], runs[1].pixels[0].permute(1, 2, 0), atol=1e-6
    )
    with pytest.raises(ValueError, match="not among those that were taken, 0 to 5"):
        dk.plot.filmstrip(*runs, steps=[3, 9])


def test_runs_at_different_steps_share_their_columns(runs):
    short = runs[0].fork(at=3)
    ax = dk.plot.filmstrip(runs[1], short, steps=8)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["step 0", "step 1", "step 2"]
    with pytest.raises(ValueError, match="no step in common"):
        dk.plot.filmstrip(runs[0].fork(at=0))


def fill(make, **kwargs):
    """The axes given are the axes returned, and the words for them name what is there."""
    ax = plt.subplots()[1]
    assert make(ax=ax, **kwargs) is ax
    return ax, dk.plot.alt_text(ax)


def test_every_figure_of_runs_has_words_for_it(runs):
    words = fill(lambda ax: dk.plot.reward(*runs, labels=["DATE", "fixed"], ax=ax))[1]
    h = runs[0].rewards().mean(1)
    assert f"DATE: {h[0]:.3g} at 0 to {h[5]:.3g} at 5" in words
    assert "Updated in steps 0, 2, 4." in words
    assert "a green star" in fill(lambda ax: dk.plot.filmstrip(*runs, sample=1, ax=ax))[1]
    assert "a green star" in fill(lambda ax: dk.plot.compare(*runs, ax=ax))[1]
    figure = plt.figure()
    dk.plot.reward(*runs, ax=figure.add_subplot(121))
    dk.plot.compare(*runs, ax=figure.add_subplot(122))
    assert dk.plot.alt_text(figure) == " ".join(dk.plot.alt_text(ax) for ax in figure.axes)


def test_bare_matplotlib_has_words_too():
    figure, (left, right) = plt.subplots(1, 2)
    with pytest.raises(ValueError, match="no words"):
        dk.plot.alt_text(figure)
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
    assert dk.plot.alt_text(figure) == f"{words} 2 x 2 values from 0 to 1."
    dk.plot.curves({"one": ([0, 1], [2, 3])}, ax=right).set_title("mine")
    assert dk.plot.alt_text(right).startswith("mine: Lines of")


def test_a_notebook_shows_every_figure_with_its_words(monkeypatch):
    """... whether or not `%matplotlib inline` comes later, and the PNG is the same."""
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv(
        "JUPYTER_PATH", str(Path(sys.prefix) / "share" / "jupyter")
    )  # the kernel of this environment
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    bare = "import matplotlib.pyplot as plt\nplt.plot([0, 1], [2, 3], label='line')\nplt.show()"
    ours = "dk.plot.curves({'one': ([0, 1], [2, 3])}, ylabel='h')"
    cells = [
        bare,
        "import datekit as dk\ndk.plot",
        f"%matplotlib inline\n{bare}",
        ours,
        "plt.figure()",
    ]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    NotebookClient(notebook, kernel_name="python3").execute()
    shown = [
        [output for output in cell.outputs if "image/png" in output.get("data", {})]
        for cell in notebook.cells
    ]
    assert [len(outputs) for outputs in shown] == [1, 0, 1, 1, 0]
    (before,), _, (after,), (curve,), _ = shown
    assert before.data["image/png"] == after.data["image/png"]
    assert before.metadata == {}
    assert after.metadata["image/png"]["alt"] == "line: 2 at 0 to 3 at 1, highest 3 at 1."
    assert curve.metadata["image/png"]["alt"].startswith("Lines of h against step")


def test_runs_of_one_method_are_told_apart(runs):
    ax = dk.plot.reward(runs[0], runs[0])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["DATE #1", "DATE #2"]
    assert (
        len(
            {
                line.get_linestyle()
                for line in ax.lines
                if line.get_label() in ("DATE #1", "DATE #2")
            }
        )
        == 2
    )


def test_curves_mark_the_updates_and_leave_gaps():
    ax, words = fill(
        lambda ax: dk.plot.curves(
            {"a": ([0, 1, 2], [1.0, np.nan, 3.0]), "b": ([0, 1], [np.nan, np.nan])},
            updated={"a": [2]},
            ylabel="h",
            ax=ax,
        )
    )
    marks = [list(line.get_xdata()) for line in ax.lines if line.get_marker() == "^"]
    assert marks == [[2], []]
    assert "a: 1 at 0 to 3 at 2, highest 3 at 2. Updated in steps 2." in words
    assert "b: no values." in words


def test_a_sweep_as_pictures_and_as_a_curve(runs):
    found = dk.widgets.rho_sweep(runs[0].fork(at=2), [0.25, 0.5, 1.0])
    ax, words = fill(lambda ax: dk.plot.rho_sweep(found, sample=1, ax=ax))
    np.testing.assert_allclose(
        ax.images[0].get_array()[:, 68:132],
        found.images[1, 1].clamp(0, 1).permute(1, 2, 0),
        atol=1e-6,
    )
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels[2] == f"rho 1\nh {found.h[2, 1]:.3f}\n1st order {found.predicted[2, 1]:.3f}"
    assert f"rho 0.25: h {found.h[0, 1]:.3f}" in words
    ax, words = fill(lambda ax: dk.plot.rho_curve(found, sample=1, ax=ax))
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_allclose(lines["measured"], found.h[:, 1])
    np.testing.assert_allclose(lines["first order"], found.predicted[:, 1])
    assert "measured: " in words


def test_quality_against_time_takes_the_file_of_a_comparison():
    rows = json.loads((ROOT / "datekit" / "evaluation" / "results" / "heldout.json").read_text())[
        "rows"
    ]
    ax, words = fill(lambda ax: dk.plot.quality(rows, ax=ax))
    points = {
        container.get_label(): container.lines[0].get_xydata()[0] for container in ax.containers
    }
    for name, row in rows.items():
        np.testing.assert_allclose(points[name], [row["seconds a picture"], row["heldout"][0]])
        assert name in words
    assert len({container.lines[0].get_marker() for container in ax.containers}) == len(
        rows
    )  # also in grey print
    ax = dk.plot.quality({"one": {"steps": 3, "h": 0.5}}, cost="steps", measure="h")
    np.testing.assert_allclose(ax.containers[0].lines[0].get_xydata(), [[3, 0.5]])


def test_figures_of_findings_have_words_for_them(runs):
    directions = dk.analysis.directions(runs[0])
    paused = runs[0].fork(at=2)
    makers = {
        "Heat map": lambda ax: dk.plot.cosines(directions, ax=ax),
        "between samples": lambda ax: dk.plot.agreement(directions, ax=ax),
        "Largest: ": lambda ax: dk.plot.tokens(dk.analysis.token_shares(paused), ax=ax),
        "Length of the term": lambda ax: dk.plot.guidance(dk.guidance_term(paused), ax=ax),
        "push that the reward wishes": lambda ax: dk.plot.chain(
            dk.analysis.chain_rule(paused), ax=ax
        ),
    }
    for expected, make in makers.items():
        assert expected in fill(make)[1]


def test_a_picture_for_the_notebook_carries_its_words(runs):
    ax = dk.plot.compare(*runs)
    image, words = dk.plot.picture(ax), dk.plot.alt_text(ax)
    data, metadata = image._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == words
    assert not plt.get_fignums()  # or the notebook would show it twice
    assert data["image/png"]


# Vienot, Brettel and Mollon (1999): linear RGB as seen without the long-wave and without the middle-wave cones
DEFICIENT = {
    "protanopia": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    "deuteranopia": np.array(
        [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]
    ),
}


def apart(colours, kind):
    """The least distance between two of these colours as such eyes see them."""
    rgb = np.array([mpl.colors.to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ DEFICIENT[kind].T, 0, 1) ** (1 / 2.4)
    return np.linalg.norm(seen[:, None] - seen[None], axis=2)[np.triu_indices(len(seen), 1)].min()


@pytest.mark.parametrize("kind", DEFICIENT)
def test_colours_are_told_apart_with_any_colour_vision(kind):
    assert apart(dk.plot.COLOURS, kind) > 0.12
    assert apart(mpl.colormaps["tab10"].colors[:6], kind) < 0.12  # matplotlib's usual ones are not
    assert len(set(map(str, dk.plot.STYLES))) == len(dk.plot.STYLES) == len(dk.plot.COLOURS)
    assert len(set(dk.plot.MARKERS)) >= len(dk.plot.COLOURS)
