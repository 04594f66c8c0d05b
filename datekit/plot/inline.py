"""Text alternatives for the figures that a notebook shows by itself, bare matplotlib included."""

from __future__ import annotations

import sys


def register() -> None:
    """In IPython, let every figure shown as a PNG from now on carry its `alt_text`.

    Elsewhere nothing happens. With "retina" figures, matplotlib_inline's own metadata take its
    place.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        # of MIME bundles, as `%matplotlib inline` replaces the formatters of single types
        bundles = shell.display_formatter.mimebundle_formatter
        bundles.for_type_by_name("matplotlib.figure", "Figure", _metadata)


def _metadata(figure) -> tuple[dict, dict]:
    from .style import alt_text

    try:
        return {}, {"image/png": {"alt": alt_text(figure)}}
    except ValueError:  # nothing on it
        return {}, {}
