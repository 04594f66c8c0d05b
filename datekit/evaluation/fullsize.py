"""What a step costs at full size: published architectures with random weights on a GPU, `datekit bench --full-size`."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from ..methods import DATE, Fixed
from ..sampler import Sampler
from . import architectures
from .machine import facts, write_json

STEPS = 3  # measured, after one that warms up
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def bench(out: str | Path, *, names=tuple(architectures.ARCHITECTURES), dtypes=("bf16",), batches=(1,), device: str | None = None) -> dict:
    """Measure and write to `out` (JSON), row by row: seconds and peak memory of a fixed and of an updated step.

    The reward is a small smooth one, so the figures are those of network and decoder. A row that does not fit says so.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    content = {"command": "datekit bench --full-size", **facts(), "steps": STEPS, "rows": []}
    for name in names:
        for dtype in dtypes:
            for batch in batches:
                content["rows"].append({"model": name, "dtype": dtype, "batch": batch, **_row(name, DTYPES[dtype], batch, device)})
                print(content["rows"][-1], flush=True)
                write_json(out, content)
    return content


def _row(name: str, dtype: torch.dtype, batch: int, device: str, pixels: int | None = None, **smaller) -> dict:
    try:
        backbone = architectures.build(name, device=device, dtype=dtype, **smaller)
        row = {}
        for label, method in (("fixed", Fixed()), ("updated", DATE(_mean_colour, rho=0.5))):
            row[label] = _steps(Sampler(backbone, method, num_steps=20), batch, pixels)
        return row
    except torch.OutOfMemoryError:
        return {"not measured": "out of memory"}
    finally:
        backbone = None  # before the next one is made
        if device == "cuda":
            torch.cuda.empty_cache()


def _steps(sampler: Sampler, batch: int, pixels: int | None) -> dict:
    cuda = sampler.backbone.device.type == "cuda"
    side = pixels or architectures.ARCHITECTURES[sampler.backbone.name].pixels
    run = sampler.start(["x"] * batch, seeds=range(batch), height=side, width=side)
    times = []
    for step in range(1 + STEPS):
        if cuda and step == 1:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        run.step()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        run = type(run)(sampler, run.state)  # keep no history: it is not part of a step's price
    if not run.state.xt.isfinite().all():
        raise FloatingPointError(f"{sampler.backbone.name} gave a latent that is not finite")
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    return {"seconds": round(statistics.median(times[1:]), 4), "peak GiB": None if peak is None else round(peak, 2)}


def _mean_colour(images: torch.Tensor, prompts) -> torch.Tensor:
    """A reward that costs nothing: how close the mean colour is to grey."""
    return 1 - ((images.mean((2, 3)) - 0.5) ** 2).sum(1)


def markdown(content: dict) -> str:
    """The measurements as a Markdown table."""
    head = ("model", "precision, batch", "fixed step, s", "updated step, s", "ratio", "peak, fixed, GiB", "peak, updated, GiB")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in content["rows"]:
        head = f"| {row['model']} | {row['dtype']}, {row['batch']} |"
        if "not measured" in row:
            lines.append(f"{head} {row['not measured']} | | | | |")
            continue
        fixed, updated = row["fixed"], row["updated"]
        lines.append(f"{head} {fixed['seconds']:.3f} | {updated['seconds']:.3f} | {updated['seconds'] / fixed['seconds']:.2f} | "
                     f"{fixed['peak GiB']} | {updated['peak GiB']} |")
    return "\n".join(lines)
