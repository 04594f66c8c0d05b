"""What the figures share: colours, lines, pictures as arrays, and the words that stand for them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import check_finite
from ..tensors import NO_PICTURE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette is told apart with any colour vision; styles and markers for grey print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
MARKERS = (*"os^DvPX*<>phdH8", (4, 1, 0), (3, 1, 0))
PALE = "#B8CFDC"  # what is there but not meant: padding, start and end

_WORDS: WeakKeyDictionary = WeakKeyDictionary()  # by axes


def axes(ax, size: tuple[float, float]):
    """The axes that were given, or new ones on a figure of this size in inches."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=size, layout="constrained")
    return ax


def look_of(n: int) -> dict:
    """The colour and the style of the n-th line."""
    return {"color": COLOURS[n % len(COLOURS)], "linestyle": STYLES[n % len(STYLES)]}


def band(ax, n: int, x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> None:
    """The band around the n-th line."""
    ax.fill_between(x, low, high, color=look_of(n)["color"], alpha=0.15, linewidth=0)


def tidy(ax, *, legend: bool = False, whole_steps: bool = False, **legend_settings):
    """The axes without a frame on top and right; a legend and whole numbers along x where asked."""
    ax.spines[["top", "right"]].set_visible(False)
    if whole_steps:
        ax.xaxis.get_major_locator().set_params(integer=True)
    if legend:
        for text in ax.legend(frameon=False, **legend_settings).get_texts():
            text.set_parse_math(False)
    return ax


def tell(ax, words: str) -> None:
    """Keep the words for what was drawn on these axes; a `$` in a name on them stays as it is."""
    _WORDS[ax] = words
    for text in (ax.title, ax.xaxis.label, ax.yaxis.label):
        text.set_parse_math(False)


def alt_text(figure: Figure | Axes) -> str:
    """What axes, or all axes of a figure, show, in words.

    Of bare matplotlib it says titles, labels, and the range of what has a name.
    """
    members = figure.axes if isinstance(figure.axes, list) else [figure]
    return " ".join(filter(None, map(_words, members)))


def _words(ax) -> str:
    texts = (ax.get_title(), ax.get_xlabel(), ax.get_ylabel())
    title, x, y = (" ".join(text.split()) for text in texts)
    words = _WORDS.get(ax)
    if words:
        return words if title in words else f"{title}: {words}"
    parts = [title, f"{y} against {x}" if x and y else x or y]
    for artist, name in zip(*ax.get_legend_handles_labels(), strict=True):
        parts.append(_entry(name, artist))
    for image in ax.images:
        shape = image.get_array().shape
        parts.append("A picture" if len(shape) == 3 else f"{shape[0]} x {shape[1]} values")
    return " ".join(f"{part.rstrip('.')}." for part in parts if part)


def _entry(name: str, artist) -> str:
    """An entry of a legend: a line, points with intervals, or bars; of others the name."""
    drawn = artist[0] if isinstance(artist, tuple) and len(artist) else artist
    if hasattr(drawn, "get_xydata"):
        return line_in_words(name, *drawn.get_xydata().T)
    values = getattr(artist, "datavalues", None)
    return name if values is None else f"{name}: {np.min(values):.3g} to {np.max(values):.3g}"


def line_in_words(name: str, x: Sequence[float], y: Sequence[float]) -> str:
    """One curve: where it starts and ends, and its highest point; or its one value."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if not len(y):
        return f"{name}: no values."
    if len(y) > 1 and np.ptp(y) == 0:
        return f"{name}: {y[0]:.3g} throughout."
    top = int(y.argmax())
    ends = f"{y[0]:.3g} at {x[0]:g} to {y[-1]:.3g} at {x[-1]:g}"
    return f"{name}: {ends}, highest {y[top]:.3g} at {x[top]:g}."


def pixels(images) -> np.ndarray:
    """The first of (B, 3, H, W) as an array (H, W, 3) in [0, 1]; no number is NonFiniteError."""
    check_finite(images[:1], NO_PICTURE)
    return images[0].detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()


def register() -> None:
    """In IPython, let every figure shown as a PNG from now on carry its `alt_text`.

    With "retina" figures, matplotlib_inline's own metadata take its place.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        # of MIME bundles, as `%matplotlib inline` replaces the formatters of single types
        bundles = shell.display_formatter.mimebundle_formatter
        bundles.for_type_by_name("matplotlib.figure", "Figure", _metadata)


def _metadata(figure) -> tuple[dict, dict]:
    return {}, {"image/png": {"alt": alt_text(figure)}}
