"""The world that ships: scenes, captions, renderer, exact judge, and the trained weights.

from datekit import shapes

scenes = shapes.sample_scenes(8, seed=0)
images = shapes.render(scenes)                               # (8, 3, 64, 64) in [0, 1]
shapes.judge(images, [shapes.caption(s, "attribution", rng) for s in scenes])
"""

from __future__ import annotations

from pathlib import Path

from ..lazy import attach

WEIGHTS = Path(__file__).parent / "weights"

_NAMES = {
    "world": (
        *("COLOURS", "HELD_OUT", "KINDS", "RELATIONS", "SHAPES"),
        *("Scene", "Thing", "held_out", "place", "sample_scenes"),
    ),
    "renderer": ("coverage", "render"),
    "captions": ("FAMILIES", "Statements", "Want", "caption", "families", "parse", "prompts"),
    "oracle": ("Verdict", "detect", "judge"),
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES, "WEIGHTS")
