"""A folder of pictures with its manifest, in the layout of datasets' imagefolder."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..files import write_whole
from ..texts import MANIFESTS, parse_object, read_pictures, read_records
from .prompts import Row

SETTINGS, MANIFEST = "settings.json", MANIFESTS[0]
DIGEST = "prompts and seeds"  # among the settings
MARK = "datekit"  # what a picture says of itself, a text in its file


def write_json(path: str | Path, content: object, *, replace: bool = True) -> None:
    """Write a file of JSON as `write_whole` does; makes the folder that it is in."""
    path, text = Path(path), json.dumps(content, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write_text(text), replace=replace)


def picture(folder: Path, row: int) -> Path:
    """The file of a row."""
    return folder / f"{row:05d}.png"


def save_picture(image: Image.Image, folder: Path, row: int) -> None:
    """Write the picture of a row, with its mark, into a folder whose settings are written."""
    file, info = picture(folder, row), PngInfo()
    info.add_text(MARK, _mark(file, image))
    write_whole(file, lambda partial: image.save(partial, format="PNG", pnginfo=info))


def _mark(file: Path, image: Image.Image) -> str:
    """A digest of the pixels of a picture, of its name, and of the settings that made it."""
    settings = json.dumps(read_settings(file.parent), sort_keys=True)
    place = f"{settings} {file.name} {image.mode} {image.size} "
    return digest(place.encode() + image.tobytes())


def manifest_of(rows: Sequence[Row]) -> str:
    """The manifest of rows: a line of JSON for each."""
    lines = []
    for n, row in enumerate(rows):
        line = {"file_name": picture(Path(), n).name} | dataclasses.asdict(row)
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)


def digest(manifest: bytes) -> str:
    """What tells manifests apart."""
    return hashlib.sha256(manifest).hexdigest()[:16]


def read_settings(folder: Path) -> dict:
    """What `generate` was told when it began the folder."""
    path = folder / SETTINGS
    text = path.read_bytes().decode(errors="replace")
    settings = parse_object(str(path), text).get("settings", {})
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: settings must be an object, got {settings!r}")
    if not isinstance(settings.get("model"), str | None):
        raise ValueError(f"{path}: the model must be a name, got {settings['model']!r}")
    return settings


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures: files and rows in order, and the model that made them, if known."""

    folder: Path
    files: tuple[Path, ...]
    rows: tuple[Row, ...]
    model: str | None = None

    @staticmethod
    def read(folder: str | Path) -> Pictures:
        """From the folder's manifest.

        Raises FileNotFoundError where it or a picture is missing, and ValueError for a manifest
        that is no longer the one that `generate` wrote.
        """
        folder = Path(folder)
        files, records = zip(*read_pictures(folder), strict=True)
        told = read_settings(folder) if (folder / SETTINGS).is_file() else {}
        if DIGEST in told and told[DIGEST] != digest((folder / MANIFEST).read_bytes()):
            changed = f"{folder / MANIFEST} was changed since its pictures were made"
            raise ValueError(f"{changed}; run `datekit generate` again, which writes it anew")
        return Pictures(folder, files, tuple(map(Row.of, records)), told.get("model"))


def write_geneval(folder: str | Path, metadata: str | Path, out: str | Path) -> None:
    """Copy a folder of pictures to another in the layout that GenEval's evaluator reads.

    metadata: GenEval's evaluation_metadata.jsonl. Its record n becomes the folder n, such as 00000,
    with the record in metadata.jsonl and all pictures of its prompt as samples/0000.png and on.
    Raises ValueError for a prompt without a picture, and FileExistsError where something is, as the
    evaluator judges all that it finds.
    """
    if Path(out).exists() and any(Path(out).iterdir()):
        raise FileExistsError(f"{out} holds files already; name a new folder")
    pictures, places = Pictures.read(folder), []
    for n, record in enumerate(read_records(metadata)):
        pairs = zip(pictures.files, pictures.rows, strict=True)
        files = [file for file, row in pairs if row.prompt == record.text("prompt")]
        if not files:
            raise ValueError(f"{record.where}: {folder} has no picture of this prompt")
        for file in files:
            _check_whole(file)
        places.append((Path(out) / f"{n:05d}", record, files))
    for place, record, files in places:
        (place / "samples").mkdir(parents=True, exist_ok=True)
        (place / MANIFEST).write_text(json.dumps(record.cells) + "\n")
        for k, file in enumerate(files):
            shutil.copyfile(file, place / "samples" / f"{k:04d}.png")


def images(files: Sequence[Path], batch_size: int) -> Iterator[Tensor]:
    """Pictures as tensors (B, 3, H, W) in [0, 1], in order, up to `batch_size` of one size."""
    for _, same in itertools.groupby(map(_read, files), key=lambda image: image.shape):
        while batch := list(itertools.islice(same, batch_size)):
            yield torch.stack(batch)


def is_whole_picture(file: Path) -> bool:
    """Whether a file holds a picture to its end, and in a folder of `generate` its own picture.

    That is one with its mark. Another folder's pictures have their checksums alone.
    """
    try:
        with Image.open(file) as image:
            image.verify()
        with Image.open(file) as image:
            image.load()
            ours = (file.parent / SETTINGS).is_file() and DIGEST in read_settings(file.parent)
            return not ours or image.info.get(MARK) == _mark(file, image)
    except (OSError, SyntaxError):
        return False


def _check_whole(file: Path) -> None:
    if not is_whole_picture(file):
        told = f"{file} is no whole picture, or not the one that was drawn for this row"
        raise ValueError(f"{told}; `datekit generate` draws it again")


def _read(file: Path) -> Tensor:
    _check_whole(file)
    with Image.open(file) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"{file} is of mode {image.mode}, without a range; save it in 8 bits")
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
