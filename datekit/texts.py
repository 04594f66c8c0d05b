"""The one reader of text inputs: prompts and captions in plain text, tables and JSON.

Files are UTF-8. What cannot be read is a ValueError that names the file and the line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT = ("prompt", "prompts", "caption", "text")  # what a record may call its text; the first there
FILE = ("file_name", "image")  # and its picture
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # endings of files
MANIFESTS = ("metadata.jsonl", "metadata.csv")  # of a folder of pictures
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
            raise ValueError(f"{self.where}: {' or '.join(names)} must be a text, got {value!r}")
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
        text, wrong = data.decode("utf-8-sig"), data.find(b"\0")  # UTF-16 has these
    except UnicodeDecodeError as error:
        text, wrong = "", error.start
    if wrong >= 0:
        line = data.count(b"\n", 0, wrong) + 1
        raise ValueError(f"{path}, line {line}, is not UTF-8; save the file as UTF-8")
    kind = path.suffix.lower()
    if kind in TABLES:
        return _table(path, text, TABLES[kind])
    if kind == ".json":
        return _coco(path, text)
    records = []
    # splitlines also splits where a prompt may not
    for n, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        where = f"{path}, line {n}"
        if line.strip():
            cells = parse_object(where, line) if kind == ".jsonl" else {"text": line}
            records.append(Record(where, cells))
    return records


def read_pictures(source: str | Path, folder: str | Path | None = None) -> list:
    """The pictures that a file of records names, as pairs (Path, Record) in its order.

    source: such a file, or a folder that holds it as metadata.jsonl or metadata.csv; folder: what
    file names are relative to, by default where the file lies. Raises FileNotFoundError where the
    file or a picture is missing.
    """
    path = Path(source)
    if path.is_dir():
        jsonl, table = (path / name for name in MANIFESTS)
        path = table if table.is_file() and not jsonl.is_file() else jsonl
    folder = path.parent if folder is None else Path(folder)
    named = [(folder / record.text(*FILE), record) for record in read_records(path)]
    if not named:
        raise ValueError(f"{path} names no pictures")
    for file, record in named:
        if not file.is_file():
            raise FileNotFoundError(f"{record.where} names {file}, which is not there")
    return named


def _table(path: Path, text: str, delimiter: str) -> list[Record]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    lines = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True
    )
    records, first = [], 2
    try:
        columns = [name.strip().lower() for name in lines.fieldnames or ()]
        if len(set(columns)) < len(columns):
            raise ValueError(f"{path} has two columns of one name: {', '.join(columns)}")
        lines.fieldnames = columns
        for cells in lines:
            where, first = f"{path}, line {first}", lines.line_num + 1
            if None in cells or None in cells.values():
                raise ValueError(f"{where}, has not the cells of the header; a comma needs quotes")
            for cell in cells.values() if delimiter == "\t" else ():
                if len(cell) > 1 and cell[0] == cell[-1] == '"':
                    raise ValueError(f"{where}: no cell of a .tsv is quoted; save a .csv: {cell}")
            if "".join(cells.values()).strip():
                records.append(Record(where, cells))
    except csv.Error as error:
        raise ValueError(f"{path}, line {first}: {error}; is a quote left open?") from None
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
        json.dumps(value, ensure_ascii=False).encode()  # half of a pair of escapes is no text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}, is no JSON object")
    return value
