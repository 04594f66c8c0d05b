"""The caption grammar, both ways: captions of a scene, and what a caption claims."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product

import numpy as np

from .world import COLOURS, HELD_OUT, KINDS, RELATIONS, SEEN, SHAPES, Kind, Scene, Thing, held_out
from .world import relation as relation_of

FAMILIES = ("single", "colours", "two", "attribution", "position", "counting", "three")
NUMBERS = {"a": 1, "two": 2, "three": 3}
PLURALS = tuple(shape + "s" for shape in SHAPES)
PLACES = ("left", "right", "above", "below", "of")
WORDS = (*NUMBERS, *COLOURS, *SHAPES, *PLURALS, *PLACES, "and", ",")
GRAMMAR = (
    '"a circle", "a red circle", "a circle and a square", "a red circle and a blue square", '
    '"a red circle left of a blue square", "two red circles", '
    '"a red circle, a blue square and a green star"; '
    f"colours: {', '.join(COLOURS)}; shapes: {', '.join(SHAPES)}; relations: {', '.join(RELATIONS)}"
)
_PHRASE = re.compile(rf"(a|two|three) (?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)})s?")


@dataclass(frozen=True)
class Want:
    """`count` things of one shape and, unless None, one colour."""

    shape: str
    colour: str | None = None
    count: int = 1

    def matches(self, thing: Thing) -> bool:
        """Whether a thing is of this shape and colour."""
        return thing.shape == self.shape and self.colour in (None, thing.colour)

    def __str__(self) -> str:
        number = next(word for word, count in NUMBERS.items() if count == self.count)
        words = (number, self.colour, self.shape + "s" * (self.count > 1))
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Statements:
    """What a caption claims: things, how the first lies to the second, and nothing else."""

    wants: tuple[Want, ...]
    relation: str | None = None

    @property
    def total(self) -> int:
        """Number of things in all."""
        return sum(want.count for want in self.wants)

    @property
    def plain(self) -> bool:
        """Whether nothing is named twice, and only a thing that stands alone is counted."""
        counted = any(want.count > 1 for want in self.wants)
        return len(set(self.wants)) == len(self.wants) and (len(self.wants) == 1 or not counted)

    def check(self, things: Sequence[Thing]) -> list[tuple[str, bool]]:
        """Each claim of the caption, in order, with its truth for these things; the total last."""
        claims, matches = [], []
        for want in self.wants:
            hits = [thing for thing in things if want.matches(thing)]
            # "a red circle" is there when one is; "two red circles" counts
            holds = len(hits) >= 1 if want.count == 1 else len(hits) == want.count
            claims.append((str(want), holds))
            matches.append(hits)
        if self.relation:
            holds = any(relation_of(a, b) == self.relation for a, b in product(*matches))
            claims.append((self.relation, holds))
        claims.append((f"{self.total} object{'s' * (self.total > 1)}", len(things) == self.total))
        return claims

    def hold(self, things: Sequence[Thing]) -> bool:
        """Whether every claim is true of these things."""
        return len(things) == self.total and all(truth for _, truth in self.check(things))

    def __str__(self) -> str:
        phrases = [str(want) for want in self.wants]
        if self.relation:
            return f"{phrases[0]} {self.relation} {phrases[1]}"
        return " and ".join(part for part in (", ".join(phrases[:-1]), phrases[-1]) if part)


def parse(prompt: str) -> Statements:
    """What a prompt of the grammar claims, whatever its case and spacing.

    Raises ValueError, with what the grammar allows, for any other prompt.
    """
    text = re.sub(r"\s+", " ", prompt.lower()).replace(" ,", ",").strip(" .")
    relation = next((name for name in RELATIONS if f" {name} " in text), None)
    parts = text.split(f" {relation} ") if relation else re.split(r", and |, | and ", text)
    matches = [match for part in parts if (match := _PHRASE.fullmatch(part))]
    claims = Statements(tuple(Want(m[3], m[2], NUMBERS[m[1]]) for m in matches), relation)
    said = [str(want) for want in claims.wants]  # other words than the parts, such as "two circle"
    length = len(said) == 2 if relation else len(said) <= 3
    if said != parts or not (length and claims.plain):
        raise ValueError(f"cannot read {prompt!r}; the grammar has {GRAMMAR}")
    return claims


def families(scene: Scene) -> tuple[str, ...]:
    """The families that can describe a scene."""
    kinds = [thing.kind for thing in scene.things]
    if len(kinds) == 1:
        return ("single", "colours")
    if len(set(kinds)) == 1:
        return ("counting",)
    if len(kinds) == 3:
        return ("three",)
    different = kinds[0][1] != kinds[1][1]
    return ("two", "attribution", "position") if different else ("attribution", "position")


def caption(scene: Scene, family: str, rng: np.random.Generator, reading: float = 0.5) -> str:
    """A true caption of the family, with the things named in random order.

    Raises ValueError where the family cannot describe the scene. `reading` is the share of position
    captions that name the left or the upper thing first.
    """
    if family not in families(scene):
        raise ValueError(f"{family!r} cannot describe this scene; {families(scene)} can")
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    if family == "counting":
        return str(Statements((Want(things[0].shape, things[0].colour, len(things)),)))
    bare = family in ("single", "two")
    if family == "position" and (relation_of(*things) in ("left of", "above")) != (
        rng.random() < reading
    ):
        things.reverse()
    wants = tuple(Want(thing.shape, None if bare else thing.colour) for thing in things)
    return str(Statements(wants, relation_of(*things) if family == "position" else None))


def _groups(family: str, split: str) -> list[list[str]]:
    """All prompts of a family, those about the same things in one group."""
    groups: list[list[Statements]] = []
    if family in ("position", "attribution"):
        for pair in HELD_OUT if split == "heldout" else SEEN:
            orders = [_wants(pair), _wants(pair[::-1])]
            names = RELATIONS if family == "position" else (None,)
            groups.append([Statements(*each) for each in product(orders, names)])
    elif family == "three":
        for kinds in combinations(KINDS, 3):
            unseen = any(held_out(*pair) for pair in combinations(kinds, 2))
            if unseen == (split == "heldout"):
                groups.append([Statements(_wants(kinds))])
    elif family == "two":
        pairs = combinations(map(Want, SHAPES), 2)
        groups = [[Statements((a, b)), Statements((b, a))] for a, b in pairs]
    elif family == "single":
        groups = [[Statements((Want(shape),))] for shape in SHAPES]
    else:
        counts = (1,) if family == "colours" else (2, 3)
        wants = [Want(shape, colour, n) for (colour, shape), n in product(KINDS, counts)]
        groups = [[Statements((want,))] for want in wants]
    return [list(map(str, group)) for group in groups]


def _wants(kinds: Sequence[Kind]) -> tuple[Want, ...]:
    return tuple(Want(shape, colour) for colour, shape in kinds)


def prompts(
    split: str = "heldout",
    n: int | None = None,
    seed: int = 0,
    family: str = "position",
    part: str | None = None,
) -> list[str]:
    """n prompts of a family in random order, over held-out or seen pairs.

    All of them by default; beyond that they repeat. part "tune" takes every fourth pair and "test"
    the others, so that what is tuned on one is tested on the other. Families without two coloured
    things have nothing held out: their prompts are the same for both splits.
    """
    known = {"split": ("heldout", "train"), "family": FAMILIES, "part": (None, "tune", "test")}
    for name, value in {"split": split, "family": family, "part": part}.items():
        if value not in known[name]:
            raise ValueError(f"{name} is one of {known[name]}, not {value!r}")
    groups = _groups(family, split)
    if part:
        groups = [group for i, group in enumerate(groups) if (i % 4 == 0) == (part == "tune")]
    texts = list(chain.from_iterable(groups))
    rng = np.random.default_rng(seed)
    rounds = 1 if n is None else -(-n // len(texts))
    order = np.concatenate([rng.permutation(len(texts)) for _ in range(rounds)])
    return [texts[i] for i in order[:n]]
