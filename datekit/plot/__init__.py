"""Static figures: each takes an `ax` or makes one, returns it, and touches no global setting.

`alt_text(ax)` says a figure in words. In a notebook every figure shown inline carries these words
as its text alternative.
"""

from .findings import chain, cosines, diagram, guidance, slopes, tokens
from .runs import compare, curves, filmstrip, reward, tiles
from .style import COLOURS, MARKERS, STYLES, alt_text, register

__all__ = [
    "COLOURS",
    "MARKERS",
    "STYLES",
    "alt_text",
    "chain",
    "compare",
    "cosines",
    "curves",
    "diagram",
]
__all__ += ["filmstrip", "guidance", "reward", "slopes", "tiles", "tokens"]
register()
