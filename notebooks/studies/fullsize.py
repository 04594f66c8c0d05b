"""What a step costs at full size: published architectures with random weights on a GPU, `datekit bench --full-size`."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path

import torch

from datekit.rewards.decoders import Resized, apply
from datekit.estimates import GIB, estimate
from datekit.memory import out_of_memory
from datekit.methods import DATE, Fixed
from datekit.sampler import Sampler
from studies import architectures
from studies.cost import matrix_rate, plain_step, step_cost
from datekit.evaluation.machine import facts, write_json

STEPS = 3  # measured, after one that warms up
REWARD_SIDE = 224  # pixels that the published rewards see
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def bench(
    out: str | Path,
    *,
    names=tuple(architectures.ARCHITECTURES),
    cases=(("bf16", 1),),
    device: str | None = None,
) -> dict:
    """Measure and write to `out` (JSON), row by row: seconds by phase, GFLOP and peak memory of a fixed and of an updated step, of one in
    little memory (two graphs, one sample at a time, checkpointing), of fast ones (cheaper decoders), and of a plain implementation.

    cases: of each model, (precision, batch). Nothing is chosen by free memory, so that each figure is that of what it is called. Rows that
    `out` has already from this machine and these versions stay as they are. The reward is a small smooth one, so the figures are
    those of network and decoder. What fails or does not fit says why, and the rest goes on. Without a GPU a row says that no time was
    measured, and holds what `dk.estimate` counts on tensors without numbers. Raises ValueError where `out` holds times of another machine.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = (
        torch.backends.cuda.matmul.allow_tf32
    )  # one precision for convolutions and products
    content = {
        "command": "datekit bench --full-size",
        **facts(device),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "steps": STEPS,
    }
    rows = _kept(Path(out), content)
    order = lambda case: (list(architectures.ARCHITECTURES).index(case[0]), *case[1:])
    for name, dtype, batch in ((name, *case) for name in names for case in cases):
        if (name, dtype, batch) not in rows:
            rows[name, dtype, batch] = {
                "model": name,
                "dtype": dtype,
                "batch": batch,
                **_row(name, DTYPES[dtype], batch, device),
            }
            print(rows[name, dtype, batch], flush=True)
        write_json(out, content | {"rows": [rows[case] for case in sorted(rows, key=order)]})
    return json.loads(Path(out).read_text())


def _kept(out: Path, content: dict) -> dict[tuple, dict]:
    """Rows of an earlier call by model, precision and batch, where all but its date was the same; without those in which something failed
    other than for memory, which are tried again."""
    before = json.loads(out.read_text()) if out.is_file() else {"rows": []}
    if all(before.get(name) == value for name, value in content.items() if name != "date"):
        return {
            (row["model"], row["dtype"], row["batch"]): row
            for row in before["rows"]
            if not _broken(row)
        }
    if any(_timed(row) for row in before["rows"]):
        raise ValueError(
            f"{out} holds times of {before['hardware']}, torch {before['torch']}; give another --out, or remove it first"
        )
    return {}


def _broken(row: dict) -> bool:
    return any(
        ": " in cost.get("not measured", "")
        for cost in (row, *row.values())
        if isinstance(cost, dict)
    )


def _timed(row: dict) -> list[dict]:
    """What was measured of a row, kind by kind."""
    return [cost for cost in row.values() if isinstance(cost, dict) and "seconds" in cost]


def cases() -> dict:
    """What the command measures: both precisions, one picture and four; without a GPU, where it only counts, fewer."""
    counted = (("bf16", 1), ("fp32", 1), ("fp32", 4))
    return {
        "device": "cuda",
        "cases": (*counted, ("bf16", 4)) if torch.cuda.is_available() else counted,
    }


def _row(
    name: str, dtype: torch.dtype, batch: int, device: str, pixels: int | None = None, **smaller
) -> dict:
    if device == "cuda" and not torch.cuda.is_available():
        return {
            "not measured": "no CUDA device",
            "counted": _counted(
                architectures.build(name, device="meta", dtype=dtype, **smaller), batch
            ),
        }
    backbone, row = None, {}
    try:
        backbone = architectures.build(name, device=device, dtype=dtype, **smaller)
        for label, (method, settings) in _variants(backbone).items():
            settings = {
                "micro_batch": batch,
                "decode_batch": batch,
                "checkpointing": False,
            } | settings  # nothing is left to be chosen
            try:
                row[label] = _steps(
                    Sampler(backbone, method, num_steps=20, **settings),
                    batch,
                    pixels,
                    plain=label == "plain",
                )
            except Exception as error:  # whatever it is, the other kinds can be measured
                row[label] = _failed(error)
            _emptied(device)
        rate = matrix_rate(backbone.device, dtype)
        for cost in _timed(row):
            cost["share of the matrix rate"] = round(
                cost["GFLOP"] * 1e9 / cost["seconds"] / rate, 3
            )
        return row | {"matrix TFLOP/s": round(rate / 1e12, 2)}
    except Exception as error:  # the other models can be measured
        return row | _failed(error)
    finally:
        backbone = None  # before the next one is made
        _emptied(device)


def _failed(error: Exception) -> dict:
    text = " ".join(str(error).split())[:500]
    return (
        {"not measured": "out of memory", "why": text}
        if out_of_memory(error)
        else {"not measured": f"{type(error).__name__}: {text}"}
    )


def _emptied(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _variants(backbone) -> dict:
    """Label: method and settings of the sampler."""
    date = lambda **settings: DATE(_mean_colour, rho=0.5, **{"keep_graph": True} | settings)
    seen = min(1.0, REWARD_SIDE / backbone.image_size()[0])
    return {
        "fixed": (Fixed(), {}), "updated": (date(), {}), "two graphs": (date(keep_graph=False), {}),
        "pictures one at a time": (date(), {"decode_batch": 1}),
        "little memory": (date(keep_graph=False), {"micro_batch": 1, "checkpointing": True}),
        "fast": (date(decoder=_linear(backbone)), {}), "tiny": (date(decoder=_tiny(backbone)), {}),
        "resized": (date(decoder=Resized(seen)), {}), "plain": (Fixed(), {}),
    }  # fmt: skip


def _tiny(backbone):
    """diffusers' small autoencoder as published for the large models, with random weights."""
    from diffusers import AutoencoderTiny

    with torch.device(backbone.device):
        return AutoencoderTiny(latent_channels=backbone.latent_shape()[0])


def _linear(backbone) -> Callable[[torch.Tensor], torch.Tensor]:
    """A linear decoder; what it costs does not depend on what it was fitted to."""
    channels, factor = backbone.latent_shape()[0], backbone.pipe.vae_scale_factor
    weight = 0.02 * torch.randn(
        3 * factor**2, 9 * channels + 1, generator=torch.Generator().manual_seed(0)
    ).to(backbone.device)
    return lambda latents: apply(weight, latents, factor)


def _counted(backbone, batch: int) -> dict:
    """GiB with weights and TFLOP of a step of each kind."""
    found = {}
    for label, (method, settings) in _variants(backbone).items():
        if label == "plain":
            continue
        counts = estimate(backbone, method, batch, **settings)
        work = counts.plain_operations if counts.updated is None else counts.updated_operations
        found[label] = {
            "GiB": round((counts.weights + counts.step) / GIB, 2),
            "TFLOP": round(work / 1e12, 3),
        }
        if label == "fixed":  # whose memory, in a whole run, is that of the pictures at the end
            found["plain sampling"] = {
                "GiB": round(counts.total / GIB, 2),
                "TFLOP": round(work / 1e12, 3),
            }
    return found


def _steps(sampler: Sampler, batch: int, pixels: int | None, plain: bool = False) -> dict:
    backbone = sampler.backbone
    side = pixels or architectures.ARCHITECTURES[backbone.name].pixels
    state = sampler.init(["x"] * batch, seeds=range(batch), height=side, width=side)
    call = (
        (lambda: plain_step(sampler, state, _mean_colour))
        if plain
        else lambda: sampler.step(state)[0].xt
    )
    call()  # a first update measures what its graphs hold
    if not call().isfinite().all():
        raise FloatingPointError(f"{backbone.name} gave a latent that is not finite")
    return step_cost(call, backbone, sampler.method.reward, repeats=STEPS)


def _mean_colour(images: torch.Tensor, prompts) -> torch.Tensor:
    """A reward that costs nothing: how close the mean colour is to grey."""
    return 1 - ((images.mean((2, 3)) - 0.5) ** 2).sum(1)


def markdown(content: dict) -> str:
    """The measurements as Markdown tables: what was measured on a GPU, and what was only counted."""
    tables = []
    if measured := [row for row in content["rows"] if "counted" not in row]:
        tables.append(_measured_table(measured))
    if counted := [row for row in content["rows"] if "counted" in row]:
        tables.append(_counted_table(counted))
    return "\n\n".join("\n".join(lines) for lines in tables)


_KINDS = {"fixed": "fixed", "plain sampling": "with the pictures at the end", "updated": "updated", "two graphs": "two graphs",
          "pictures one at a time": "pictures one at a time",
          "little memory": "little memory", "fast": "linear decoder", "tiny": "tiny decoder", "resized": "resized decoder",
          "plain": "one graph, unfrozen"}  # fmt: skip
_MEASURED = {
    kind: words for kind, words in _KINDS.items() if kind != "plain sampling"
}  # which is only counted


def _measured_table(rows: list[dict]) -> list[str]:
    """Seconds of a step, the peak of GPU memory and the share of the matrix rate of each kind, and why what was not measured was not."""
    head = ("model", "precision, batch", *(f"{words}: s, GiB (peak), share of the matrix rate" for words in _MEASURED.values()),
            "updated / fixed", "updated / one graph")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cost = {kind: row[kind] for kind in _MEASURED if "seconds" in row.get(kind, {})}
        why = lambda kind, row=row: row.get(kind, row).get("not measured", "")
        cells = [row["model"], f"{row['dtype']}, {row['batch']}"]
        told = lambda kind, cost=cost: (
            "{seconds:.3f}, {peak GiB}, {share of the matrix rate:.0%}".format(**cost[kind])
        )
        cells += [told(kind) if kind in cost else why(kind) for kind in _MEASURED]
        ratio = lambda a, b, cost=cost: (
            f"{cost[a]['seconds'] / cost[b]['seconds']:.2f}" if {a, b} <= set(cost) else ""
        )
        lines.append(
            f"| {' | '.join([*cells, ratio('updated', 'fixed'), ratio('updated', 'plain')])} |"
        )
    return lines


def _counted_table(rows: list[dict]) -> list[str]:
    """GiB and operations of each kind, both counted, the latter as multiples of a plain step's; the time is not measured."""
    kinds = [kind for kind in _KINDS if kind in rows[0]["counted"]]
    head = (
        "model",
        "precision, batch",
        *(
            f"{_KINDS[kind]}: GiB (estimated), {'TFLOP' if kind == 'fixed' else 'x TFLOP'}"
            for kind in kinds
        ),
        "time",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        found, plain = row["counted"], row["counted"]["fixed"]["TFLOP"]
        work = {
            kind: f"{plain:.2f}" if kind == "fixed" else f"{found[kind]['TFLOP'] / plain:.2f}"
            for kind in kinds
        }
        cells = [
            row["model"],
            f"{row['dtype']}, {row['batch']}",
            *(f"{found[kind]['GiB']:.1f}, {work[kind]}" for kind in kinds),
        ]
        lines.append(f"| {' | '.join(cells)} | not measured: {row['not measured']} |")
    return lines
