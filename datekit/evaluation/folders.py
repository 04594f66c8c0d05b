"""A folder of pictures with its manifest: the one place that writes and reads the two."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .prompts import Row

SETTINGS, MANIFEST = "settings.json", "metadata.jsonl"


def picture(folder: Path, row: int) -> Path:
    """The file of a row."""
    return folder / f"{row:05d}.png"


def manifest_of(rows: Sequence[Row]) -> str:
    """The manifest of rows, in the layout of datasets' imagefolder: a line of JSON for each."""
    lines = []
    for n, row in enumerate(rows):
        line = {"file_name": picture(Path(), n).name, "prompt": row.prompt, "seed": row.seed}
        if row.family is not None:
            line["family"] = row.family
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)


def read_settings(folder: Path) -> dict:
    """What `generate` was told when it began the folder.

    Raises ValueError where the folder's file of settings does not say it.
    """
    path = folder / SETTINGS
    try:
        return dict(json.loads(path.read_text())["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} does not say how the pictures were made; give another folder"
        ) from None


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

        Raises FileNotFoundError for a folder without one, ValueError where a line of it or a
        picture is missing something.
        """
        folder = Path(folder)
        manifest = folder / MANIFEST
        if not manifest.is_file():
            raise FileNotFoundError(
                f"{folder} has no {MANIFEST} (lines of file_name, prompt, seed), "
                "as datekit generate writes it"
            )
        files, rows = [], []
        for n, line in enumerate(manifest.read_text(encoding="utf-8").rstrip().split("\n")):
            try:
                cells = json.loads(line)
                files.append(folder / cells["file_name"])
                rows.append(Row(cells["prompt"], cells.get("seed"), cells.get("family")))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(
                    f"{manifest}, line {n + 1}, has no file_name or no prompt"
                ) from None
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise ValueError(
                f"{len(missing)} of the {len(files)} pictures of {folder} are missing "
                f"({', '.join(missing[:3])} ...); the same datekit generate command makes them"
            )
        model = None
        if (folder / SETTINGS).is_file():
            model = read_settings(folder).get("model")
        return Pictures(folder, tuple(files), tuple(rows), model)

    @property
    def prompts(self) -> list[str]:
        """The prompt of each picture."""
        return [row.prompt for row in self.rows]

    @property
    def pairs(self) -> list[tuple[str, int | None]]:
        """The prompt and the seed of each picture."""
        return [(row.prompt, row.seed) for row in self.rows]


def images(files: Sequence[Path], batch_size: int) -> Iterator[Tensor]:
    """Pictures as tensors (B, 3, H, W) in [0, 1], in order, up to `batch_size` of one size."""
    for _, same in itertools.groupby(map(_read, files), key=_shape):
        while batch := list(itertools.islice(same, batch_size)):
            yield torch.stack(batch)


def _read(file: Path) -> Tensor:
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def _shape(image: Tensor) -> torch.Size:
    return image.shape
