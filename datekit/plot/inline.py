"""Text alternatives for the figures that a notebook shows by itself, those of bare matplotlib included."""

from __future__ import annotations

import sys


def register() -> None:
    """In IPython, from now on every figure shown as a PNG carries its `alt_text`; the PNG stays as it is. Elsewhere nothing happens.

    With "retina" figures matplotlib_inline's own metadata, width and height, take its place.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if (
        shell is not None
    ):  # a formatter of MIME bundles, for `%matplotlib inline` puts its own in the place of those of single types
        shell.display_formatter.mimebundle_formatter.for_type_by_name(
            "matplotlib.figure", "Figure", _metadata
        )


def _metadata(figure) -> tuple[dict, dict]:
    from .style import alt_text

    try:
        return {}, {"image/png": {"alt": alt_text(figure)}}
    except ValueError:  # nothing on it
        return {}, {}
