"""The one reader of text inputs: prompts and captions in plain text, tables and JSON.

Files are UTF-8. What cannot be read is a ValueError that names the file and the line.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT = ("prompt", "caption", "text")  # what a record may call its text; the first one present
FILE = ("file_name", "image")  # and its picture
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # endings of files
TABLES = {".csv": ",", ".tsv": "\t"}  # endings, and the sign between cells


@dataclass(frozen=True)
class Record:
    """What a file says in one place: where that is, and the values by name."""

    where: str
    cells: dict[str, Any]

    def text(self, *names: str) -> str:
        """The first of the named values that is there. Raises ValueError where it is no text."""
        value = next((self.cells[name] for name in names if name in self.cells), None)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(
                f"{self.where}: a text is needed as {' or '.join(names)}, got {value!r}; there are "
                f"{', '.join(self.cells)}"
            )
        return value.strip()


def read_records(path: str | Path) -> list[Record]:
    """The records of a file, in its order.

    A .csv or .tsv has a header, whose names are taken in lower case, and a .tsv no quotes; a .jsonl
    has an object a line; a .json is COCO's file of captions, with file_name and caption of each; of
    any other file each line that is not blank is a "text".
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}, is not UTF-8; save the file as UTF-8") from None
    kind = path.suffix.lower()
    if kind in TABLES:
        return _table(path, text, TABLES[kind])
    if kind == ".json":
        return _coco(path, text)
    records = []
    for n, line in enumerate(text.split("\n"), 1):  # splitlines also splits where a prompt may not
        where = f"{path}, line {n}"
        if line.strip():
            cells = parse_object(where, line) if kind == ".jsonl" else {"text": line}
            records.append(Record(where, cells))
    return records


def _table(path: Path, text: str, delimiter: str) -> list[Record]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    lines = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True
    )
    rows, first = [], 1
    try:
        for cells in lines:
            rows.append((f"{path}, line {first}", cells))
            first = lines.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {first}: {error}; is a quote left open?") from None
    columns = [name.strip().lower() for name in rows[0][1]] if rows else []
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path} has two columns of one name: {', '.join(columns)}")
    records = []
    for where, cells in rows[1:]:
        if cells and len(cells) != len(columns):
            raise ValueError(
                f"{where}, has {len(cells)} cells and the header has {len(columns)}; a comma "
                f"within a cell needs quotes: {cells[0]!r}, ..."
            )
        if any(cell.strip() for cell in cells):
            records.append(Record(where, dict(zip(columns, cells, strict=True))))
    return records


def _coco(path: Path, text: str) -> list[Record]:
    content, records = parse_object(str(path), text), []
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for n, note in enumerate(content["annotations"]):
            cells = {"file_name": names[note["image_id"]], "caption": note["caption"]}
            records.append(Record(f"{path}, annotation {n}", cells))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a COCO caption file: {error!r}") from None
    return records


def parse_object(where: str, text: str) -> dict:
    """The JSON object in a text; where: how an error names it."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}, is no JSON object")
    return value
