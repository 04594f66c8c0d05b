"""Pictures of many prompts in a folder; stopped and run again, by one process or several, the same.

    generate(sampler, read_prompts("prompts.csv", seed=0), "pictures/date")

The last bits of a picture depend on its batch. So batches are consecutive rows of the prompts,
whatever is there already and however many processes share them. All that could change a bit
(settings, versions, kind of device, CPU threads) must be as it was in the beginning.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..best_of_n import BestOf
from ..errors import whole
from ..feynman_kac import FKSteering
from ..files import write_whole
from ..reno import ReNO
from ..sampler import Sampler
from ..serialize import describe, differences
from ..tensors import to_pil
from .folders import (
    DIGEST,
    MANIFEST,
    SETTINGS,
    digest,
    is_whole_picture,
    manifest_of,
    picture,
    read_settings,
    save_picture,
    write_json,
)
from .prompts import Row

PACKAGES = ("datekit", "torch", "diffusers", "transformers", "pillow")


def generate(
    sampler: Sampler | BestOf | ReNO,
    rows: Sequence[Row],
    folder: str | Path,
    *,
    batch_size: int = 4,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
) -> Path:
    """Draw the pictures of `rows` that the folder does not hold yet, and return the folder.

    batch_size: rows computed together. Under `accelerate launch` or torchrun each of n processes
    takes every n-th batch, and they never wait for each other. Raises ValueError for a folder that
    was made with other settings, prompts or seeds, and NonFiniteError for a picture with NaN.
    """
    whole("batch_size", batch_size, 1)
    folder, rows = Path(folder), list(rows)
    if not rows or not all(isinstance(row, Row) for row in rows):
        raise ValueError("rows are Row(prompt, seed), one at least, as read_prompts gives them")
    if not isinstance(sampler, (Sampler, BestOf, ReNO)):
        known = "a dk.Sampler, a dk.best_of or a dk.ReNO"
        raise TypeError(f"generate takes {known}, got {sampler!r:.200}")
    rows = [Row(*describe([row.prompt, row.seed, row.family])) for row in rows]
    extra = {"negative_prompts": negative_prompt, "height": height, "width": width}
    settings = settings_of(sampler, rows) | describe(extra | {"batch_size": batch_size})
    folder.mkdir(parents=True, exist_ok=True)
    _check(folder, settings)
    hidden = "TQDM_DISABLE" in os.environ or os.environ.get("RANK", "0") != "0"
    for batch in tqdm(_batches(len(rows), batch_size), desc="generate", disable=hidden):
        if _missing(folder, batch):
            pixels = _draw(sampler, rows[batch.start : batch.stop], extra)
            images = to_pil(pixels, batch.start)
            _begin(folder, settings, rows)
            for n, image in zip(batch, images, strict=True):
                save_picture(image, folder, n)
    _begin(folder, settings, rows)  # writes a manifest that was lost
    return folder


def _batches(count: int, size: int) -> list[range]:
    """The rows that this process computes together, as accelerate launch or torchrun number it."""
    rank, world = 0, 1
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    starts = range(0, count, size)[rank::world]
    return [range(start, min(start + size, count)) for start in starts]


def settings_of(sampler: Sampler | BestOf | ReNO, rows: Sequence[Row]) -> dict[str, Any]:
    """All that pictures depend on besides their batch and its arguments, as JSON-like data."""
    best = None
    if not isinstance(sampler, Sampler):
        own = {name: value for name, value in vars(sampler).items() if name != "sampler"}
        best, sampler = describe(own), sampler.sampler
    kind = sampler.backbone.device.type
    return {
        "sampler": describe(sampler),
        "memory": repr(sampler.memory),
        "best_of": best,
        "model": sampler.backbone.source,
        "computed_on": kind,
        # sums in another order differ in their last bits
        "threads": torch.get_num_threads() if kind == "cpu" else None,
        "versions": {name: version(name) for name in PACKAGES},
        DIGEST: digest(manifest_of(rows).encode()),
    }


def _check(folder: Path, settings: dict) -> None:
    """Raise ValueError where the folder was begun with other settings or prompts."""
    if (folder / SETTINGS).exists():
        if other := differences(read_settings(folder), settings):
            raise ValueError(f"{folder} was made with other settings: {'; '.join(other)}")
    elif any(folder.glob("*.png")):
        raise ValueError(f"{folder} holds pictures, but no {SETTINGS} that says how they were made")


def _begin(folder: Path, settings: dict, rows: Sequence[Row]) -> None:
    """Write settings and manifest where they are missing, unless another process was first."""
    if not (folder / SETTINGS).exists():
        write_json(folder / SETTINGS, {"settings": settings}, replace=False)
    _check(folder, settings)
    path, manifest = folder / MANIFEST, manifest_of(rows).encode()
    if not path.is_file() or path.read_bytes() != manifest:
        write_whole(path, lambda file: file.write_bytes(manifest))


def _missing(folder: Path, batch: Sequence[int]) -> bool:
    """Whether a row has no whole picture."""
    return not all(is_whole_picture(picture(folder, n)) for n in batch)


def _draw(sampler: Sampler | BestOf | ReNO, rows: Sequence[Row], extra: dict) -> Tensor:
    """The pictures of a batch, (B, 3, H, W) in [0, 1]; unlike a `Run` it keeps no past."""
    prompts, seeds = [row.prompt for row in rows], [row.seed for row in rows]
    if not isinstance(sampler, Sampler):
        return sampler.start(prompts, seeds=seeds, **extra).finish(progress=False).pixels
    state = sampler.init(prompts, seeds=seeds, **extra)
    while state.i < sampler.num_steps:
        state, _ = sampler.step(state)
    xt = state.xt[sampler.best(state)] if isinstance(sampler, FKSteering) else state.xt
    return sampler.decode(xt).float()
