"""What went wrong in a picture: a thing left out, a shape, a binding, a colour, a relation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from datekit.shapes.captions import Statements, parse
from datekit.shapes.oracle import Verdict

KINDS = ("present", "bound", "relation")
FAILURES = ("left out", "shape", "binding", "colour", "misplaced", "surplus")  # none of them a kind
LETTERS = dict(zip(FAILURES, "lsbcrx")) | {None: "."}  # one a picture, as results keep them


def truths(prompt: str, verdict: Verdict) -> dict[str, bool]:
    """Which of `KINDS` hold, each of which asks for those before it.

    present: at least as many things of each shape as the prompt names, whatever their colours;
    bound: each in its own colour too; relation: and where the prompt puts them, true of a prompt
    without one. Raises ValueError for a prompt outside of the grammar.
    """
    asked = parse(prompt)
    present = _named_shapes(asked) <= Counter(thing.shape for thing in verdict.things)
    bound = present and not _lacking(asked, verdict)
    placed = asked.relation is None or verdict.statements[len(asked.wants)][1]
    return {"present": present, "bound": bound, "relation": bound and placed}


def failure(prompt: str, verdict: Verdict) -> str | None:
    """The first thing that is wrong, a word of `FAILURES`, or None for a picture all right.

    "left out": a shape is missing, and there are fewer things than the prompt names; "shape": a
    shape is missing, and something else stands there. Then all shapes are there, but: "binding":
    things of a shape whose colour is wrong have colours of the prompt alone; "colour": one of them
    has another colour, or none that is known. Then things and colours are right, but: "misplaced":
    not where the prompt puts them; "surplus": not alone. Raises ValueError as `truths` does.
    """
    asked, held = parse(prompt), truths(prompt, verdict)
    if not held["present"]:
        return "left out" if len(verdict.things) < asked.total else "shape"
    if not held["bound"]:
        return "binding" if _strays(asked, verdict) <= {w.colour for w in asked.wants} else "colour"
    if not held["relation"]:
        return "misplaced"
    return None if verdict.right else "surplus"


def shares(prompts: Sequence[str], verdicts: Sequence[Verdict]) -> dict[str, list]:
    """By pair of prompt and verdict: 1 or 0 for each of `KINDS`, and the letter of its failure."""
    pairs = list(zip(prompts, verdicts, strict=True))
    held = [truths(*pair) for pair in pairs]
    result: dict[str, list] = {kind: [float(row[kind]) for row in held] for kind in KINDS}
    return result | {"failures": [LETTERS[failure(*pair)] for pair in pairs]}


def split(letters: Sequence[str]) -> dict[str, np.ndarray]:
    """1 or 0 for each pair, (N,), of each word of `FAILURES` and of "all right"."""
    letters = np.array(list(letters))
    names = {name or "all right": letter for name, letter in LETTERS.items()}
    return {name: (letters == letter).astype(float) for name, letter in names.items()}


def _named_shapes(asked: Statements) -> Counter:
    """How many things of each shape a prompt names."""
    named: Counter = Counter()
    for want in asked.wants:
        named[want.shape] += want.count
    return named


def _lacking(asked: Statements, verdict: Verdict) -> set[str]:
    """The shapes that are not there as often as asked in the colour that was asked for."""
    counts = [(want, sum(map(want.matches, verdict.things))) for want in asked.wants]
    return {want.shape for want, count in counts if count < want.count}


def _strays(asked: Statements, verdict: Verdict) -> set[str]:
    """The colours of things of such a shape that are none of what was asked for."""
    lacking, coloured = _lacking(asked, verdict), [want for want in asked.wants if want.colour]
    others = [t for t in verdict.things if not any(want.matches(t) for want in coloured)]
    return {thing.colour for thing in others if thing.shape in lacking}
