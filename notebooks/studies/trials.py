"""Trials: the fixed parts of a paired comparison on the shapes world. Prompts, noise and judges stay; what samples varies.

The guiding reward is what methods optimise; the held-out reward and the oracle only judge.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datekit import rewards
from datekit.backbones import load
from datekit.best_of_n import best_of
from datekit.methods import Method
from datekit.rewards.base import score
from datekit.sampler import Sampler
from studies.claims import CLAIMS, LETTERS, failure, shares
from datekit.evaluation.machine import write_json
from datekit.statistics import bootstrap

FIXED = "fixed"
COST = "processor seconds a picture"
UNIT = 1000  # every pair's values are kept as whole thousandths
MEASURES = ("guide", "heldout", "oracle")
TITLES = {"guide": "guiding reward", "heldout": "held-out reward", "oracle": "oracle: all right"}
JUDGES = {
    "guide": "shapes-clip",
    "heldout": "shapes-clip-heldout",
    "preference": "shapes-preference",
    "aesthetic": "shapes-aesthetic",
}


class Trials:
    """Backbone, judges, and prompts in batches, each prompt with a seed of its own.

    model: a name of `backbones.load`. steps: of sampling, the model's own number where left out. judged: by which of `JUDGES`, `judges`
    are these rewards by name.
    """

    judged: tuple[str, ...] = ("guide", "heldout")

    def __init__(
        self,
        model: str,
        prompts: list[str],
        seed: int,
        *,
        steps: int | None = None,
        batch: int = 16,
    ) -> None:
        self.backbone = load(model, device="cpu")
        self.steps = self.backbone.recommended.num_steps if steps is None else steps
        self.judges = {name: rewards.load(JUDGES[name]) for name in self.judged}
        self.guide, self.heldout = self.judges["guide"], self.judges["heldout"]
        self.prompts, self.batch = prompts, batch
        self.seeds = [seed * 1_000_003 + n for n in range(len(prompts))]

    def batches(self) -> Iterator[tuple[list[str], list[int]]]:
        """Prompts and seeds, a batch at a time."""
        for start in range(0, len(self.prompts), self.batch):
            yield self.prompts[start : start + self.batch], self.seeds[start : start + self.batch]

    def sample(self, method: Method, *, count: int = 1, **settings) -> Callable:
        """A function from a batch of prompts and seeds to pictures, (B, 3, H, W).

        settings: of the `Sampler`. count: the best of so many by the guiding reward, the first from the paired noise.
        """
        sampler = Sampler(self.backbone, method, **{"num_steps": self.steps} | settings)
        if count > 1:
            sampler = best_of(sampler, count, self.guide)
        return lambda prompts, seeds: (
            sampler.start(prompts, seeds=seeds).finish(progress=False).pixels
        )

    def norm(self) -> float:
        """||c_org||, averaged over the first 64 prompts."""
        return self.backbone.encode(self.prompts[:64]).sequence.flatten(1).norm(dim=1).mean().item()

    def judge(self, draw: Callable, pairs: int | None = None) -> dict:
        """Of the first `pairs` pairs (all by default): every judge's score, the oracle's verdict and its `claims.CLAIMS`, a letter for what
        is wrong (`claims.LETTERS`); and `times` of sampling, not of judging. With one thread clock and processor agree on an idle core,
        and other work on the machine lengthens the first alone."""
        from datekit.shapes.oracle import judge

        result: dict = {name: [] for name in (*self.judges, "oracle", *CLAIMS)} | {"failures": ""}
        spent: list[tuple[float, float, int]] = []
        for prompts, images in self.drawn(draw, spent, pairs):
            with torch.no_grad():
                for name, reward in self.judges.items():
                    result[name] += score(reward, images, prompts).tolist()
            verdicts = judge(images, prompts)
            result["oracle"] += [float(verdict.right) for verdict in verdicts]
            for name, values in shares(prompts, verdicts).items():
                result[name] += values
            result["failures"] += "".join(
                LETTERS[failure(*pair)] for pair in zip(prompts, verdicts, strict=True)
            )
        return result | times(spent)

    def drawn(
        self, draw: Callable, spent: list[tuple[float, float, int]], pairs: int | None = None
    ) -> Iterator[tuple[list[str], Tensor]]:
        """Prompts and their pictures, a batch at a time, of the first `pairs` pairs (all by default); `spent` receives for each batch the
        seconds by the clock and of the processor, and the number of pictures."""
        left = len(self.prompts) if pairs is None else pairs
        for prompts, seeds in self.batches():
            prompts, seeds = prompts[:left], seeds[:left]
            if not prompts:
                return
            left -= len(prompts)
            began = time.perf_counter(), time.process_time()
            images = draw(prompts, seeds)
            spent.append(
                (time.perf_counter() - began[0], time.process_time() - began[1], len(prompts))
            )
            yield prompts, images

    def timed(self, draw: Callable) -> dict[str, float]:
        """`times` of drawing the first batch."""
        spent: list[tuple[float, float, int]] = []
        for _ in self.drawn(draw, spent, self.batch):
            pass
        found = times(spent)
        return {name: round(found[name], 4) for name in ("seconds a picture", COST)} | {
            "seconds": found["seconds"]
        }


def times(spent: list[tuple[float, float, int]]) -> dict[str, float]:
    """Seconds in all, and a picture, by the clock and of the processor, the median over batches."""
    clock, processor = (statistics.median(batch[k] / batch[2] for batch in spent) for k in (0, 1))
    return {
        "seconds": sum(batch[0] for batch in spent),
        "seconds a picture": clock,
        COST: processor,
    }


class Notes:
    """Results so far, one entry a row, kept in a file beside `out` so that an interrupted study goes on; each settings have a file."""

    def __init__(self, out: Path, settings: dict) -> None:
        key = hashlib.blake2b(
            json.dumps(settings, sort_keys=True).encode(), digest_size=4
        ).hexdigest()
        self.out, self.path, self.settings = (
            out,
            out.with_name(f"{out.name}.{key}.progress"),
            settings,
        )
        self.content = json.loads(self.path.read_text())["results"] if self.path.is_file() else {}

    def get(self, name: str, measure: Callable[[], dict]) -> dict:
        """The result under a name, measured if it is not there yet."""
        if name not in self.content:
            self.content[name] = measure()
            write_json(self.path, {"settings": self.settings, "results": self.content})
            row = self.content[name]
            means = [f"{m} {sum(row[m]) / len(row[m]):.3f}" for m in MEASURES if m in row]
            print(f"{name}: " + ", ".join([*means, f"{row['seconds']:.0f} s"]), flush=True)
        return self.content[name]

    def finish(self, content: dict) -> dict:
        """The whole study, written to `out`; what was kept on the way is not needed any more."""
        write_json(self.out, content)
        self.path.unlink(missing_ok=True)
        return content


def best(rows: Mapping) -> Any:
    """The option whose row has the highest mean held-out reward, the first of equals; None of none."""
    return max(rows, key=lambda option: sum(rows[option]["heldout"]), default=None)


def intervals(
    row: Mapping, names: Iterable[str], base: Mapping | None = None
) -> dict[str, list[float]]:
    """Means with 95 % intervals, (mean, low, high) to four digits, and, given a base row, those of paired differences to it."""
    result = {name: _rounded(bootstrap(row[name])) for name in names}
    return (
        result
        if base is None
        else result
        | {f"{name} - {FIXED}": _rounded(bootstrap(row[name], minus=base[name])) for name in result}
    )


def _rounded(interval: Iterable[float]) -> list[float]:
    return [round(x, 4) for x in interval]


def summary(row: dict, base: dict | None = None) -> dict:
    """Means with 95 % intervals, (mean, low, high), and those of paired differences to the base row; seconds in all and a picture."""
    result = intervals(
        row, [name for name, values in row.items() if isinstance(values, list)], base
    )
    return (
        result
        | {"seconds": round(row["seconds"], 1)}
        | {name: round(row[name], 4) for name in ("seconds a picture", COST)}
    )


def packed(row: Mapping, measures: Iterable[str]) -> dict[str, dict[str, str]]:
    """Every pair's values of a row for a file of results, in whole 1/`UNIT`; `unpacked` reads them."""
    return {
        "values": {
            name: " ".join(str(round(UNIT * value)) for value in row[name]) for name in measures
        }
    }


def unpacked(row: Mapping, measure: str) -> np.ndarray:
    """A measure of every pair of a row of a file of results, (N,), to three decimals."""
    return np.array(row["values"][measure].split(), dtype=float) / UNIT


def cell(name: str, row: Mapping, measure: str, form: str) -> str:
    """A measure of a row of results for a table: its mean, and except in the base's own row the paired difference to that [interval]."""
    mean, gain = f"{row[measure][0]:{form}}", row.get(f"{measure} - {FIXED}")
    return (
        mean
        if name == FIXED or gain is None
        else f"{mean}, {gain[0]:+{form}} [{gain[1]:+{form}}, {gain[2]:+{form}}]"
    )


def table(
    rows: Mapping[str, Mapping],
    measures: Sequence[str] = MEASURES,
    *,
    head: str = "method",
    price: str = "s / picture",
) -> str:
    """Rows of results as a Markdown table: processor seconds a picture, and a `cell` for each measure. head, price: the first titles."""
    lines = [
        f"| {' | '.join((head, price, *(TITLES.get(name, name) for name in measures)))} |",
        "|---" * (2 + len(measures)) + "|",
    ]
    for name, row in rows.items():
        cells = [
            cell(name, row, measure, ".1%" if measure == "oracle" else ".3f")
            for measure in measures
        ]
        lines.append("| " + " | ".join([name, f"{row[COST]:.2f}", *cells]) + " |")
    return "\n".join(lines)


def fingerprint(model: str) -> str:
    """What the shipped weights of a model and of the rewards are, in 16 letters: results of other weights are other results."""
    from datekit.backbones import SHIPPED
    from datekit.shapes import WEIGHTS

    found = hashlib.blake2b(digest_size=8)
    for folder in (SHIPPED[model], *(folder for _, folder in rewards.SHIPPED.values() if folder)):
        for path in sorted(path for path in (WEIGHTS / folder).rglob("*.safetensors")):
            found.update(path.read_bytes())
    return found.hexdigest()
