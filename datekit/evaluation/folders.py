"""A folder of pictures with its manifest, in the layout of datasets' imagefolder."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files import write_whole
from ..texts import MANIFESTS, parse_object, read_pictures
from .prompts import Row

SETTINGS, MANIFEST = "settings.json", MANIFESTS[0]


def write_json(path: str | Path, content: object, *, replace: bool = True) -> None:
    """Write a file of JSON as `write_whole` does; makes the folder that it is in."""
    path, text = Path(path), json.dumps(content, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write_text(text), replace=replace)


def picture(folder: Path, row: int) -> Path:
    """The file of a row."""
    return folder / f"{row:05d}.png"


def manifest_of(rows: Sequence[Row]) -> str:
    """The manifest of rows: a line of JSON for each."""
    lines = []
    for n, row in enumerate(rows):
        line = {"file_name": picture(Path(), n).name} | dataclasses.asdict(row)
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)


def read_settings(folder: Path) -> dict:
    """What `generate` was told when it began the folder."""
    path = folder / SETTINGS
    return parse_object(str(path), path.read_text()).get("settings", {})


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures: files and rows in order, and the model that made them, if known."""

    folder: Path
    files: tuple[Path, ...]
    rows: tuple[Row, ...]
    model: str | None = None

    @staticmethod
    def read(folder: str | Path) -> Pictures:
        """From the folder's manifest. Raises FileNotFoundError where it or a picture is missing."""
        folder = Path(folder)
        files, records = zip(*read_pictures(folder), strict=True)
        model = read_settings(folder).get("model") if (folder / SETTINGS).is_file() else None
        return Pictures(folder, files, tuple(map(Row.of, records)), model)


def images(files: Sequence[Path], batch_size: int) -> Iterator[Tensor]:
    """Pictures as tensors (B, 3, H, W) in [0, 1], in order, up to `batch_size` of one size."""
    for _, same in itertools.groupby(map(_read, files), key=lambda image: image.shape):
        while batch := list(itertools.islice(same, batch_size)):
            yield torch.stack(batch)


def _read(file: Path) -> Tensor:
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
