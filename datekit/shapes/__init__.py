"""The world that ships: scenes, captions, renderer, exact judge, and the trained weights.

from datekit import shapes

scenes = shapes.sample_scenes(8, seed=0)
images = shapes.render(scenes)                               # (8, 3, 64, 64) in [0, 1]
shapes.judge(images, [shapes.caption(s, "attribution", rng) for s in scenes])
"""

from pathlib import Path

from .captions import FAMILIES, Statements, Want, caption, families, parse, prompts
from .oracle import Verdict, detect, judge
from .renderer import coverage, render
from .world import (
    COLOURS,
    HELD_OUT,
    KINDS,
    RELATIONS,
    SHAPES,
    Scene,
    Thing,
    held_out,
    place,
    sample_scenes,
)

WEIGHTS = Path(__file__).parent / "weights"

__all__ = ["COLOURS", "FAMILIES", "HELD_OUT", "KINDS", "RELATIONS", "SHAPES", "WEIGHTS", "Scene"]
__all__ += ["Statements", "Thing", "Verdict", "Want", "caption", "coverage", "detect", "families"]
__all__ += ["held_out", "judge", "parse", "place", "prompts", "render", "sample_scenes"]
