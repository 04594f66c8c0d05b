"""What training sees beside the truth: twins of scenes, and the captions of careless annotators."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np

from datekit.shapes.captions import Statements, parse
from datekit.shapes.world import COLOURS, SHAPES, Scene, held_out


def twin(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with two things or their colours exchanged, or mirrored.

    The words stay the same, and the meaning changes.

    Scenes of one kind are mirrored, and so are those where an exchange would show a held-out pair
    or one kind twice.
    """
    things = list(scene.things)
    edit = rng.integers(4) if len({thing.kind for thing in things}) > 1 else 3
    if edit < 3:
        i, j = rng.choice(len(things), 2, replace=False)
        a, b = things[i], things[j]
        things[i] = replace(a, colour=b.colour, shape=b.shape if edit else a.shape)
        things[j] = replace(b, colour=a.colour, shape=a.shape if edit else b.shape)
    if edit == 3 or any(
        held_out(a.kind, b.kind) or a.kind == b.kind for a, b in combinations(things, 2)
    ):
        horizontal = rng.random() < 0.5
        things = [
            replace(t, x=1 - t.x) if horizontal else replace(t, y=1 - t.y) for t in scene.things
        ]
    return replace(scene, things=tuple(things))


def garble(caption: str, rng: np.random.Generator, *, word: float = 0.25) -> str:
    """The caption as a careless annotator writes it.

    Each colour and shape is redrawn with probability `word`. It may then name one thing twice,
    outside the grammar.
    """
    claims = parse(caption)

    def redraw(value, options):
        return options[rng.integers(len(options))] if value and rng.random() < word else value

    wants = tuple(
        replace(want, colour=redraw(want.colour, tuple(COLOURS)), shape=redraw(want.shape, SHAPES))
        for want in claims.wants
    )
    return str(Statements(wants, claims.relation))
