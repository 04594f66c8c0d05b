"""Prompts with several concepts: those of Attend-and-Excite, their parts, the shares of these."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor

from datekit.analysis import TokenShares
from datekit.errors import unknown, whole

# fmt: off
ANIMALS = (
    "cat", "dog", "bird", "bear", "lion", "horse",
    "elephant", "monkey", "frog", "turtle", "rabbit", "mouse",
)
OBJECTS = (
    "backpack", "glasses", "crown", "suitcase", "chair", "balloon",
    "bow", "car", "bowl", "bench", "clock", "apple",
)
COLOURS = (
    "red", "orange", "yellow", "green", "blue",
    "purple", "pink", "brown", "gray", "black", "white",
)
# fmt: on
WORN = ("glasses", "crown", "bow")  # an animal comes with these, and without a colour
SETS = ("animals", "animals-objects", "objects")
_BETWEEN = re.compile(r", and |, | and | with | left of | right of | above | below ")


def attend_and_excite(which: str | None = None, seed: int = 0) -> list[str]:
    """The prompts of Attend-and-Excite (arXiv 2301.13826), of one of its `SETS` or all 276.

    "animals": 66 prompts, "a cat and a dog" for each pair of 12 animals. "animals-objects": 144,
    "a cat and a red car" for each animal and each of 12 objects, or "a cat with a crown" where it
    would be worn. "objects": 66, "a red car and a blue bench" for each pair of objects. The article
    is always "a", as there. The colours are drawn with the seed, as theirs were once, so the words
    are theirs and the colours are not. Raises ValueError for another set.
    """
    seed = whole("seed", seed, 0)
    if which is None:
        return [prompt for name in SETS for prompt in attend_and_excite(name, seed)]
    if which not in SETS:
        raise unknown("set of prompts", which, SETS)
    rng = np.random.default_rng([seed, SETS.index(which)])
    if which == "animals":
        return [f"a {one} and a {other}" for one, other in combinations(ANIMALS, 2)]
    if which == "objects":
        pairs = combinations(OBJECTS, 2)
        return [f"{_coloured(one, rng)} and {_coloured(other, rng)}" for one, other in pairs]
    prompts = []
    for animal, thing in product(ANIMALS, OBJECTS):
        second = f"with a {thing}" if thing in WORN else f"and {_coloured(thing, rng)}"
        prompts.append(f"a {animal} {second}")
    return prompts


def _coloured(thing: str, rng: np.random.Generator) -> str:
    return f"a {COLOURS[rng.integers(len(COLOURS))]} {thing}"


def parts(prompt: str) -> list[str]:
    """The concepts that a prompt names, for `rewards.PerConcept(reward, parts)`.

    They are what stands between its commas, "and", "with" and the relations of the shapes world:
    "a red circle left of a blue square" has "a red circle" and "a blue square". How the two lie to
    each other is no part.
    """
    return [part.strip() for part in _BETWEEN.split(prompt) if part.strip()]


def without(prompt: str) -> list[str]:
    """The prompt without each of its parts in turn, the others joined by "and".

    `rewards.PerConcept(reward, parts, without=without)` is then what each concept adds. Of a
    prompt with a single part nothing is left, which is "".
    """
    named = parts(prompt)
    return [" and ".join(named[:k] + named[k + 1 :]) for k in range(len(named))]


def concept_shares(
    shares: TokenShares, split: Callable[[str], Sequence[str]] = parts
) -> tuple[Tensor, ...]:
    """Each concept's share of the gradient (`analysis.token_shares`), B tensors (K_b,).

    split: gives the parts of a prompt. A part is a run of tokens that spell it, and every place
    where it stands counts, as some families read a prompt twice. Raises ValueError for a part that
    no tokens spell.
    """
    by_sample = []
    for prompt, tokens, row in zip(shares.prompts, shares.tokens, shares.share, strict=True):
        sums = [row[_places(tokens, part, prompt)].sum() for part in split(prompt)]
        by_sample.append(torch.stack(sums))
    return tuple(by_sample)


def _places(tokens: Sequence[str], part: str, prompt: str) -> list[int]:
    """The positions of all runs of tokens that spell a part, whatever its case and spaces."""
    wanted, places = "".join(part.lower().split()), []
    for start in range(len(tokens)):
        spelt, end = "", start
        while end < len(tokens) and len(spelt) < len(wanted) and not tokens[end].startswith("<"):
            spelt += tokens[end].lower()
            end += 1
        if spelt == wanted:
            places += range(start, end)
    if not places:
        raise ValueError(f"no tokens of {prompt!r} spell its part {part!r}; was the prompt cut?")
    return places
