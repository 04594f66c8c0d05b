"""Prompts with several concepts: the sets of Attend-and-Excite for real models, and the parts of a prompt."""

from __future__ import annotations

import re
from itertools import combinations, product

import numpy as np

from ..errors import unknown, whole

ANIMALS = (
    "cat",
    "dog",
    "bird",
    "bear",
    "lion",
    "horse",
    "elephant",
    "monkey",
    "frog",
    "turtle",
    "rabbit",
    "mouse",
)
OBJECTS = (
    "backpack",
    "glasses",
    "crown",
    "suitcase",
    "chair",
    "balloon",
    "bow",
    "car",
    "bowl",
    "bench",
    "clock",
    "apple",
)
COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "gray",
    "black",
    "white",
)
WORN = ("glasses", "crown", "bow")  # an animal comes with these, and without a colour
SETS = ("animals", "animals-objects", "objects")
_BETWEEN = re.compile(r", and |, | and | with | left of | right of | above | below ")


def attend_and_excite(which: str | None = None, seed: int = 0) -> list[str]:
    """The prompts of Attend-and-Excite (arXiv 2301.13826): 66 of "animals", 144 of "animals-objects", 66 of "objects", or all 276.

    "a cat and a dog" for each pair of 12 animals; "a cat and a red car" for each animal and each of 12 objects, or "a cat with a crown"
    where it would be worn; "a red car and a blue bench" for each pair of objects. The article is always "a", as there. Colours, 11 of them,
    are drawn with the seed, as theirs were once; so the words are theirs and the colours are not. Raises ValueError for another set,
    and for a seed that is no whole number from 0 up.
    """
    seed = whole("seed", seed, 0)
    if which is None:
        return [prompt for name in SETS for prompt in attend_and_excite(name, seed)]
    if which not in SETS:
        raise unknown("set of prompts", which, SETS)
    rng = np.random.default_rng([seed, SETS.index(which)])
    coloured = lambda thing: f"a {COLOURS[rng.integers(len(COLOURS))]} {thing}"
    if which == "animals":
        return [f"a {one} and a {other}" for one, other in combinations(ANIMALS, 2)]
    if which == "objects":
        return [f"{coloured(one)} and {coloured(other)}" for one, other in combinations(OBJECTS, 2)]
    return [
        f"a {animal} " + (f"with a {thing}" if thing in WORN else f"and {coloured(thing)}")
        for animal, thing in product(ANIMALS, OBJECTS)
    ]


def parts(prompt: str) -> list[str]:
    """The concepts that a prompt names: what stands between its commas, "and", "with" and relations of the shapes world.

    "a red circle left of a blue square" has "a red circle" and "a blue square"; how they lie to each other is no part. For
    `rewards.per_concept(reward, parts)`.
    """
    return [part for part in (part.strip() for part in _BETWEEN.split(prompt)) if part]


def without(prompt: str) -> list[str]:
    """The prompt without each of its parts in turn, the others joined by "and"; of a single part nothing is left, "".

    For `rewards.per_concept(reward, parts, without=without)`: what each concept adds.
    """
    named = parts(prompt)
    return [" and ".join(named[:k] + named[k + 1 :]) for k in range(len(named))]
