"""Pictures of many prompts in a folder; stopped and run again, by one process or several, the same.

    generate(sampler, read_prompts("prompts.csv", seed=0), "pictures/date")

The folder holds `settings.json`, `metadata.jsonl` and the pictures 00000.png, 00001.png, ... A
picture depends on its prompt, its seed and, in its last bits, on the batch that it is computed in.
So batches are consecutive rows of the prompts, whatever is there already and however many processes
share them. All that could change a bit (settings, versions, kind of device, CPU threads) must be as
it was when the folder was begun.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..best_of_n import BestOf
from ..errors import NonFiniteError, whole
from ..files import write_whole
from ..sampler import Sampler
from ..serialize import describe, differences
from ..types import to_pil
from .folders import MANIFEST, SETTINGS, manifest_of, picture, read_settings
from .machine import facts
from .prompts import Row

PACKAGES = ("datekit", "torch", "diffusers", "transformers", "pillow")


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
    """Draw the pictures of `rows` that the folder does not hold yet, and return the folder.

    sampler: a sampler with any method, or a `best_of`; batch_size: rows computed together;
    negative_prompt, height, width: as for `Sampler.init`; note: kept in settings.json and never
    compared. Under `accelerate launch` or torchrun, process r of n takes every n-th batch from the
    r-th on, and the processes never wait for each other. Raises ValueError for a folder that was
    made with other settings, prompts or seeds, naming what differs, and NonFiniteError for a
    picture that holds NaN.
    """
    whole("batch_size", batch_size, 1)
    folder, rows = Path(folder), list(rows)
    if not rows:
        raise ValueError("no prompts: give at least one row")
    rank, world = process()
    extra = {"negative_prompts": negative_prompt, "height": height, "width": width}
    content = _content(sampler, rows, extra | {"batch_size": batch_size}, note or {})
    if folder.exists():
        _check(folder, content["settings"], rows)
    starts = range(0, len(rows), batch_size)[rank::world]
    batches = [range(start, min(start + batch_size, len(rows))) for start in starts]
    hidden = rank > 0 or not progress or "TQDM_DISABLE" in os.environ
    total = sum(map(len, batches))
    with tqdm(total=total, desc="generate", unit="picture", disable=hidden) as bar:
        for batch in batches:
            if _missing(folder, batch):
                pixels = _draw(sampler, [rows[n] for n in batch], extra)
                _begin(folder, content, rows)
                _fill(folder, batch, rows, pixels)
            bar.update(len(batch))
    if not _missing(folder, range(len(rows))):
        _begin(folder, content, rows)  # writes a manifest that was lost
        for stale in folder.glob("*.partial"):  # of processes that were killed while they wrote
            stale.unlink(missing_ok=True)
    return folder


def process() -> tuple[int, int]:
    """The rank of this process and the number of all, as accelerate launch or torchrun set them.

    They stand in the variables RANK and WORLD_SIZE; without these it is (0, 1).
    """
    if not {"RANK", "WORLD_SIZE"} <= set(os.environ):
        return 0, 1
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not 0 <= rank < world:
        raise ValueError(f"RANK={rank} and WORLD_SIZE={world} do not fit each other")
    return rank, world


def settings_of(sampler: Sampler | BestOf) -> dict[str, Any]:
    """All that a picture depends on besides prompt, seed and batch, as JSON-like data."""
    best = None
    if isinstance(sampler, BestOf):
        best = {"n": sampler.n, "reward": describe(sampler.reward)}
        sampler = sampler.sampler
    kind = sampler.backbone.device.type
    memory = dataclasses.asdict(sampler.memory)
    return {
        "sampler": describe(sampler),
        "memory": {name.replace("_", " "): value for name, value in memory.items()},
        "best_of": best,
        "model": sampler.backbone.source,
        "computed_on": kind,
        # sums in another order differ in their last bits
        "threads": torch.get_num_threads() if kind == "cpu" else None,
        "versions": {name: version(name) for name in PACKAGES},
    }


def _content(sampler, rows: Sequence[Row], extra: dict, note: dict) -> dict:
    """The content of settings.json. Its part "settings" must stay as it is."""
    manifest = hashlib.sha256(manifest_of(rows).encode()).hexdigest()
    settings = settings_of(sampler) | extra | {"manifest": manifest}
    settings = json.loads(json.dumps(settings))
    return {"settings": settings} | note | {"made on": facts(settings["computed_on"])}


def _check(folder: Path, settings: dict, rows: Sequence[Row]) -> None:
    """Raise ValueError where the folder was begun with other settings or prompts."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; the pictures need a folder")
    if not (folder / SETTINGS).exists():
        if any(folder.glob("*.png")):
            raise ValueError(
                f"{folder} holds pictures, but no {SETTINGS} that says how they were made; "
                "give another folder"
            )
        return
    before = read_settings(folder)
    if before.get("manifest") != settings["manifest"] and (folder / MANIFEST).is_file():
        old = (folder / MANIFEST).read_text(encoding="utf-8").split("\n")
        new = manifest_of(rows).split("\n")
        for n, (was, now) in enumerate(itertools.zip_longest(old, new)):
            if was != now:
                raise ValueError(
                    f"{folder} was made for other prompts or seeds: row {n} was {was or 'none'}, "
                    f"now {now or 'none'}; give another folder"
                )
    if other := differences(before, settings):
        raise ValueError(
            f"{folder} was made with other settings: {'; '.join(other)}. "
            "Give the same ones to go on, or another folder"
        )


def _begin(folder: Path, content: dict, rows: Sequence[Row]) -> None:
    """Write settings and manifest where they are missing; of several processes the first decides.

    Raises ValueError where another process has begun the folder with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    _create(folder / SETTINGS, text.encode())
    _check(folder, content["settings"], rows)
    if not (folder / MANIFEST).is_file():
        _write(folder / MANIFEST, manifest_of(rows).encode())


def _create(path: Path, data: bytes) -> None:
    """Make a file, whole, unless it exists."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        try:
            os.link(partial, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links: the last of two processes wins
            if not path.exists():
                os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    write_whole(path, lambda partial: partial.write_bytes(data))


def _missing(folder: Path, batch: Sequence[int]) -> list[int]:
    """Rows without a picture; an empty file, as a machine that lost power leaves it, is none."""
    files = [(n, picture(folder, n)) for n in batch]
    return [n for n, file in files if not file.is_file() or not file.stat().st_size]


def _draw(sampler: Sampler | BestOf, rows: Sequence[Row], extra: dict) -> Tensor:
    """The pictures of a batch, (B, 3, H, W) in [0, 1]; unlike a `Run` it keeps no past."""
    prompts, seeds = [row.prompt for row in rows], [row.seed for row in rows]
    if isinstance(sampler, BestOf):
        return sampler.start(prompts, seeds=seeds, **extra).finish(progress=False).pixels
    state = sampler.init(prompts, seeds=seeds, **extra)
    while state.i < sampler.num_steps:
        state, _ = sampler.step(state)
    return sampler.decode(state.xt).float()


def _fill(folder: Path, batch: Sequence[int], rows: Sequence[Row], pixels: Tensor) -> None:
    """Write those pictures of a batch that are missing."""
    for n, own in zip(batch, pixels, strict=True):
        if not own.isfinite().all():
            raise NonFiniteError(
                f"the picture of row {n} ({rows[n].prompt!r}, seed {rows[n].seed}) "
                "holds NaN or infinity"
            )
    missing = _missing(folder, batch)
    for n, image in zip(batch, to_pil(pixels), strict=True):
        if n in missing:
            data = io.BytesIO()
            image.save(data, format="PNG")
            _write(picture(folder, n), data.getvalue())
