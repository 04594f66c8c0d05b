"""What went wrong in a picture: a thing left out, a shape, a binding, a colour, a relation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import permutations

import numpy as np

from datekit.shapes.captions import Statements, Want, parse
from datekit.shapes.oracle import Verdict
from datekit.shapes.world import Thing

KINDS = ("present", "bound", "relation")
FAILURES = ("left out", "shape", "binding", "colour", "misplaced", "surplus")  # none of them a kind
EXACT, SHAPE, COLOUR, NONE = range(4)  # what stands there of a thing that the prompt names
LETTERS = dict(zip(FAILURES, "lsbcrx")) | {None: "."}  # one a picture, as results keep them


def truths(prompt: str, verdict: Verdict) -> dict[str, bool]:
    """Which of `KINDS` hold, each of which asks for those before it.

    present: at least as many things of each shape as the prompt names, whatever their colours;
    bound: each in its own colour too; relation: and where the prompt puts them, true of a prompt
    without one. Raises ValueError for a prompt outside of the grammar.
    """
    asked = parse(prompt)
    named = Counter(want.shape for want in _singly(asked))
    present = named <= Counter(thing.shape for thing in verdict.things)
    bound = present and all(n == EXACT for n, _ in _stand_ins(asked, verdict))
    return {"present": present, "bound": bound, "relation": bound and _placed(asked, verdict)}


def failure(prompt: str, verdict: Verdict) -> str | None:
    """The first thing that is wrong, a word of `FAILURES`, or None for a picture all right.

    Each thing that the prompt names has a thing of the picture that stands for it: itself, or one
    of its shape, or one of its colour, in this order, no thing for two. A further copy of something
    that the prompt names stands for nothing else. "left out": nothing stands for a thing; "shape":
    what does has its colour alone; "binding": it has its shape, and a colour of the prompt;
    "colour": its shape, and another colour or none that is known. Then all things are there, but:
    "misplaced": not where the prompt puts them; "surplus": not alone. Raises ValueError as `truths`
    does.
    """
    if verdict.right:
        return None
    asked = parse(prompt)
    found = _stand_ins(asked, verdict)
    worst = max(n for n, _ in found)
    if worst == NONE:
        return "left out"
    if worst == COLOUR:
        return "shape"
    if worst == SHAPE:
        strays = {thing.colour for n, thing in found if n == SHAPE}
        return "binding" if strays <= {want.colour for want in asked.wants} else "colour"
    return "surplus" if _placed(asked, verdict) else "misplaced"


def shares(prompts: Sequence[str], verdicts: Sequence[Verdict]) -> dict[str, list]:
    """By pair of prompt and verdict: 1 or 0 for each of `KINDS`, and the letter of its failure."""
    pairs = list(zip(prompts, verdicts, strict=True))
    held = [truths(*pair) for pair in pairs]
    result: dict[str, list] = {kind: [float(row[kind]) for row in held] for kind in KINDS}
    return result | {"failures": [LETTERS[failure(*pair)] for pair in pairs]}


def split(letters: Sequence[str]) -> dict[str, np.ndarray]:
    """1 or 0 for each pair, (N,), of each word of `FAILURES`."""
    letters = np.array(list(letters))
    return {name: (letters == LETTERS[name]).astype(float) for name in FAILURES}


def _placed(asked: Statements, verdict: Verdict) -> bool:
    """Whether the relation holds, where the prompt has one."""
    return asked.relation is None or verdict.statements[len(asked.wants)][1]


def _singly(asked: Statements) -> list[Want]:
    """What a prompt names, thing by thing, those with a colour first."""
    wants = sorted(asked.wants, key=lambda want: want.colour is None)
    return [want for want in wants for _ in range(want.count)]


def _stand_ins(asked: Statements, verdict: Verdict) -> list[tuple[int, Thing | None]]:
    """For each thing that a prompt names: how much of it stands there, and what does.

    The closest pairing of the two: first the fewest things without anything, then the fewest with
    their colour alone.
    """
    wants, found = _singly(asked), []
    left = list(verdict.things)
    for want in tuple(wants):
        if same := [thing for thing in left if want.matches(thing)]:
            found.append((EXACT, same[0]))
            wants.remove(want)
            left.remove(same[0])
    left = [thing for thing in left if not any(want.matches(thing) for want in asked.wants)]
    pairings = [
        [(_likeness(want, thing), thing) for want, thing in zip(wants, order, strict=True)]
        for order in permutations([*left, *[None] * len(wants)], len(wants))
    ]
    return found + min(pairings, key=lambda pairs: sorted((n for n, _ in pairs), reverse=True))


def _likeness(want: Want, thing: Thing | None) -> int:
    """What a thing that is not quite what was named has of it."""
    if thing is None:
        return NONE
    if thing.shape == want.shape:
        return SHAPE
    return COLOUR if want.colour in (None, thing.colour) else NONE
