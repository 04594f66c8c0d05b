"""What the figures share: colours, axes, the words that stand for a figure, pictures as arrays."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import numpy as np

# Okabe and Ito's palette: told apart with any colour vision, and in grey print by the line styles and markers beside it
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
MARKERS = (
    "o",
    "s",
    "^",
    "D",
    "v",
    "P",
    "X",
    "*",
    "<",
    ">",
    "p",
    "h",
    "d",
    "H",
    "8",
    (4, 1, 0),
    (3, 1, 0),
)

_TOLD: WeakKeyDictionary = WeakKeyDictionary()


def axes(ax, size: tuple[float, float]):
    """The axes that were given, or new ones on a figure of this size in inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def tidy(ax, *, legend: bool = False, whole_steps: bool = False, **legend_settings):
    """The common look: no frame on top and right, and where asked a plain legend and whole numbers along x. Returns the axes."""
    ax.spines[["top", "right"]].set_visible(False)
    if whole_steps:
        ax.xaxis.get_major_locator().set_params(integer=True)
    if legend:
        ax.legend(frameon=False, **legend_settings)
    return ax


def tell(ax, text: str) -> None:
    """Keep the words that stand for what was drawn on these axes."""
    _TOLD[ax] = text


def alt_text(figure) -> str:
    """What axes, or all axes of a figure, show, in words; of bare matplotlib: titles, labels, and the range of what has a name.

    Raises ValueError where there is nothing to say.
    """
    members = figure.axes if isinstance(figure.axes, list) else [figure]
    words = " ".join(filter(None, map(_words, members)))
    if not words:
        raise ValueError("nothing that has a name was drawn here, so there are no words for it")
    return words


def _words(ax) -> str:
    told, (title, x, y) = (
        _TOLD.get(ax),
        (" ".join(text.split()) for text in (ax.get_title(), ax.get_xlabel(), ax.get_ylabel())),
    )
    if told:
        return told if title in told else f"{title}: {told}"
    named = [
        _entry(name, artist) for artist, name in zip(*ax.get_legend_handles_labels(), strict=True)
    ]
    parts = (
        title,
        f"{y} against {x}" if x and y else x or y,
        *named,
        *(_image(image.get_array()) for image in ax.images),
    )
    return " ".join(f"{part.rstrip('.')}." for part in parts if part)


def _entry(name: str, artist) -> str:
    """An entry of a legend: a line, points with intervals, or bars; of others the name."""
    line = artist[0] if isinstance(artist, tuple) and len(artist) else artist
    if hasattr(line, "get_xydata"):
        return line_in_words(name, *line.get_xydata().T)
    values = getattr(artist, "datavalues", None)
    return name if values is None else f"{name}: {np.min(values):.3g} to {np.max(values):.3g}"


def _image(values) -> str:
    height, width = values.shape[:2]
    return (
        "A picture"
        if values.ndim == 3
        else f"{height} x {width} values from {values.min():.3g} to {values.max():.3g}"
    )


def picture(figure, *, dpi: int = 100):
    """Axes or figure as an `IPython.display.Image` that carries `alt_text`; for the end of a notebook's cell."""
    from IPython.display import Image
    from matplotlib import pyplot as plt

    drawn, buffer = figure.figure, io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=dpi)
    plt.close(drawn)  # so that the notebook does not show it once more
    return Image(buffer.getvalue(), alt=alt_text(drawn))


def line_in_words(name: str, x: Iterable[float], y: Iterable[float]) -> str:
    """One curve: where it starts and ends, and its highest point; or its one value."""
    x, y = np.asarray(list(x), float), np.asarray(list(y), float)
    known = np.isfinite(y)
    if not known.any():
        return f"{name}: no values."
    x, y = x[known], y[known]
    if len(y) > 1 and np.ptp(y) == 0:
        return f"{name}: {y[0]:.3g} throughout."
    top = int(y.argmax())
    return f"{name}: {y[0]:.3g} at {x[0]:g} to {y[-1]:.3g} at {x[-1]:g}, highest {y[top]:.3g} at {x[top]:g}."


def pixels(images) -> np.ndarray:
    """The first of (B, 3, H, W) as an array (H, W, 3) in [0, 1]."""
    return images[0].detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()


def grown(size, like) -> np.ndarray:
    """A map (1, 1, h, w), scaled to at most 1 and enlarged to the size of pictures (..., H, W), as an array (H, W, 3)."""
    import torch

    return pixels(
        torch.nn.functional.interpolate(
            size / size.max().clamp_min(1e-30), like.shape[-2:], mode="nearest"
        ).expand(-1, 3, -1, -1)
    )


def enlarged(change) -> np.ndarray:
    """A change of a picture, (1, 3, H, W), with its largest entry made 1/2 and grey for none; as an array (H, W, 3)."""
    return pixels(0.5 + 0.5 * change / change.abs().max().clamp_min(1e-30))


def wrapped(text: str, width: int = 17) -> str:
    """Text on lines of at most this many letters."""
    return "\n".join(textwrap.wrap(text, width))
