"""What a step costs at full size: published architectures with random weights, on a GPU."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import datekit as dk
from datekit.backbones import Backbone
from datekit.estimates import estimate, peak
from datekit.evaluation.folders import write_json
from datekit.memory import out_of_memory
from datekit.methods import DATE, Fixed
from studies import architectures
from studies.cheap_decoders import Resized
from studies.cost import call_cost, flops, matrix_rate, plain_step, step_cost
from studies.machine import facts
from studies.results import FOLDER, grid

STEPS = 3  # measured, after one that warms up
REWARD_SIDE = 224  # pixels that the published rewards see
GIB = 2**30
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
CASES = (("bf16", 1), ("fp32", 1), ("fp32", 4), ("bf16", 4))  # of each model: precision, batch
KINDS = {
    "fixed": "fixed",
    "plain sampling": "with the pictures at the end",
    "updated": "updated",
    "two graphs": "two graphs",
    "pictures one at a time": "pictures one at a time",
    "little memory": "little memory",
    "fast": "linear decoder",
    "tiny": "tiny decoder",
    "resized": "resized decoder",
    "plain": "one graph, unfrozen",
}
MEASURED = {kind: words for kind, words in KINDS.items() if kind != "plain sampling"}


def run(
    out: str | Path | None = None,
    *,
    names=tuple(architectures.ARCHITECTURES),
    cases=CASES,
    device: str | None = None,
) -> dict:
    """Measure and write to `out` (JSON), row by row: the cost of each of `KINDS`.

    cases: of each model, (precision, batch). Rows that `out` has from this machine and these
    versions stay, but those in which something failed other than for memory. The reward is a small
    smooth one, so the figures are those of network and decoder. What fails or does not fit says
    why, and the rest goes on. Without a GPU a row holds what `dk.estimate` counts. Raises
    ValueError where `out` holds times of another machine.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # one precision for convolutions and products
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    content = {
        "command": "PYTHONPATH=notebooks python -m studies bench-gpu",
        **facts(device),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "steps": STEPS,
    }
    out = Path(out or FOLDER / "full-size.json")
    rows = _kept(out, content)
    places = list(architectures.ARCHITECTURES)
    for name in names:
        for dtype, batch in cases:
            if (name, dtype, batch) not in rows:
                about = {"model": name, "dtype": dtype, "batch": batch}
                row = about | measure(name, DTYPES[dtype], batch, device)
                print(row, flush=True)
                rows[name, dtype, batch] = row
            ordered = sorted(rows, key=lambda case: (places.index(case[0]), *case[1:]))
            write_json(out, content | {"rows": [rows[case] for case in ordered]})
    return json.loads(out.read_text())


def _kept(out: Path, content: Mapping) -> dict[tuple, dict]:
    before = json.loads(out.read_text()) if out.is_file() else {"rows": []}
    same = all(before.get(k) == v for k, v in content.items() if k not in ("date", "command"))
    if not same and any(_timed(row) for row in before["rows"]):
        raise ValueError(
            f"{out} holds times of {before['hardware']}, torch {before['torch']}; give another "
            "--out, or remove it first"
        )
    rows = {(row["model"], row["dtype"], row["batch"]): row for row in before["rows"]}
    return {case: row for case, row in rows.items() if same and not _broken(row)}


def _broken(row: Mapping) -> bool:
    """Whether something failed other than for memory."""
    costs = [row, *(cost for cost in row.values() if isinstance(cost, dict))]
    return any(": " in cost.get("not measured", "") for cost in costs)


def _timed(row: Mapping) -> list[dict]:
    """What was measured of a row, kind by kind."""
    return [cost for cost in row.values() if isinstance(cost, dict) and "seconds" in cost]


def measure(
    name: str, dtype: torch.dtype, batch: int, device: str, pixels: int | None = None, **smaller
) -> dict:
    """The cost of each kind of step of a model; pixels, smaller: of image and network, in tests."""
    if device == "cuda" and not torch.cuda.is_available():
        backbone = architectures.build(name, device="meta", dtype=dtype, **smaller)
        return {"not measured": "no CUDA device", "counted": count(backbone, batch)}
    backbone, row = None, {}
    try:
        backbone = architectures.build(name, device=device, dtype=dtype, **smaller)
        for kind, (method, settings) in variants(backbone).items():
            try:
                sampler = dk.Sampler(backbone, method, num_steps=20, **settings)
                row[kind] = _cost(sampler, batch, pixels, by_hand=kind == "plain")
            except Exception as error:  # whatever it is, the other kinds can be measured
                row[kind] = _failure(error)
            _empty(device)
        rate = matrix_rate(backbone.device, dtype)
        for cost in _timed(row):
            share = cost["GFLOP"] * 1e9 / cost["seconds"] / rate
            cost["share of the matrix rate"] = round(share, 3)
        return row | {"matrix TFLOP/s": round(rate / 1e12, 2)}
    except Exception as error:  # the other models can be measured
        return row | _failure(error)
    finally:
        backbone = None  # before the next one is made
        _empty(device)


def _failure(error: Exception) -> dict:
    text = " ".join(str(error).split())[:500]
    if out_of_memory(error):
        return {"not measured": "out of memory", "why": text}
    return {"not measured": f"{type(error).__name__}: {text}"}


def _empty(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def variants(backbone: Backbone) -> dict[str, tuple]:
    """Of each kind of step the method and the settings of the sampler."""
    date = DATE(mean_colour, rho=0.5)
    seen = min(1.0, REWARD_SIDE / backbone.image_size()[0])
    little = {"keep_graph": False, "micro_batch": 1, "checkpointing": True}
    return {
        "fixed": (Fixed(), {}),
        "updated": (date, {}),
        "two graphs": (date, {"keep_graph": False}),
        "pictures one at a time": (date, {"decode_batch": 1}),
        "little memory": (date, little),
        "fast": (DATE(mean_colour, rho=0.5, decoder=_linear(backbone)), {}),
        "tiny": (DATE(mean_colour, rho=0.5, decoder=_tiny(backbone)), {}),
        "resized": (DATE(mean_colour, rho=0.5, decoder=Resized(seen)), {}),
        "plain": (Fixed(), {}),
    }


def mean_colour(images: Tensor, prompts) -> Tensor:
    """A reward that costs nothing: how close the mean colour is to grey."""
    return 1 - ((images.mean((2, 3)) - 0.5) ** 2).sum(1)


def _tiny(backbone: Backbone):
    """diffusers' small autoencoder as published for the large models, with random weights."""
    from diffusers import AutoencoderTiny

    with torch.device(backbone.device):
        tiny = AutoencoderTiny(latent_channels=backbone.latent_shape()[0])
    tiny.requires_grad_(False).eval()
    return lambda latents: tiny.decode(latents.to(tiny.dtype)).sample / 2 + 0.5


def _linear(backbone: Backbone) -> torch.nn.Module:
    """A linear decoder; what it costs does not depend on what it was fitted to."""
    channels, factor = backbone.latent_shape()[0], backbone.factor
    edges = {"padding": 1, "padding_mode": "replicate"}
    with torch.device(backbone.device):
        conv = torch.nn.Conv2d(channels, 3 * factor**2, 3, **edges)
    return torch.nn.Sequential(conv, torch.nn.PixelShuffle(factor)).requires_grad_(False)


class FusedAttention(TorchFunctionMode):
    """Inside, attention on the meta device is a GPU's fused one, which keeps no (L, L) matrix."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        attention = torch.nn.functional.scaled_dot_product_attention
        if func is not attention or args[0].device.type != "meta":
            return func(*args, **(kwargs or {}))
        return self.efficient(*args, **(kwargs or {}))

    def efficient(self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        """The kernel, and what it keeps for backward."""
        if attn_mask is not None:
            attn_mask = attn_mask.to(q.dtype).expand(*q.shape[:3], k.shape[2])
        backward = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, attn_mask, backward, dropout_p, is_causal, scale=scale
        )[0]


def count(backbone: Backbone, batch: int) -> dict:
    """GiB with weights and TFLOP of a step of each kind, counted on tensors without numbers."""
    result = {}
    for kind, (method, settings) in variants(backbone).items():
        if kind == "plain":
            continue
        with FusedAttention():
            counts = estimate(backbone, method, batch, **settings)
        sampler = dk.Sampler(backbone, method, **settings)
        state = sampler.init(["x"] * batch, seeds=range(batch))
        tflop = round(flops(lambda s=sampler, at=state: peak(s.step, at)) / 1e12, 3)
        step = counts.plain if kind == "fixed" else counts.updated
        gib = round((counts.weights + step) / GIB, 2)
        result[kind] = {"GiB": gib, "TFLOP": tflop}
        if kind == "fixed":  # whose memory, in a whole run, is that of the pictures at the end
            result["plain sampling"] = {"GiB": round(counts.total / GIB, 2), "TFLOP": tflop}
    return result


def _cost(sampler: dk.Sampler, batch: int, pixels: int | None, by_hand: bool) -> dict:
    backbone = sampler.backbone
    side = pixels or architectures.ARCHITECTURES[backbone.name].pixels
    state = sampler.init(["x"] * batch, seeds=range(batch), height=side, width=side)
    if by_hand:
        return call_cost(lambda: plain_step(sampler, state, mean_colour), backbone.device, STEPS)
    if not sampler.step(state)[0].xt.isfinite().all():
        raise FloatingPointError(f"{backbone.name} gave a latent that is not finite")
    return step_cost(sampler, state, repeats=STEPS)


def markdown(content: Mapping) -> str:
    """The measurements as tables: what was measured on a GPU, and what was only counted."""
    counted = [row for row in content["rows"] if "counted" in row]
    measured = [row for row in content["rows"] if "counted" not in row]
    tables = [_measured_table(measured)] if measured else []
    return "\n\n".join([*tables, *([_counted_table(counted)] if counted else [])])


def _measured_table(rows: list[dict]) -> str:
    titles = [f"{words}: s, GiB (peak), share of the matrix rate" for words in MEASURED.values()]
    head = ["model", "precision, batch", *titles, "updated / fixed", "updated / one graph"]
    lines = []
    for row in rows:
        cost = {kind: row[kind] for kind in MEASURED if "seconds" in row.get(kind, {})}
        cells = [row["model"], f"{row['dtype']}, {row['batch']}"]
        for kind in MEASURED:
            cells.append(_told(cost[kind]) if kind in cost else _why(row, kind))
        cells += [_ratio(cost, "updated", "fixed"), _ratio(cost, "updated", "plain")]
        lines.append(cells)
    return grid(head, lines)


def _told(cost: Mapping) -> str:
    share = cost["share of the matrix rate"]
    return f"{cost['seconds']:.3f}, {cost['peak GiB']}, {share:.0%}"


def _why(row: Mapping, kind: str) -> str:
    return row.get(kind, row).get("not measured", "")


def _ratio(cost: Mapping, a: str, b: str) -> str:
    return f"{cost[a]['seconds'] / cost[b]['seconds']:.2f}" if {a, b} <= set(cost) else ""


def _counted_table(rows: list[dict]) -> str:
    """GiB of each kind, and operations as multiples of a plain step's; no time is measured."""
    kinds = [kind for kind in KINDS if kind in rows[0]["counted"]]
    head = ["model", "precision, batch"]
    for kind in kinds:
        unit = "TFLOP" if kind == "fixed" else "x TFLOP"
        head.append(f"{KINDS[kind]}: GiB (estimated), {unit}")
    lines = []
    for row in rows:
        counted = row["counted"]
        plain = counted["fixed"]["TFLOP"]
        cells = [row["model"], f"{row['dtype']}, {row['batch']}"]
        for kind in kinds:
            work = counted[kind]["TFLOP"] / (1 if kind == "fixed" else plain)
            cells.append(f"{counted[kind]['GiB']:.1f}, {work:.2f}")
        lines.append([*cells, f"not measured: {row['not measured']}"])
    return grid([*head, "time"], lines)
