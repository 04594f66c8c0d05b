"""What a step costs at full size: published architectures with random weights on a GPU, `datekit bench --full-size`."""

from __future__ import annotations

from pathlib import Path

import torch

from ..decoders import apply
from ..estimates import advice
from ..methods import DATE, Fixed
from ..sampler import Sampler
from . import architectures
from .cost import matrix_rate, plain_step, step_cost
from .machine import facts, write_json

STEPS = 3  # measured, after one that warms up
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def bench(out: str | Path, *, names=tuple(architectures.ARCHITECTURES), dtypes=("bf16",), batches=(1,), device: str | None = None) -> dict:
    """Measure and write to `out` (JSON), row by row: seconds by phase, GFLOP and peak memory of a fixed and of an updated step, of a fast one
    (linear decoder), of one in little memory (two graphs, one sample at a time, checkpointing), and of a plain implementation.

    The reward is a small smooth one, so the figures are those of network and decoder. A row that does not fit says what it would need; one
    without a GPU says that it was not measured.
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
    if device == "cuda" and not torch.cuda.is_available():
        return {"not measured": "no CUDA device"}
    backbone, row = None, {}
    try:
        backbone = architectures.build(name, device=device, dtype=dtype, **smaller)
        for label, (method, settings) in _variants(backbone).items():
            row[label] = _steps(Sampler(backbone, method, num_steps=20, **settings), batch, pixels, plain=label == "plain")
        rate = matrix_rate(backbone.device, dtype)
        for cost in row.values():
            cost["share of the matrix rate"] = round(cost["GFLOP"] * 1e9 / cost["seconds"] / rate, 3)
        return row | {"matrix TFLOP/s": round(rate / 1e12, 2)}
    except torch.OutOfMemoryError:
        told = {} if backbone is None else {"needs": advice(backbone, DATE(_mean_colour), batch)}
        return row | {"not measured": "out of memory", **told}
    finally:
        backbone = None  # before the next one is made
        if device == "cuda":
            torch.cuda.empty_cache()


def _variants(backbone) -> dict:
    """Label: method and settings of the sampler."""
    channels, factor = backbone.latent_shape()[0], backbone.pipe.vae_scale_factor
    weight = 0.02 * torch.randn(3 * factor**2, 9 * channels + 1, generator=torch.Generator().manual_seed(0)).to(backbone.device)
    linear = lambda latents: apply(weight, latents, factor)  # what it costs does not depend on what it was fitted to
    return {
        "fixed": (Fixed(), {}), "updated": (DATE(_mean_colour, rho=0.5), {}),
        "two graphs": (DATE(_mean_colour, rho=0.5, keep_graph=False), {}),
        "little memory": (DATE(_mean_colour, rho=0.5, keep_graph=False), {"micro_batch": 1, "checkpointing": True}),
        "fast": (DATE(_mean_colour, rho=0.5, decoder=linear), {}), "plain": (Fixed(), {}),
    }  # fmt: skip


def _steps(sampler: Sampler, batch: int, pixels: int | None, plain: bool = False) -> dict:
    backbone = sampler.backbone
    side = pixels or architectures.ARCHITECTURES[backbone.name].pixels
    state = sampler.init(["x"] * batch, seeds=range(batch), height=side, width=side)
    call = (lambda: plain_step(sampler, state, _mean_colour)) if plain else lambda: sampler.step(state)[0].xt
    call()  # a first update measures what its graphs hold
    if not call().isfinite().all():
        raise FloatingPointError(f"{backbone.name} gave a latent that is not finite")
    return step_cost(call, backbone, repeats=STEPS)


def _mean_colour(images: torch.Tensor, prompts) -> torch.Tensor:
    """A reward that costs nothing: how close the mean colour is to grey."""
    return 1 - ((images.mean((2, 3)) - 0.5) ** 2).sum(1)


def markdown(content: dict) -> str:
    """The measurements as a Markdown table: seconds of a step and the peak of GPU memory of each kind, and what was not measured."""
    kinds = {"fixed": "fixed", "updated": "updated", "two graphs": "two graphs", "little memory": "little memory", "fast": "linear decoder",
             "plain": "one graph, unfrozen"}
    head = ("model", "precision, batch", *(f"{words}: s, GiB" for words in kinds.values()), "updated / fixed", "updated / one graph")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in content["rows"]:
        cells = [row["model"], f"{row['dtype']}, {row['batch']}"]
        cells += [f"{row[kind]['seconds']:.3f}, {row[kind]['peak GiB']}" if kind in row else row.get("not measured", "") for kind in kinds]
        ratio = lambda a, b, row=row: f"{row[a]['seconds'] / row[b]['seconds']:.2f}" if a in row and b in row else ""
        lines.append(f"| {' | '.join([*cells, ratio('updated', 'fixed'), ratio('updated', 'plain')])} |")
    return "\n".join(lines)
