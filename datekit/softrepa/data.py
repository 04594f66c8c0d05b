"""Image-caption pairs to learn from: a folder, a CSV, COCO's layout, lists in memory, or the shapes world."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
IMAGE_COLUMNS, CAPTION_COLUMNS = (
    ("image", "file_name", "path", "file"),
    ("caption", "text", "prompt"),
)


@dataclass(frozen=True, eq=False)
class Pairs:
    """N images and R captions of them; an image may have several captions.

    images: anything that a picture is made of (paths, PIL images, arrays, tensors (3, H, W) in [0, 1]); rows: (R,) the number of the
    image that each caption is of; captions: (R,) strings; negatives: for each caption, captions that are nearly right and false
    of its image, empty where none are known; name: what the data are called. Raises ValueError for counts that do not go together,
    empty captions, or fewer than two different ones.
    """

    images: Sequence[Any]
    rows: tuple[int, ...]
    captions: tuple[str, ...]
    negatives: tuple[tuple[str, ...], ...] = ()
    name: str = "pairs"

    def __post_init__(self) -> None:
        if not len(self.captions) == len(self.rows) == len(self.negatives or self.captions):
            raise ValueError(
                f"{self.name}: {len(self.rows)} rows, {len(self.captions)} captions and {len(self.negatives)} lists of negatives "
                "do not go together"
            )
        if self.rows and not 0 <= min(self.rows) <= max(self.rows) < len(self.images):
            raise ValueError(
                f"{self.name}: a caption names image {max(self.rows)} of {len(self.images)}"
            )
        for n, caption in enumerate(self.captions):
            if not isinstance(caption, str) or not caption.strip():
                raise ValueError(
                    f"{self.name}: caption {n} is {caption!r}; each image needs a text"
                )
        if len(set(self.captions)) < 2:
            raise ValueError(
                f"{self.name}: contrast needs at least two different captions, got {len(set(self.captions))}"
            )

    def __len__(self) -> int:
        return len(self.captions)

    @staticmethod
    def of(
        images: Sequence[Any],
        captions: Sequence[str],
        negatives: Sequence[Sequence[str]] | None = None,
        *,
        name: str = "pairs",
    ) -> Pairs:
        """From lists, one caption an image. Raises ValueError for different counts."""
        if len(images) != len(captions):
            raise ValueError(
                f"{name}: {len(images)} images and {len(captions)} captions; each image needs one caption"
            )
        return Pairs(
            images,
            tuple(range(len(images))),
            tuple(captions),
            tuple(map(tuple, negatives or ())),
            name,
        )

    @property
    def digest(self) -> str:
        """A fingerprint of images and captions: of files by name, size and time of change, of other images by their content."""
        found = hashlib.blake2b(
            repr((self.rows, self.captions, self.negatives)).encode(), digest_size=12
        )
        for image in getattr(self.images, "scenes", self.images):
            found.update(_identity(image))
        return found.hexdigest()


def read_pairs(
    source: str | Path, *, images: str | Path | None = None, limit: int | None = None, seed: int = 0
) -> Pairs:
    """Pairs from a folder, a CSV, a COCO annotation file, or "shapes[:N]", N captioned scenes of the shapes world.

    A folder holds `metadata.csv` (as of the CSV), or `annotations/captions_*.json` beside folders of images (COCO; one annotation file, or
    name it), or images each with a text file of the same name (one caption a line). A CSV has a column image (or file_name, path) relative
    to it, a column caption (or text, prompt), and may have `negative`, false captions separated by "|". images: the folder that
    file names are relative to, where it is another; limit: only the first so many images. Raises FileNotFoundError for
    missing images, naming them, and ValueError for what cannot be read.
    """
    text = str(source)
    if text.partition(":")[0] == "shapes" and not Path(source).exists():
        return _shapes_named(text, seed, limit)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"there are no pairs at {path}; give a folder, a CSV, COCO's captions_*.json, or shapes:N"
        )
    base = None if images is None else Path(images)
    if path.is_dir():
        found = sorted(path.glob("annotations/captions_*.json"))
        if (path / "metadata.csv").is_file():
            table = _from_csv(path / "metadata.csv", base)
        elif found:
            if len(found) > 1:
                raise ValueError(
                    f"{path} has {len(found)} annotation files; name one: {', '.join(map(str, found))}"
                )
            table = _from_coco(found[0], base)
        else:
            table = _from_folder(path)
    else:
        table = _from_coco(path, base) if path.suffix == ".json" else _from_csv(path, base)
    return _assembled(table, path, limit)


def shapes_pairs(n: int = 2000, seed: int = 0, *, negatives: int = 4) -> Pairs:
    """n training scenes of the shapes world with a true caption each, of any family that fits, and false ones that are one edit away."""
    import numpy as np

    from ..shapes import caption, families, hard_negatives, sample_scenes

    scenes, rng = sample_scenes(n, seed), np.random.default_rng([seed, 1])
    captions, wrong = [], []
    for scene in scenes:
        options = families(scene)
        captions.append(caption(scene, options[rng.integers(len(options))], rng))
        wrong.append(
            tuple(hard_negatives(captions[-1], scene.things, negatives, rng)) if negatives else ()
        )
    return Pairs(
        _Rendered(tuple(scenes)),
        tuple(range(n)),
        tuple(captions),
        tuple(wrong) if negatives else (),
        f"shapes:{n}",
    )


@dataclass(frozen=True)
class _Rendered(Sequence):
    """Scenes as pictures (3, 64, 64), drawn when they are asked for."""

    scenes: tuple

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int):
        from ..shapes import render

        return render([self.scenes[index]])[0]


Table = list[tuple[Path, str, tuple[str, ...]]]  # image, caption, negatives


def _assembled(table: Table, path: Path, limit: int | None) -> Pairs:
    if not table:
        raise ValueError(f"{path} holds no image-caption pairs")
    order = {image: n for n, image in enumerate(dict.fromkeys(image for image, _, _ in table))}
    if limit is not None:
        table = [row for row in table if order[row[0]] < limit]
        order = {image: n for image, n in order.items() if n < limit}
    if missing := [str(image) for image in order if not image.is_file()]:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{path} names {len(missing)} of {len(order)} images that are not there: {shown}"
        )
    negatives = tuple(row[2] for row in table)
    numbers, captions = tuple(order[row[0]] for row in table), tuple(row[1] for row in table)
    return Pairs(tuple(order), numbers, captions, negatives if any(negatives) else (), str(path))


def _from_csv(path: Path, base: Path | None) -> Table:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        image, caption = (
            next((c for c in names if c in columns), None)
            for names in (IMAGE_COLUMNS, CAPTION_COLUMNS)
        )
        if image is None or caption is None:
            raise ValueError(
                f"{path} needs a column {' or '.join(IMAGE_COLUMNS)} and a column {' or '.join(CAPTION_COLUMNS)}; it has "
                f"{', '.join(columns) or 'none'}"
            )
        rows = list(reader)
    for n, row in enumerate(rows, 2):
        if not row[image] or not (row[caption] or "").strip():
            raise ValueError(
                f"{path}, line {n}: image {row[image]!r} and caption {row[caption]!r}; both are needed"
            )
    split = lambda text: tuple(part.strip() for part in (text or "").split("|") if part.strip())
    return [
        ((base or path.parent) / row[image], row[caption].strip(), split(row.get("negative")))
        for row in rows
    ]


def _from_coco(path: Path, base: Path | None) -> Table:
    try:
        content = json.loads(path.read_text())
        names = {entry["id"]: entry["file_name"] for entry in content["images"]}
        rows = [
            (names[entry["image_id"]], entry["caption"].strip()) for entry in content["annotations"]
        ]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a COCO caption file: it needs images (id, file_name) and annotations (image_id, caption); "
            f"{type(error).__name__}: {error}"
        ) from error
    if base is None:
        split = path.stem.removeprefix("captions_")
        base = next(
            folder
            for folder in (path.parent.parent / split, path.parent.parent / "images", path.parent)
            if folder.is_dir()
        )
    return [(base / name, caption, ()) for name, caption in rows]


def _from_folder(path: Path) -> Table:
    images = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    texts = {file.stem for file in path.glob("*.txt")}
    if bare := [image.name for image in images if image.stem not in texts]:
        raise ValueError(
            f"{path}: {len(images)} images, and {len(bare)} of them without a caption ({', '.join(bare[:3])}); each needs a text "
            "file of the same name, or write a metadata.csv with columns image and caption"
        )
    if alone := sorted(texts - {image.stem for image in images}):
        raise ValueError(
            f"{path}: {len(alone)} captions without an image ({', '.join(name + '.txt' for name in alone[:3])})"
        )
    lines = lambda image: [
        line.strip() for line in image.with_suffix(".txt").read_text().splitlines() if line.strip()
    ]
    return [(image, caption, ()) for image in images for caption in lines(image) or [""]]


def _shapes_named(text: str, seed: int, limit: int | None) -> Pairs:
    number = text.partition(":")[2]
    if number and (not number.isdigit() or not int(number)):
        raise ValueError(f"pairs of the shapes world are written shapes or shapes:N, got {text!r}")
    return shapes_pairs(min(int(number or 2000), limit or 10**9), seed)


def _identity(image: Any) -> bytes:
    if isinstance(image, (str, Path)):
        facts = Path(image).stat()
        return f"{image}/{facts.st_size}/{facts.st_mtime_ns}".encode()
    if hasattr(image, "numpy"):
        return image.detach().cpu().numpy().tobytes()
    return image.tobytes() if hasattr(image, "tobytes") else repr(image).encode()
