"""Figures of comparisons: methods side by side in x-space, and what is wrong in pictures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..statistics import bootstrap
from .style import COLOURS, MARKERS, STYLES, axes, line_in_words, tell, tidy

PALE = "#D9D9D9"
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "--")


def alignment(found: Mapping[str, object], *, ax=None):
    """The cosine of two methods in x-space against the step (`analysis.guidance_cosine`), a line by name: mean and 95 % interval."""
    ax = axes(ax, (5.2, 3.2))
    words = []
    for n, (name, cosine) in enumerate(found.items()):
        known = {
            i: row[row.isfinite()].tolist()
            for i, row in zip(cosine.steps, cosine.cosine, strict=True)
        }
        rows = [(i, *bootstrap(values)) for i, values in known.items() if values]
        steps, mean, low, high = (np.array(column) for column in zip(*rows, strict=True))
        ax.plot(
            steps,
            mean,
            marker=MARKERS[n % len(MARKERS)],
            markersize=4,
            color=COLOURS[n % 6],
            linestyle=STYLES[n % 6],
            label=name,
        )
        ax.fill_between(steps, low, high, color=COLOURS[n % 6], alpha=0.15, linewidth=0)
        words.append(line_in_words(name, steps, mean))
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set(xlabel="step (0 is the noisiest)", ylabel="cosine in x-space")
    tell(ax, "Cosine of what two methods do to the score, against the step. " + " ".join(words))
    return tidy(ax, legend=True, whole_steps=True)


def failures(rows: Mapping[str, Mapping[str, float]], *, ax=None):
    """Shares of what is wrong in pictures, a stacked bar a name, in the order given; "all right" is pale.

    rows: by name, {kind: share}, each share from 0 to 1, as `evaluation.concepts.wrong` gives one for each pair.
    """
    ax = axes(ax, (6.4, 0.42 * len(rows) + 1.2))
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    names, left = list(rows), np.zeros(len(rows))
    for n, kind in enumerate(kinds):
        values = np.array([float(np.mean(row.get(kind, 0.0))) for row in rows.values()])
        colour, hatch = (PALE, "") if kind == "all right" else (COLOURS[n % 6], HATCHES[n % 7])
        ax.barh(
            names,
            values,
            left=left,
            color=colour,
            label=kind,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.5,
        )
        left += values
    ax.invert_yaxis()
    ax.set(xlabel="share of pictures", xlim=(0, max(1.0, left.max())))
    tell(
        ax,
        "Shares of pictures. "
        + " ".join(
            f"{name}: " + ", ".join(f"{kind} {float(np.mean(row[kind])):.1%}" for kind in row) + "."
            for name, row in rows.items()
        ),
    )
    return tidy(ax, legend=True, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
