"""Prompts and their seeds, read from a text file, a table, or the shapes world."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from .. import noise
from ..errors import whole

COLUMNS = ("prompt", "caption", "text")  # names of the column of prompts; the first one present
TABLES = {".csv": ",", ".tsv": "\t"}  # file endings and the sign between their cells
WORLD = "shapes"  # stands in place of a file for prompts of the shapes world


@dataclass(frozen=True)
class Row:
    """A prompt, the seed of its noise, and the task family it belongs to, if one was named."""

    prompt: str
    seed: int | None
    family: str | None = None


def read_prompts(source: str | Path, *, seed: int = 0, limit: int | None = None) -> list[Row]:
    """The rows of a file of prompts, in its order.

    source: a text file with one prompt a line, or a CSV or TSV with a header. A table has a column
    prompt, caption or text, and may have the columns seed and family. "shapes:N" stands for N
    held-out prompts of each family of the shapes world, "shapes:N:FAMILY" for N of one family.
    seed: where there is no column of seeds, row n gets a seed below 2^31 that follows from this
    seed and n, so equal prompts in different rows get different noise. limit: only the first so
    many rows. Raises ValueError for cells that are missing or make no sense, naming file and row.
    """
    source = str(source)
    ending = Path(source).suffix.lower()
    if limit is not None:
        whole("limit", limit, 1)
    if source.split(":")[0] == WORLD:
        rows = _world(source, seed)
    elif ending in TABLES:
        rows = _table(Path(source))
    elif ending in (".json", ".jsonl"):
        raise ValueError(f"{source}: prompts are read from a text file or a CSV, not from JSON")
    else:
        lines = Path(source).read_text(encoding="utf-8-sig").splitlines()
        rows = [Row(line.strip(), None) for line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{source} holds no prompts")
    return [_seeded(row, n, seed) for n, row in enumerate(rows[:limit])]


def read_table(path: str | Path) -> tuple[list[str], list[dict[str, str]]]:
    """A CSV or TSV file with a header: its columns, in lower case, and its rows by them.

    Raises ValueError for two columns of one name, and for a row with more or fewer cells than the
    header, naming the file and the line.
    """
    path = Path(path)
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, delimiter=TABLES.get(path.suffix.lower(), ","))
        columns = [name.strip().lower() for name in next(lines, [])]
        if len(set(columns)) < len(columns):
            raise ValueError(f"{path} has two columns of one name: {', '.join(columns)}")
        rows = []
        for cells in lines:
            if not cells:
                continue
            if len(cells) != len(columns):
                raise ValueError(
                    f"{path}, line {lines.line_num}, has {len(cells)} cells and the header has "
                    f"{len(columns)}; a cell with a comma in it stands in quotes: {cells[0]!r}, ..."
                )
            rows.append(dict(zip(columns, cells, strict=True)))
    return columns, rows


def _table(path: Path) -> list[Row]:
    columns, table = read_table(path)
    named = [name for name in COLUMNS if name in columns]
    if not named:
        raise ValueError(
            f"{path} needs a column prompt, caption or text; it has {', '.join(columns) or 'none'}"
        )
    rows = []
    for n, cells in enumerate(table):
        seed = _seed(f"{path}, row {n}", cells["seed"]) if "seed" in columns else None
        rows.append(Row(cells[named[0]].strip(), seed, cells.get("family")))
    return rows


def _seed(where: str, text: str) -> int:
    if not text.strip().isdigit() or int(text) >= 2**63:
        raise ValueError(f"{where}: a seed is a whole number from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def _seeded(row: Row, n: int, seed: int) -> Row:
    if row.seed is not None:
        return row
    return Row(row.prompt, noise.derived(seed, n, "prompt") % 2**31, row.family)


def _world(source: str, seed: int) -> list[Row]:
    from ..shapes import captions

    number, *families = source.split(":")[1:] or [""]
    if not number.isdigit() or int(number) < 1 or len(families) > 1:
        raise ValueError(
            "prompts of the shapes world are asked for as 'shapes:N' or 'shapes:N:FAMILY', "
            f"got {source!r}"
        )
    rows = []
    for family in families or captions.FAMILIES:
        prompts = captions.prompts("heldout", int(number), seed, family=family, part="test")
        rows += [Row(prompt, None, family) for prompt in prompts]
    return rows
