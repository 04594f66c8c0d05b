"""Edits with known answers: a scene, what to change in it, and the scene that comes of it.

Every edit changes one thing and nothing else, so that the ideal result, and the pixels that have to
stay, are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from datekit.shapes.captions import Statements, Want
from datekit.shapes.renderer import SIZE, render
from datekit.shapes.world import (
    COLOURS,
    HELD_OUT,
    MARGIN,
    REACH,
    SEEN,
    SHAPES,
    Scene,
    Thing,
    apart,
    held_out,
    place,
    relation,
)

EDITS = ("recolour", "reshape", "move", "add", "remove")
SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Edit:
    """One change of one thing.

    kind: one of `EDITS`; before, after: the scenes; instruction: the change in words. `source` and
    `target` are captions of the two scenes: both things with how the first lies to the second, or
    the only one.
    """

    kind: str
    before: Scene
    after: Scene
    instruction: str

    @property
    def source(self) -> str:
        """The caption of the scene before."""
        return describe(self.before)

    @property
    def target(self) -> str:
        """The caption of the scene after."""
        return describe(self.after)


def describe(scene: Scene) -> str:
    """The caption of one thing or of two, in the scene's own order."""
    wants = tuple(Want(thing.shape, thing.colour) for thing in scene.things)
    return str(Statements(wants, relation(*scene.things) if len(wants) == 2 else None))


def pictures(
    edits: Sequence[Edit], resolution: int = SIZE
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sources and ideal results, (B, 3, H, W) in [0, 1], and the pixels that have to change.

    The last are bool, (B, H, W).
    """
    before, after = (
        render(scenes, resolution)
        for scenes in ([e.before for e in edits], [e.after for e in edits])
    )
    return before, after, (before != after).any(1)


def sample_edits(
    n: int, seed: int, kinds: Sequence[str] = EDITS, split: str = "train"
) -> list[Edit]:
    """n edits, the kinds in turn.

    They are of pairs of things that training shows ("train"), or lead to one that it never shows
    ("heldout"). For "remove" it is the pair before that counts. Raises ValueError for an unknown
    kind or split.
    """
    for name, values, known in (("kinds", kinds, EDITS), ("split", (split,), SPLITS)):
        if not values or set(values) - set(known):
            raise ValueError(f"{name} holds some of {known}, not {values!r}")
    rng = np.random.default_rng(seed)
    return [_draw(_MAKERS[kinds[k % len(kinds)]], rng, split) for k in range(n)]


def _draw(make: Callable, rng: np.random.Generator, split: str) -> Edit:
    pairs = (
        HELD_OUT if split == "heldout" and make is not _recolour and make is not _reshape else SEEN
    )
    while True:
        pair = pairs[rng.integers(len(pairs))]
        edit = make(place(pair if rng.random() < 0.5 else pair[::-1], rng), rng)
        if edit is not None and _fits(edit, split):
            return edit


def _fits(edit: Edit, split: str) -> bool:
    """Whether both scenes are scenes of the world, and their pairs of the split."""
    shown = edit.before if edit.kind == "remove" else edit.after
    if split == "heldout":
        right = _is_held_out(shown)
    else:
        right = not (_is_held_out(edit.before) or _is_held_out(edit.after))
    return right and _stands(edit.before) and _stands(edit.after)


def _is_held_out(scene: Scene) -> bool:
    return len(scene.things) == 2 and held_out(*(thing.kind for thing in scene.things))


def _stands(scene: Scene) -> bool:
    """Whether everything lies within the border, apart, and, of two things, plainly to one side."""
    radii = np.array([REACH[thing.shape] * thing.size for thing in scene.things])
    centres = np.array([(thing.x, thing.y) for thing in scene.things])
    border = radii[:, None] + MARGIN
    different = len({thing.kind for thing in scene.things}) == len(scene.things)
    return (
        different
        and bool(((border <= centres) & (centres <= 1 - border)).all())
        and apart(centres, radii, strict=len(radii) == 2)
    )


def _change(
    scene: Scene, rng: np.random.Generator, **alter: Callable[[Thing], object]
) -> tuple[Scene, Thing, Thing]:
    """One of two things changed: the scene after, the thing before and after."""
    which = int(rng.integers(2))
    old = scene.things[which]
    new = replace(old, **{name: f(old) for name, f in alter.items()})
    things = list(scene.things)
    things[which] = new
    return replace(scene, things=tuple(things)), old, new


def _recolour(scene: Scene, rng: np.random.Generator) -> Edit:
    after, old, new = _change(
        scene, rng, colour=lambda thing: str(rng.choice([c for c in COLOURS if c != thing.colour]))
    )
    return Edit("recolour", scene, after, f"make the {old.colour} {old.shape} {new.colour}")


def _reshape(scene: Scene, rng: np.random.Generator) -> Edit:
    after, old, new = _change(
        scene, rng, shape=lambda thing: str(rng.choice([s for s in SHAPES if s != thing.shape]))
    )
    return Edit("reshape", scene, after, f"turn the {old.colour} {old.shape} into a {new.shape}")


def _move(scene: Scene, rng: np.random.Generator) -> Edit | None:
    """The first thing goes to another side of the second, to a random place where it fits."""
    a, b = scene.things
    for x, y in rng.uniform(0, 1, (64, 2)):
        moved = replace(a, x=float(x), y=float(y))
        after = replace(scene, things=(moved, b))
        if relation(moved, b) != relation(a, b) and _stands(after):
            where = {"left of": "to the left of", "right of": "to the right of"}.get(
                relation(moved, b), relation(moved, b)
            )
            return Edit(
                "move",
                scene,
                after,
                f"move the {a.colour} {a.shape} {where} the {b.colour} {b.shape}",
            )
    return None


def _add(scene: Scene, rng: np.random.Generator) -> Edit:
    a, b = scene.things
    alone = replace(scene, things=(a,))
    return Edit(
        "add",
        alone,
        scene,
        f"add a {b.colour} {b.shape} so that the {a.colour} {a.shape} is {relation(a, b)} it",
    )


def _remove(scene: Scene, rng: np.random.Generator) -> Edit:
    a, b = scene.things
    return Edit("remove", scene, replace(scene, things=(a,)), f"remove the {b.colour} {b.shape}")


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], Edit | None]] = {
    "recolour": _recolour, "reshape": _reshape, "move": _move, "add": _add, "remove": _remove,
}  # fmt: skip
