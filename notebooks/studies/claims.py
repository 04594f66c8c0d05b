"""What went wrong in a picture, kind by kind: a thing missing, colours on the wrong shapes, a relation that does not hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datekit.shapes.captions import Statements, parse

if TYPE_CHECKING:
    from datekit.shapes.oracle import Verdict

CLAIMS = ("present", "bound", "relation")
FAILURES = ("neglect", "swapped", "colour", "relation", "surplus")
LETTERS = dict(zip(FAILURES, "nscrx", strict=True)) | {
    None: "."
}  # one letter a picture, as results keep them


def claims(prompt: str, verdict: Verdict) -> dict[str, bool]:
    """Which kinds of claim hold, each of which asks for those before it.

    present: as many things of each shape as the prompt names, whatever their colours; bound: each with its own colour too; relation:
    and where the prompt puts them, true of a prompt without one. Raises ValueError for a prompt outside of the grammar.
    """
    asked = parse(prompt)
    truths = [truth for _, truth in verdict.statements]
    seen = Counter(thing.shape for thing in verdict.things)
    present = all(seen[shape] >= count for shape, count in _wanted(asked, "shape").items())
    bound = present and all(truths[: len(asked.wants)])
    return {
        "present": present,
        "bound": bound,
        "relation": bound and (asked.relation is None or truths[len(asked.wants)]),
    }


def failure(prompt: str, verdict: Verdict) -> str | None:
    """The first thing that is wrong, a word of `FAILURES`, or None for a picture that is all right.

    "neglect": a shape is missing; "swapped": all shapes and all colours are there, not together; "colour": all shapes, and a colour that is
    none of the prompt's; "relation": the right things in the wrong places; "surplus": something beside them. Raises ValueError
    for a prompt outside of the grammar.
    """
    held = claims(prompt, verdict)
    if not held["present"]:
        return "neglect"
    if not held["bound"]:
        seen = Counter(thing.colour for thing in verdict.things)
        return (
            "swapped"
            if all(
                seen[colour] >= n
                for colour, n in _wanted(parse(prompt), "colour").items()
                if colour
            )
            else "colour"
        )
    if not held["relation"]:
        return "relation"
    return None if verdict.right else "surplus"


def shares(prompts: Sequence[str], verdicts: Sequence[Verdict]) -> dict[str, list[float]]:
    """1 or 0 for each of `CLAIMS` and each pair of prompt and verdict, lists (N,)."""
    found = [claims(*pair) for pair in zip(prompts, verdicts, strict=True)]
    return {name: [float(row[name]) for row in found] for name in CLAIMS}


def _wanted(asked: Statements, what: str) -> Counter:
    found: Counter = Counter()
    for want in asked.wants:
        found[getattr(want, what)] += want.count
    return found
