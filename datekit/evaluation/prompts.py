"""Prompts and their seeds, from a file or from the shapes world."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import noise
from ..errors import whole
from ..shapes import captions
from ..texts import TEXT, Record, read_records


@dataclass(frozen=True)
class Row:
    """A prompt, the seed of its noise and, as a mere label, its task family, where known."""

    prompt: str
    seed: int | None = None
    family: str | None = field(default=None, compare=False)

    @staticmethod
    def of(record: Record) -> Row:
        """The row of a record. Raises ValueError for a seed that is none."""
        seed, family = (record.cells.get(name) for name in ("seed", "family"))
        if seed is not None:
            digits = str(seed).strip()
            if not digits.isdecimal() or len(digits) > 19 or int(digits) >= 2**63:
                raise ValueError(f"{record.where}: a seed is from 0 to 2**63 - 1, got {seed!r}")
            seed = int(digits)
        return Row(record.text(*TEXT), seed, family or None)


def read_prompts(source: str | Path, *, seed: int = 0, copies: int = 1) -> list[Row]:
    """The prompts of a file that `texts.read_records` reads, in its order, each with a seed.

    Records have a prompt (prompts in DrawBench), caption or text, and may have a seed and a family.
    "shapes:N" stands for N held-out prompts of each family of the shapes world. seed: row n without
    a seed gets one below 2^31 that follows from this seed and n. copies: rows of each prompt, one
    after the other; only the first has the seed of the file.
    """
    kind, _, number = str(source).partition(":")
    if kind == "shapes":
        number = int(number) if number.isdecimal() else number
        count, rows = whole("the N of shapes:N", number, 1), []
        for family in captions.FAMILIES:
            prompts = captions.prompts("heldout", count, seed, family=family, part="test")
            rows += [Row(prompt, None, family) for prompt in prompts]
    else:
        rows = [Row.of(record) for record in read_records(source)]
    if not rows:
        raise ValueError(f"{source} holds no prompts")
    drawn, more = [], whole("copies", copies, 1) - 1
    for row in rows:
        drawn += [row, *[replace(row, seed=None)] * more]
    for n, row in enumerate(drawn):
        if row.seed is None:
            drawn[n] = replace(row, seed=noise.derived(seed, n, "prompt") % 2**31)
    return drawn
