"""What training sees beside the truth: twins of scenes, captions of careless annotators, and
captions that are nearly right, but false of a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from datekit.shapes.captions import Statements, Want, parse
from datekit.shapes.world import COLOURS, OPPOSITE, RELATIONS, SHAPES, Scene, Thing, held_out

GARBLING = {  # of the captions in these stages of the recipe, as `garble` takes it
    "noisy": {"word": 0.25},
    "noisier": {"word": 0.5, "relation": 0.45, "unseen": 0.02},
}


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


def garble(
    caption: str,
    rng: np.random.Generator,
    *,
    word: float = 0.25,
    swap: float = 0.0,
    relation: float = 0.0,
    unseen: float = 0.0,
) -> str:
    """The caption as a careless annotator writes it.

    Each colour and shape is redrawn with probability `word`, two things exchange their colours with
    probability `swap`, the relation is redrawn with probability `relation`, and a lone thing gets a
    companion that is not there with probability `unseen`. The caption may then name one thing
    twice, outside the grammar.
    """
    claims = parse(caption)

    def happens(chance: float) -> bool:
        return chance > 0 and rng.random() < chance

    def redraw(value, options, chance):
        return _any(options, rng) if value and happens(chance) else value

    wants = tuple(
        replace(
            want,
            colour=redraw(want.colour, tuple(COLOURS), word),
            shape=redraw(want.shape, SHAPES, word),
        )
        for want in claims.wants
    )
    if len(wants) == 2 and happens(swap):
        first, second = wants
        wants = replace(first, colour=second.colour), replace(second, colour=first.colour)
    place = redraw(claims.relation, RELATIONS, relation)
    if len(wants) == 1 and wants[0].count == 1 and happens(unseen):
        companion = Want(_any(SHAPES, rng), _any(tuple(COLOURS), rng))
        wants, place = (*wants, companion), _any(RELATIONS, rng)
    return str(Statements(wants, place))


def _any(options: Sequence, rng: np.random.Generator):
    return options[rng.integers(len(options))]


def _other(options: Sequence, current, rng: np.random.Generator):
    return _any([option for option in options if option != current], rng)


def _one_word(claims: Statements, rng: np.random.Generator) -> Statements:
    """One colour, shape or number replaced."""
    wants = list(claims.wants)
    i = rng.integers(len(wants))
    fields = ["shape"] + ["colour"] * (wants[i].colour is not None) + ["count"] * (len(wants) == 1)
    field = fields[rng.integers(len(fields))]
    numbers = (1, 2, 3) if wants[i].colour else (1,)
    options = {"shape": SHAPES, "colour": tuple(COLOURS), "count": numbers}[field]
    if len(options) > 1:
        wants[i] = replace(wants[i], **{field: _other(options, getattr(wants[i], field), rng)})
    return replace(claims, wants=tuple(wants))


def _swapped(claims: Statements, rng: np.random.Generator) -> Statements:
    """The colours, or the places, of two things exchanged."""
    if len(claims.wants) < 2:
        return _one_word(claims, rng)
    i, j = rng.choice(len(claims.wants), 2, replace=False)
    wants = list(claims.wants)
    if claims.relation and rng.random() < 0.5:
        return replace(claims, wants=(wants[1], wants[0]))
    one, other = wants[i], wants[j]
    wants[i] = replace(one, colour=other.colour)
    wants[j] = replace(other, colour=one.colour)
    return replace(claims, wants=tuple(wants))


def _moved(claims: Statements, rng: np.random.Generator) -> Statements:
    """Another relation, half of the time the opposite one."""
    if not claims.relation:
        return _one_word(claims, rng)
    if rng.random() < 0.5:
        return replace(claims, relation=OPPOSITE[claims.relation])
    return replace(claims, relation=_other(RELATIONS, claims.relation, rng))


def _more_or_fewer(claims: Statements, rng: np.random.Generator) -> Statements:
    """One thing left out, or one more."""
    if len(claims.wants) > 1 and (len(claims.wants) == 3 or rng.random() < 0.7):
        left_out = rng.integers(len(claims.wants))
        return Statements(tuple(want for i, want in enumerate(claims.wants) if i != left_out))
    colour = claims.wants[0].colour and tuple(COLOURS)[rng.integers(len(COLOURS))]
    return Statements((*claims.wants, Want(SHAPES[rng.integers(len(SHAPES))], colour)))


EDITS = (_one_word, _swapped, _swapped, _moved, _moved, _more_or_fewer)  # the hard ones twice


def hard_negatives(
    caption: str, things: Sequence[Thing], n: int, rng: np.random.Generator
) -> list[str]:
    """n captions of the grammar, an edit away from `caption`, false of `things`.

    They are distinct where there are enough.
    """
    claims = parse(caption)
    texts: list[str] = []
    for attempt in range(1000):
        edited = EDITS[rng.integers(len(EDITS))](claims, rng)
        text = str(edited)
        new = text not in texts or attempt > 20 * n
        coloured = len(edited.wants) < 3 or all(want.colour for want in edited.wants)
        if new and edited.plain and coloured and not edited.hold(things):
            texts.append(text)
        if len(texts) == n:
            return texts
    raise ValueError(f"only {len(texts)} of {n} false neighbours of {caption!r} came up")
