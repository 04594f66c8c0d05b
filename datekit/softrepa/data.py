"""Image-caption pairs to learn from: a folder, a CSV, COCO's layout, lists, or the shapes world."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..shapes import caption, families, hard_negatives, render, sample_scenes

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
IMAGE_COLUMNS = ("image", "file_name", "path", "file")
CAPTION_COLUMNS = ("caption", "text", "prompt")

Row = tuple[Path, str, tuple[str, ...]]  # an image, a caption of it, its false captions


@dataclass(frozen=True, eq=False)
class Pairs:
    """N images and R captions of them; an image may have several captions.

    images: anything that `dk.editing.as_images` reads; rows: (R,), the number of the image that
    each caption is of; captions: (R,) strings; negatives: for each caption, captions that are
    nearly right and false of its image, empty where none are known; name: what the data are called.
    Raises ValueError for counts that do not go together, for an empty caption, and for fewer than
    two different ones.
    """

    images: Sequence[Any]
    rows: tuple[int, ...]
    captions: tuple[str, ...]
    negatives: tuple[tuple[str, ...], ...] = ()
    name: str = "pairs"

    def __post_init__(self) -> None:
        count = len(self.captions)
        if len(self.rows) != count or len(self.negatives) not in (0, count):
            raise ValueError(
                f"{self.name}: {len(self.rows)} rows, {count} captions and {len(self.negatives)} "
                "lists of negatives do not go together"
            )
        if self.rows and not 0 <= min(self.rows) <= max(self.rows) < len(self.images):
            last = max(self.rows)
            raise ValueError(f"{self.name}: a caption names image {last} of {len(self.images)}")
        for n, text in enumerate(self.captions):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{self.name}: caption {n} is {text!r}; each image needs a text")
        if len(set(self.captions)) < 2:
            raise ValueError(f"{self.name}: contrast needs at least two different captions")

    def __len__(self) -> int:
        return len(self.captions)

    @staticmethod
    def of(images: Sequence[Any], captions: Sequence[str], negatives=(), *, name="pairs") -> Pairs:
        """The pairs of lists with one caption an image. Raises ValueError for different counts."""
        if len(images) != len(captions):
            raise ValueError(
                f"{name}: {len(images)} images and {len(captions)} captions; each image needs one"
            )
        negatives = tuple(tuple(texts) for texts in negatives)
        return Pairs(images, tuple(range(len(images))), tuple(captions), negatives, name)

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of images and captions.

        A file counts by its name, size and time of change, another image by its content.
        """
        digest = hashlib.blake2b(digest_size=12)
        digest.update(repr((self.rows, self.captions, self.negatives)).encode())
        for image in self.images:
            if isinstance(image, (str, Path)):
                facts = Path(image).stat()
                digest.update(f"{image}/{facts.st_size}/{facts.st_mtime_ns}".encode())
            elif isinstance(image, torch.Tensor):
                digest.update(image.detach().cpu().numpy().tobytes())
            else:
                digest.update(image.tobytes())
        return digest.hexdigest()


def read_pairs(
    source: str | Path, *, images: str | Path | None = None, limit: int | None = None, seed: int = 0
) -> Pairs:
    """Pairs from a folder, a CSV, a COCO annotation file, or "shapes[:N]", N scenes of that world.

    A folder holds metadata.csv, or annotations/captions_*.json beside folders of images (COCO), or
    images each with a text file of the same name, one caption a line. A CSV has a column image (or
    file_name, path, file), relative to it, a column caption (or text, prompt), and may have a
    column negative, false captions separated by "|". images: the folder that file names are
    relative to, where it is another; limit: only the first so many images; seed: of the shapes
    world. Raises FileNotFoundError, which names the missing images, and ValueError for what cannot
    be read.
    """
    kind, _, number = str(source).partition(":")
    path, base = Path(source), None if images is None else Path(images)
    if kind == "shapes" and not path.exists():
        if number and not (number.isdigit() and int(number)):
            raise ValueError(f"pairs of the shapes world are written shapes:N, got {source!r}")
        count = int(number or 2000)
        return shapes_pairs(count if limit is None else min(count, limit), seed)
    if not path.exists():
        raise FileNotFoundError(
            f"there are no pairs at {path}; give a folder, a CSV, COCO's captions_*.json, or "
            "shapes:N"
        )
    if path.is_dir():
        annotations = sorted(path.glob("annotations/captions_*.json"))
        if len(annotations) > 1:
            names = ", ".join(str(file) for file in annotations)
            raise ValueError(f"{path} has {len(annotations)} annotation files; name one: {names}")
        if (path / "metadata.csv").is_file():
            rows = _from_csv(path / "metadata.csv", base)
        else:
            rows = _from_coco(annotations[0], base) if annotations else _from_folder(path)
    else:
        rows = _from_coco(path, base) if path.suffix == ".json" else _from_csv(path, base)
    return _collect(rows, path, limit)


def shapes_pairs(n: int = 2000, seed: int = 0, *, negatives: int = 4) -> Pairs:
    """n training scenes of the shapes world, each with a true caption of any family that fits.

    negatives: how many false captions, one edit away from the true one, each gets at most.
    """
    rng = np.random.default_rng([seed, 1])
    scenes, captions, wrong = sample_scenes(n, seed), [], []
    for scene in scenes:
        fitting = families(scene)
        captions.append(caption(scene, fitting[rng.integers(len(fitting))], rng))
        if negatives:
            wrong.append(hard_negatives(captions[-1], scene.things, negatives, rng))
    return Pairs.of(_Pictures(tuple(scenes)), captions, wrong, name=f"shapes:{n}")


@dataclass(frozen=True)
class _Pictures(Sequence):
    """Scenes as pictures (3, 64, 64), drawn when they are asked for."""

    scenes: tuple

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> torch.Tensor:
        return render([self.scenes[index]])[0]


def _collect(rows: list[Row], path: Path, limit: int | None) -> Pairs:
    if not rows:
        raise ValueError(f"{path} holds no image-caption pairs")
    images = list(dict.fromkeys(image for image, _, _ in rows))[:limit]
    number = {image: n for n, image in enumerate(images)}
    rows = [row for row in rows if row[0] in number]
    missing = [str(image) for image in images if not image.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{path} names {len(missing)} of {len(images)} images that are not there: {shown}"
        )
    numbers = tuple(number[image] for image, _, _ in rows)
    captions = tuple(text for _, text, _ in rows)
    negatives = tuple(wrong for _, _, wrong in rows)
    return Pairs(tuple(images), numbers, captions, negatives if any(negatives) else (), str(path))


def _from_csv(path: Path, base: Path | None) -> list[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns, lines = reader.fieldnames or [], list(reader)
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    text = next((name for name in CAPTION_COLUMNS if name in columns), None)
    if image is None or text is None:
        raise ValueError(
            f"{path} needs a column {' or '.join(IMAGE_COLUMNS)} and a column "
            f"{' or '.join(CAPTION_COLUMNS)}; it has {', '.join(columns) or 'none'}"
        )
    rows = []
    for n, line in enumerate(lines, 2):
        if not line[image] or not (line[text] or "").strip():
            raise ValueError(
                f"{path}, line {n}: image {line[image]!r} and caption {line[text]!r}; both are "
                "needed"
            )
        wrong = [part.strip() for part in (line.get("negative") or "").split("|")]
        wrong = tuple(part for part in wrong if part)
        rows.append(((base or path.parent) / line[image], line[text].strip(), wrong))
    return rows


def _from_coco(path: Path, base: Path | None) -> list[Row]:
    try:
        content = json.loads(path.read_text())
        names = {entry["id"]: entry["file_name"] for entry in content["images"]}
        texts = [(names[line["image_id"]], line["caption"]) for line in content["annotations"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a COCO caption file, with images (id, file_name) and annotations "
            f"(image_id, caption); {type(error).__name__}: {error}"
        ) from error
    if base is None:
        root = path.parent.parent
        folders = (root / path.stem.removeprefix("captions_"), root / "images", path.parent)
        base = next(folder for folder in folders if folder.is_dir())
    return [(base / name, text.strip(), ()) for name, text in texts]


def _from_folder(path: Path) -> list[Row]:
    images = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    texts = {file.stem: file for file in sorted(path.glob("*.txt"))}
    alone = sorted(texts.keys() - {image.stem for image in images})
    if alone:
        raise ValueError(f"{path}: captions without an image: {', '.join(alone[:3])}")
    rows = []
    for image in images:
        if image.stem not in texts:
            raise ValueError(
                f"{path}: {image.name} has no caption; each image needs a text file of the same "
                "name, or write a metadata.csv with columns image and caption"
            )
        lines = [line.strip() for line in texts[image.stem].read_text().splitlines()]
        for line in [line for line in lines if line] or [""]:
            rows.append((image, line, ()))
    return rows
