"""What went wrong in a picture: a thing missing, colours on wrong shapes, a false relation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from datekit.shapes.captions import Statements, parse
from datekit.shapes.oracle import Verdict

KINDS = ("present", "bound", "relation")
FAILURES = ("neglect", "swapped", "colour", "misplaced", "surplus")  # none of them a kind
LETTERS = dict(zip(FAILURES, "nscrx")) | {None: "."}  # one a picture, as results keep them


def truths(prompt: str, verdict: Verdict) -> dict[str, bool]:
    """Which of `KINDS` hold, each of which asks for those before it.

    present: as many things of each shape as the prompt names, whatever their colours; bound: each
    with its own colour too; relation: and where the prompt puts them, true of a prompt without one.
    Raises ValueError for a prompt outside of the grammar.
    """
    asked = parse(prompt)
    statements = [truth for _, truth in verdict.statements]
    present = _enough(asked, verdict, "shape")
    bound = present and all(statements[: len(asked.wants)])
    placed = asked.relation is None or statements[len(asked.wants)]
    return {"present": present, "bound": bound, "relation": bound and placed}


def failure(prompt: str, verdict: Verdict) -> str | None:
    """The first thing that is wrong, a word of `FAILURES`, or None for a picture all right.

    "neglect": a shape is missing; "swapped": all shapes and all colours are there, not together;
    "colour": all shapes, and a colour that is none of the prompt's; "misplaced": the right things
    in the wrong places; "surplus": something beside them. Raises ValueError as `truths` does.
    """
    held = truths(prompt, verdict)
    if not held["present"]:
        return "neglect"
    if not held["bound"]:
        return "swapped" if _enough(parse(prompt), verdict, "colour") else "colour"
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


def mended(before: str, after: str) -> dict[str, tuple[int, int]]:
    """Of each failure before: how many pairs had it, and how many of them are all right after."""
    result = {}
    for kind in FAILURES:
        rows = [b for a, b in zip(before, after, strict=True) if a == LETTERS[kind]]
        result[kind] = (len(rows), rows.count(LETTERS[None]))
    return result


def _enough(asked: Statements, verdict: Verdict, what: str) -> bool:
    """Whether the picture has as much of each shape, or of each colour, as the prompt names."""
    wanted: Counter = Counter()
    for want in asked.wants:
        wanted[getattr(want, what)] += want.count
    seen = Counter(getattr(thing, what) for thing in verdict.things)
    wanted.pop(None, None)
    return all(seen[word] >= count for word, count in wanted.items())
