"""The world that ships: scenes, captions, renderer, exact judge, and the trained weights.

from datekit import shapes

scenes = shapes.sample_scenes(8, seed=0)
images = shapes.render(scenes)                               # (8, 3, 64, 64) in [0, 1]
shapes.judge(images, [shapes.caption(s, "attribution", rng) for s in scenes])
"""

from __future__ import annotations

import importlib
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"

_NAMES = {
    "world": ("COLOURS", "HELD_OUT", "KINDS", "RELATIONS", "SHAPES", "Scene", "Thing", "held_out", "place", "sample_scenes"),
    "renderer": ("coverage", "render"),
    "captions": ("FAMILIES", "Statements", "Want", "caption", "families", "parse", "prompts"),
    "negatives": ("garble", "hard_negatives", "twin"),
    "oracle": ("Verdict", "detect", "judge"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_HOME, "WEIGHTS"])


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
