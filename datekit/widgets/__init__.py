"""The explorer: `dk.explore(backbone, reward)`; `Controller` is all of it but the looks."""

from __future__ import annotations

from ..lazy import attach

_NAMES = {
    "controller": ("Controller",),
    "settings": ("Settings",),
    "entry": ("explore",),
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
