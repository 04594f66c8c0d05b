"""Static figures: each takes an `ax` or makes one, returns it, and touches no global setting.

`alt_text(ax)` says a figure in words. In a notebook every figure shown inline carries these words
as its text alternative.
"""

from __future__ import annotations

from ..lazy import attach
from .style import register

_NAMES = {
    "style": ("COLOURS", "MARKERS", "STYLES", "alt_text"),
    "runs": ("compare", "curves", "filmstrip", "reward", "tiles"),
    "findings": ("chain", "cosines", "guidance", "slopes", "tokens"),
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
register()
