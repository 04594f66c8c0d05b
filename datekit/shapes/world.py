"""The shapes world: coloured shapes on a light ground, and the pairs that training never sees.

Lengths are fractions of the image side, so that a scene has no resolution: x runs right, y runs
down.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

COLOURS = {
    "red": (0.88, 0.14, 0.16),
    "green": (0.13, 0.66, 0.25),
    "blue": (0.13, 0.30, 0.88),
    "yellow": (0.97, 0.80, 0.08),
    "purple": (0.58, 0.18, 0.72),
    "cyan": (0.10, 0.76, 0.84),
}
SHAPES = ("circle", "square", "triangle", "star")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

Kind = tuple[str, str]  # (colour, shape)
KINDS: tuple[Kind, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)

# the farthest point of a shape, in units of its size
REACH = {"circle": 1.0, "square": 1.25, "triangle": 1.35, "star": 1.4}
SIZES = {1: (0.12, 0.17), 2: (0.12, 0.16), 3: (0.095, 0.12)}  # by number of things
MARGIN = 0.03  # free space at the border
GAP = 0.05  # free space between two things
CLEARANCE = 0.1  # by how much the dominant axis of a pair exceeds the other


@dataclass(frozen=True)
class Thing:
    """A coloured shape with its centre (x, y) and its size, as fractions of the image side."""

    colour: str
    shape: str
    x: float
    y: float
    size: float

    @property
    def kind(self) -> Kind:
        """(colour, shape)."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """Things that do not overlap, on a neutral ground of the given tone in [0, 1]."""

    things: tuple[Thing, ...]
    background: float = 0.9


def relation(a: Thing, b: Thing) -> str:
    """How `a` lies to `b`: the sign of the centre difference along its dominant axis."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def held_out(a: Kind, b: Kind) -> bool:
    """Whether training never shows `a` and `b` together; about one unordered pair in seven."""
    # a rule and no drawn list: it depends on no library's random numbers, and treats all alike
    return a != b and (KINDS.index(a) + KINDS.index(b)) % 7 == 0


HELD_OUT = tuple(pair for pair in combinations(KINDS, 2) if held_out(*pair))
SEEN = tuple(pair for pair in combinations(KINDS, 2) if not held_out(*pair))


def place(kinds: tuple[Kind, ...], rng: np.random.Generator, wanted: str | None = None) -> Scene:
    """A scene of one to three `kinds`; wanted: how the first lies to the second."""
    low, high = SIZES[len(kinds)]
    reach = np.array([REACH[shape] for _, shape in kinds])
    while True:
        sizes = rng.uniform(low, high, len(kinds))
        border = (reach * sizes + MARGIN)[:, None]
        centres = rng.uniform(border, 1 - border, (len(kinds), 2))
        if not apart(centres, reach * sizes, strict=len(kinds) == 2):
            continue
        places = zip(kinds, centres.tolist(), sizes.tolist(), strict=True)
        things = tuple(Thing(*kind, *centre, size) for kind, centre, size in places)
        if wanted is None or relation(*things[:2]) == wanted:
            return Scene(things, float(rng.uniform(0.75, 1.0)))


def apart(centres: np.ndarray, radii: np.ndarray, strict: bool) -> bool:
    """Whether no two things come close; `strict` also asks for a plain dominant axis."""
    for i, j in combinations(range(len(radii)), 2):
        dx, dy = np.abs(centres[i] - centres[j])
        if np.hypot(dx, dy) < radii[i] + radii[j] + GAP or (strict and abs(dx - dy) < CLEARANCE):
            return False
    return True


def sample_kinds(rng: np.random.Generator) -> tuple[Kind, ...]:
    """What a training scene holds: one to three things, never with a held-out pair among them."""
    sort = rng.choice(4, p=(0.14, 0.62, 0.14, 0.10))
    if sort == 0:
        return (KINDS[rng.integers(len(KINDS))],)
    if sort == 1:
        pair = SEEN[rng.integers(len(SEEN))]
        return pair if rng.random() < 0.5 else pair[::-1]
    if sort == 2:
        return (KINDS[rng.integers(len(KINDS))],) * int(rng.integers(2, 4))
    while True:
        kinds = tuple(KINDS[k] for k in rng.choice(len(KINDS), 3, replace=False))
        if not any(held_out(*pair) for pair in combinations(kinds, 2)):
            return kinds


def sample_scenes(n: int, seed: int, split: str = "train") -> list[Scene]:
    """n scenes: of the training distribution ("train"), or one held-out pair each ("heldout")."""
    if split not in ("train", "heldout"):
        raise ValueError(f'split is "train" or "heldout", not {split!r}')
    rng = np.random.default_rng(seed)
    if split == "train":
        return [place(sample_kinds(rng), rng) for _ in range(n)]
    return [place(HELD_OUT[rng.integers(len(HELD_OUT))], rng) for _ in range(n)]
