"""Figures of study results: methods in x-space, what is wrong in pictures, what quality costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from datekit.plot.style import (
    COLOURS,
    MARKERS,
    axes,
    band,
    line_in_words,
    look_of,
    tell,
    tidy,
)

EIGHT = (*COLOURS, "#000000", "#8C8C8C")  # a colour for each of eight points


def alignment(cosines: Mapping[str, object], *, ax=None):
    """The cosine of two methods in x-space (`analysis.guidance_cosine`) by step, a line a name.

    Each line is the mean over samples with its 95 % interval.
    """
    ax = axes(ax, (5.2, 3.2))
    words = []
    for n, (name, cosine) in enumerate(cosines.items()):
        intervals = [cosine.interval(row) for row in range(len(cosine.steps))]
        steps, (mean, low, high) = cosine.steps, np.array(intervals).T
        ax.plot(steps, mean, label=name, marker=MARKERS[n], markersize=4, **look_of(n))
        band(ax, n, steps, low, high)
        words.append(line_in_words(name, steps, mean))
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set(xlabel="step (0 is the noisiest)", ylabel="cosine in x-space")
    tell(ax, "Cosine of what two methods do to the score, against the step. " + " ".join(words))
    return tidy(ax, legend=True, whole_steps=True)


def quality(
    kinds: Mapping[str, Mapping[str, Mapping]],
    *,
    measure: str = "heldout",
    cost: str = "seconds a picture",
    ax=None,
):
    """Quality against time, a point a method: up and to the left is better.

    kinds: by the name of a kind, which has a colour and a line from cheap to dear, its rows by what
    is written below each point ("": nothing): {cost: number, measure: (mean, low, high)}.
    """
    ax = axes(ax, (6.4, 3.4))
    words, below = [], {"textcoords": "offset points", "xytext": (4, -11), "fontsize": 8}
    for n, (kind, rows) in enumerate(kinds.items()):
        rows = dict(sorted(rows.items(), key=lambda item: item[1][cost]))
        times = [row[cost] for row in rows.values()]
        means, off = _means([row[measure] for row in rows.values()])
        style = look_of(n) | {"marker": MARKERS[n], "markersize": 5}
        ax.errorbar(times, means, off, elinewidth=0.8, linewidth=1, label=kind, **style)
        for name, time, mean in zip(rows, times, means, strict=True):
            ax.annotate(name, (time, mean), color=style["color"], parse_math=False, **below)
            low, high = rows[name][measure][1:]
            point = f"{kind}, {name}" if name else kind
            words.append(f"{point}: {mean:.3g} [{low:.3g}, {high:.3g}] at {time:.3g}.")
    ax.set(xlabel=cost, ylabel=measure)
    ax.set_xlim(left=0)
    tell(ax, f"{measure} against {cost}. {' '.join(words)}")
    return tidy(ax, legend=True, fontsize=8, loc="lower right")


def ladder(rows: Mapping[str, Mapping], measures: Mapping[str, str], cost: str):
    """Gains over the first row with 95 % intervals, a line a row from cheap to dear; a figure.

    rows: by name, {cost: number, "<measure> - fixed": (mean, low, high)}. measures: what is shown,
    with its title.
    """
    import matplotlib.pyplot as plt

    rows = dict(sorted(rows.items(), key=lambda item: item[1][cost]))
    places, size = np.arange(len(rows)), (3.2 + 2.6 * len(measures), 0.26 * len(rows) + 0.9)
    figure, panels = plt.subplots(1, len(measures), sharey=True, figsize=size, layout="constrained")
    for n, (ax, (measure, title)) in enumerate(zip(np.atleast_1d(panels), measures.items())):
        means, off = _means([row[f"{measure} - fixed"] for row in rows.values()])
        style = {"fmt": MARKERS[n], "color": COLOURS[n], "capsize": 2, "markersize": 4}
        ax.errorbar(means, places, xerr=off, **style)
        ax.axvline(0, color="0.6", linewidth=0.8)
        ax.grid(axis="y", color="0.93", linewidth=6)
        ax.set(xlabel=title)
        ax.set_axisbelow(True)
        said = [f"{name} {mean:+.3g}" for name, mean in zip(rows, means, strict=True)]
        tell(ax, f"{title}, from cheap to dear: {', '.join(said)}.")
        tidy(ax)
    labels = [f"{name}   {row[cost]:.2f} s" for name, row in rows.items()]
    np.atleast_1d(panels)[0].set_yticks(places, labels, parse_math=False, fontsize=8)
    np.atleast_1d(panels)[0].invert_yaxis()
    return figure


def gains(
    families: Mapping[str, Mapping],
    bins: Mapping[str, Mapping],
    names: Mapping[str, str],
    *,
    ax=None,
):
    """What rows gain against how often the fixed embedding is right, with 95 % intervals.

    families, bins: of prompts, as `base_rate.by_base_rate` gives them. names: of the rows, with
    their labels. Bins are joined by a line; families are hollow, and named along the bottom.
    """
    ax = axes(ax, (5.2, 3.8))
    place = {"rotation": 90, "va": "bottom", "fontsize": 8, "color": "0.4"}
    words, middle = [], (len(names) - 1) / 2
    for n, (name, label) in enumerate(names.items()):
        hollow = {"linestyle": "none", "markerfacecolor": "white", "alpha": 0.6}
        for parts, style in ((bins, {"label": label}), (families, hollow)):
            rows = [part["rows"] for part in parts.values()]
            bases = [row["fixed"]["oracle"][0] for row in rows]
            means, off = _means([row[name]["oracle - fixed"] for row in rows])
            look = look_of(n) | {"marker": MARKERS[n], "markersize": 4, "elinewidth": 0.6}
            beside = np.add(bases, 0.01 * (n - middle))  # so that intervals do not cover others
            ax.errorbar(beside, means, off, **look | style)
            points = zip(parts, bases, means, strict=True)
            told = [f"{part} {gain:+.1%} at {base:.1%}" for part, base, gain in points]
            words.append(f"{label}: {', '.join(told)}.")
    for n, (part, base) in enumerate(zip(parts, bases, strict=True)):
        side = ("left", "right")[n % 2]  # so that neighbours keep apart
        ax.text(base, 0.01, part, ha=side, transform=ax.get_xaxis_transform(), **place)
    ax.axhline(0, color="0.6", linewidth=0.8)
    grey = {"color": "0.5", "markersize": 4}
    ax.plot([], [], "o-", label="prompts of two things, in bins", **grey)
    ax.plot([], [], "o", label="a family of prompts, named below", markerfacecolor="white", **grey)
    ax.set(xlabel="share right with the fixed embedding", ylabel="gain in the share right")
    ax.update_datalim([(0, -0.35)])  # room for the names below the intervals
    tell(ax, "Gain in the share right against that of the fixed embedding. " + " ".join(words))
    return tidy(ax, legend=True, fontsize=8)


def alignment_against_gain(
    points: Mapping[str, Mapping[str, Sequence[float]]], *, log: bool = False, ax=None
):
    """What an instrument says of a guide against what the guide gains, a point a guide.

    points: by name, {instrument: (mean, low, high), gain: (mean, low, high)}, in this order, as
    `what_guides.points` gives them. Lines are 95 % intervals. log: a logarithmic axis across.
    """
    ax = axes(ax, (6.4, 4.0))
    x, y = next(iter(points.values()))
    words = []
    for n, (name, point) in enumerate(points.items()):
        ((across,), x_off), ((up,), y_off) = (_means([point[key]]) for key in (x, y))
        style = {"color": EIGHT[n % len(EIGHT)], "marker": MARKERS[n % len(MARKERS)]}
        ax.errorbar(across, up, y_off, x_off, elinewidth=0.8, linestyle="none", label=name, **style)
        words.append(f"{name}: {up:.3g} at {across:.3g}.")
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set(xlabel=x, ylabel=y)
    if log:
        ax.set_xscale("log")
        ticks = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    tell(ax, f"{y} against {x}. {' '.join(words)}")
    return tidy(ax, legend=True, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _means(rows: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Means (N,), and how far the ends of their intervals lie below and above, (2, N)."""
    mean, low, high = np.asarray(rows, float).T
    return mean, np.stack([mean - low, high - mean])
