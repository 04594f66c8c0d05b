"""Pictures of many prompts in a folder: stopped anywhere and run again, by one process or by several, the same files.

    sampler = dk.Sampler("...", dk.DATE(reward))
    generate(sampler, read_prompts("prompts.csv", seed=0), "pictures/date")

The folder gets `settings.json` and `metadata.jsonl` (the layout of datasets' imagefolder: file_name, prompt, seed) before the first
picture, and then 00000.png, 00001.png, ... A picture depends on its prompt, its seed and, in its last bits, on the batch
that it is computed in. So batches are consecutive rows of the prompts, whatever is already there and however many processes share
them, and what could change a bit (settings, versions, kind of device, CPU threads) must be as it was.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import noise
from ..best_of_n import BestOf
from ..errors import NonFiniteError
from ..files import write_whole
from ..methods.base import whole
from ..sampler import Sampler
from ..serialize import describe, differences
from ..types import to_pil
from .machine import facts

SETTINGS, MANIFEST = "settings.json", "metadata.jsonl"
COLUMNS = ("prompt", "caption", "text")  # of prompts, the first that is there
WORLD = "shapes"  # instead of a file: prompts of the shapes world


@dataclass(frozen=True)
class Row:
    """A prompt, the seed of its noise, and the task family it belongs to, if one was named."""

    prompt: str
    seed: int
    family: str | None = None


def read_prompts(source: str | Path, *, seed: int = 0, limit: int | None = None) -> list[Row]:
    """The rows of a file of prompts: a text file with one a line, or a CSV (TSV) with a header.

    A CSV has a column prompt, caption or text, and may have seed and family. source: or "shapes:N", N held-out prompts of each
    family of the shapes world, or "shapes:N:FAMILY". Without a seed column row n gets a seed below 2^31 derived from `seed`
    and n, so equal prompts at different rows get different noise. limit: the first so many rows. Raises ValueError for
    columns, cells or seeds that are missing, too many or make no sense, FileNotFoundError for no file.
    """
    source = str(source)
    derived = lambda n: noise.derived(seed, n, "prompt") % 2**31
    if source.split(":")[0] == WORLD:
        rows = [
            Row(prompt, derived(n), family)
            for n, (prompt, family) in enumerate(_world(source, seed))
        ]
    elif Path(source).suffix.lower() in (".csv", ".tsv"):
        rows = _table(Path(source), derived)
    elif Path(source).suffix.lower() in (".json", ".jsonl"):
        raise ValueError(
            f"{source}: prompts are read from a text file, one a line, or from a CSV with a column prompt; not from JSON"
        )
    else:
        lines = [line.strip() for line in Path(source).read_text(encoding="utf-8-sig").splitlines()]
        rows = [Row(line, derived(n)) for n, line in enumerate(filter(None, lines))]
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be a whole number from 1 up, got {limit}")
    if not rows:
        raise ValueError(f"{source} holds no prompts")
    return rows[:limit]


def generate(
    sampler: Sampler | BestOf,
    rows: Sequence[Row],
    folder: str | Path,
    *,
    batch_size: int = 4,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    progress: bool = True,
    note: dict[str, Any] | None = None,
) -> Path:
    """Draw the pictures of `rows` that the folder does not hold yet; returns the folder.

    sampler: with any method, or a `best_of`; batch_size: rows computed together; negative_prompt, height, width: as for
    `Sampler.init`; note: kept in settings.json, never compared. Under `accelerate launch` or torchrun this process takes every
    WORLD_SIZE-th batch, from its RANK on; the processes never wait for each other. Raises ValueError for a folder made with
    other settings, prompts or seeds, naming what differs, and NonFiniteError for a picture that holds NaN.
    """
    whole("batch_size", batch_size, 1)
    folder, rows = Path(folder), list(rows)
    if not rows:
        raise ValueError("no prompts: give at least one row")
    rank, world = process()
    extra = {"negative_prompts": negative_prompt, "height": height, "width": width}
    settings = _settle(
        folder, rows, settings_of(sampler) | extra | {"batch_size": batch_size}, note or {}
    )
    batches = [
        range(start, min(start + batch_size, len(rows)))
        for start in range(0, len(rows), batch_size)
    ][rank::world]
    left = [batch for batch in batches if _missing(folder, batch)]
    total, to_come = sum(map(len, batches)), sum(map(len, left))
    with _bar(total, total - to_come, progress and rank == 0) as bar:
        for batch in left:
            if _missing(folder, batch):  # still: another process may have been at it
                pixels = _draw(sampler, [rows[n] for n in batch], extra)
                _alone(folder, settings)
                written = _fill(folder, batch, rows, pixels)
                _alone(folder, settings, written)
            bar.update(len(batch))
    if not _missing(folder, range(len(rows))):
        for stale in folder.glob("*.partial"):  # of processes that were killed while they wrote
            stale.unlink(missing_ok=True)
    return folder


def _alone(folder: Path, settings: dict, written: Sequence[int] = ()) -> None:
    """Raise ValueError where another process has put other settings into the folder meanwhile; what was written is taken back."""
    if read_settings(folder / SETTINGS) != settings:
        for n in written:
            picture(folder, n).unlink(missing_ok=True)
        raise ValueError(
            f"another process has begun to fill {folder} with other settings; give one of the two another folder"
        )


def process() -> tuple[int, int]:
    """(rank, number) of this process, from the RANK and WORLD_SIZE that accelerate launch and torchrun set; (0, 1) without them."""
    if not {"RANK", "WORLD_SIZE"} <= set(os.environ):
        return 0, 1
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not 0 <= rank < world:
        raise ValueError(f"RANK={rank} and WORLD_SIZE={world} do not fit each other")
    return rank, world


def picture(folder: Path, row: int) -> Path:
    """The file of a row."""
    return folder / f"{row:05d}.png"


def settings_of(sampler: Sampler | BestOf) -> dict[str, Any]:
    """All that a picture depends on besides prompt, seed and batch, as JSON-like data."""
    best = (
        {"n": sampler.n, "reward": describe(sampler.reward)}
        if isinstance(sampler, BestOf)
        else None
    )
    sampler = sampler.sampler if isinstance(sampler, BestOf) else sampler
    kind = sampler.backbone.device.type
    threads = (
        torch.get_num_threads() if kind == "cpu" else None
    )  # sums in another order differ in their last bits
    own = {
        "memory": {
            "micro batch": sampler.micro_batch,
            "decode batch": sampler.decode_batch,
            "gradient checkpointing": sampler.checkpointing,
        }
    }
    return {
        "sampler": describe(sampler),
        "best_of": best,
        "computed_on": kind,
        "threads": threads,
    } | own


def _settle(folder: Path, rows: Sequence[Row], settings: dict, note: dict) -> dict:
    """Write settings and manifest, or check that the folder's are these; returns the settings as they stand there."""
    from importlib.metadata import version

    import datekit

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; the pictures need a folder")
    old_pictures = any(
        folder.glob("*.png")
    )  # looked at first: another process writes settings, then pictures
    names = ("torch", "diffusers", "transformers", "pillow")
    settings = settings | {
        "versions": {"datekit": datekit.__version__} | {name: version(name) for name in names}
    }
    lines = [_line(n, row) for n, row in enumerate(rows)]
    settings = json.loads(json.dumps(settings)) | {
        "manifest": hashlib.sha256("\n".join(lines).encode()).hexdigest()
    }
    known = (
        old_pictures and (folder / SETTINGS).is_file()
    )  # with no picture yet, a first command that failed may be mended
    if known:
        found = read_settings(folder / SETTINGS)
        if (folder / MANIFEST).is_file():
            _same_rows(folder, (folder / MANIFEST).read_text(encoding="utf-8").splitlines(), lines)
        if other := differences(
            {"manifest": settings["manifest"]} | found, settings
        ):  # an earlier version kept the manifest's file alone
            raise ValueError(
                f"{folder} was made with other settings: {'; '.join(other)}. Give the same ones to go on, or another folder"
            )
    elif old_pictures:
        raise ValueError(
            f"{folder} holds pictures, but no {SETTINGS} that says how they were made; give another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if known and (folder / MANIFEST).is_file():
        return found
    _write(folder / MANIFEST, "".join(line + "\n" for line in lines).encode())
    content = {"settings": settings} | note | {"made on": facts(settings["computed_on"])}
    _write(folder / SETTINGS, (json.dumps(content, indent=1) + "\n").encode())
    return settings


def read_settings(path: Path) -> dict:
    """The settings of a folder. Raises ValueError for a file that is no such thing."""
    try:
        return dict(json.loads(path.read_text())["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} does not say how the pictures were made; give another folder"
        ) from None


def _same_rows(folder: Path, old: list[str], new: list[str]) -> None:
    for n, (was, now) in enumerate(zip(old, new)):
        if was != now:
            raise ValueError(
                f"{folder} was made for other prompts or seeds: row {n} was {was}, now {now}; give another folder"
            )
    if len(old) != len(new):
        raise ValueError(
            f"{folder} was made for {len(old)} prompts, now there are {len(new)}; give another folder"
        )


def _line(number: int, row: Row) -> str:
    content = {"file_name": picture(Path(), number).name, "prompt": row.prompt, "seed": row.seed}
    return json.dumps(
        content | ({} if row.family is None else {"family": row.family}), ensure_ascii=False
    )


def _missing(folder: Path, batch: Sequence[int]) -> list[int]:
    """Rows without a picture; an empty file, as a machine that lost power leaves it, is none."""
    return [
        n
        for n in batch
        if not picture(folder, n).is_file() or not picture(folder, n).stat().st_size
    ]


def _draw(sampler: Sampler | BestOf, rows: Sequence[Row], extra: dict) -> Tensor:
    """The pictures of a batch, (B, 3, H, W) in [0, 1]; unlike a `Run` it keeps no past."""
    prompts, seeds = [row.prompt for row in rows], [row.seed for row in rows]
    if isinstance(sampler, BestOf):
        return sampler.start(prompts, seeds=seeds, **extra).finish(progress=False).pixels
    state = sampler.init(prompts, seeds=seeds, **extra)
    while state.i < sampler.num_steps:
        state, _ = sampler.step(state)
    return sampler.decode(state.xt).float()


def _fill(folder: Path, batch: Sequence[int], rows: Sequence[Row], pixels: Tensor) -> list[int]:
    """Write those pictures of a batch that are missing; returns their rows."""
    for n, own in zip(batch, pixels, strict=True):
        if not own.isfinite().all():
            raise NonFiniteError(
                f"the picture of row {n} ({rows[n].prompt!r}, seed {rows[n].seed}) holds NaN or infinity"
            )
    missing = _missing(folder, batch)
    for n, image in zip(batch, to_pil(pixels), strict=True):
        if n in missing:
            data = io.BytesIO()
            image.save(data, format="PNG")
            _write(picture(folder, n), data.getvalue())
    return missing


def _write(path: Path, data: bytes) -> None:
    write_whole(path, lambda partial: partial.write_bytes(data))


def _bar(total: int, done: int, shown: bool):
    from tqdm.auto import tqdm

    hidden = not shown or bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(
        total=total,
        initial=done,
        desc="generate",
        unit="picture",
        **({"disable": True} if hidden else {}),
    )


def _world(source: str, seed: int) -> list[tuple[str, str]]:
    from ..shapes import captions

    parts = source.split(":")[1:]
    if not 1 <= len(parts) <= 2 or not parts[0].isdigit() or int(parts[0]) < 1:
        raise ValueError(
            f"prompts of the shapes world are asked for as 'shapes:N' or 'shapes:N:FAMILY', got {source!r}"
        )
    families = parts[1:] or captions.FAMILIES
    return [
        (prompt, family)
        for family in families
        for prompt in captions.prompts("heldout", int(parts[0]), seed, family=family, part="test")
    ]


def _table(path: Path, derived) -> list[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        header = {str(name).strip().lower(): name for name in table.fieldnames or ()}
        if len(header) < len(table.fieldnames or ()):
            raise ValueError(f"{path} has two columns of one name: {', '.join(table.fieldnames)}")
        column = next((header[name] for name in COLUMNS if name in header), None)
        if column is None:
            raise ValueError(
                f"{path} needs a column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; it has {', '.join(header) or 'no header'}"
            )
        found = list(table)
    rows = []
    for n, record in enumerate(found):
        if record[column] is None:
            raise ValueError(f"{path}, row {n}: no {column}")
        if None in record:
            raise ValueError(
                f"{path}, row {n} has more cells than the header; a prompt with a comma stands in quotes: {record[column]!r}, ..."
            )
        family = record[header["family"]] if "family" in header else None
        rows.append(
            Row(
                record[column].strip(),
                _seed(path, n, record[header["seed"]]) if "seed" in header else derived(n),
                family,
            )
        )
    return rows


def _seed(path: Path, row: int, text: str | None) -> int:
    try:
        seed = int(text or "")
    except ValueError:
        raise ValueError(
            f"{path}, row {row}: the seed must be a whole number, got {text!r}"
        ) from None
    if not 0 <= seed < 2**63:
        raise ValueError(f"{path}, row {row}: a seed is from 0 to 2**63 - 1, got {seed}")
    return seed
