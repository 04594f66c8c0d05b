"""What a step costs on this machine with the shipped model: `datekit bench`. Medians of repeated runs, one process each."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from datekit.evaluation.machine import facts, peak_mib, write_json

REPEATS = 7


def bench(out: str | Path) -> dict:
    """Measure and write to `out` (JSON): seconds of a fixed and an updated step at batch 1 and 8, of a 50-step run,
    peak memory of each, and of `import datekit`; seconds by phase and floating-point operations of each kind of step."""
    rows = {name: _in_new_process(name) for name in _CASES}
    content = {
        "command": "datekit bench",
        **facts(),
        "repeats": REPEATS,
        "import datekit": _import_seconds(),
        "rows": rows,
        "phases": _in_new_process("phases", "phases()"),
    }
    write_json(out, content)
    return content


def measure(name: str) -> dict:
    """One case, in this process: median seconds and peak resident memory."""
    import torch

    run = _CASES[name]()
    run()  # the first call warms up
    times = []
    for _ in range(REPEATS if "run" not in name else 3):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    peak = peak_mib()
    return {
        "seconds": round(statistics.median(times), 4),
        "peak MiB": round(peak),
        "threads": torch.get_num_threads(),
    }


def phases(batch: int = 8) -> dict:
    """Each kind of step in turn, in this process: seconds by phase, GFLOP, and how the times and operations compare with a plain step.

    The kinds alternate, so that what else the machine does falls on all of them alike; CPU seconds of the process, not of the clock,
    as a ratio of medians.
    """
    import torch

    from studies.cost import flops, matrix_rate, step_cost

    kinds = _kinds(batch)
    for call, *_ in kinds.values():
        call()
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(2 * REPEATS):
        for name, (call, *_) in kinds.items():
            began = time.process_time()
            call()
            spent[name].append(time.process_time() - began)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    work = {name: flops(call) for name, (call, *_) in kinds.items()}
    rows = {
        name: step_cost(call, backbone, reward, REPEATS)
        | {
            "CPU time / plain": round(medians[name] / medians[_PLAIN], 3),
            "operations / plain": round(work[name] / work[_PLAIN], 3),
        }
        for name, (call, backbone, reward) in kinds.items()
    }
    rate = matrix_rate(torch.device("cpu"), torch.float32)
    for row in rows.values():
        row["share of the matrix rate"] = round(row["GFLOP"] * 1e9 / row["seconds"] / rate, 3)
    return {"batch": batch, "matrix GFLOP/s": round(rate / 1e9, 1), "rows": rows}


_PLAIN = "fixed step"


def _kinds(batch: int) -> dict:
    """Name: what takes such a step, the backbone, the reward."""
    import datekit as dk

    from studies.cost import plain_step

    backbone, reward = dk.load("shapes", device="cpu"), dk.rewards.load("shapes-clip", device="cpu")
    sampler = lambda method: dk.Sampler(backbone, method, num_steps=50)
    state = sampler(dk.Fixed()).init(
        ["a red circle left of a blue square"] * batch, seeds=range(batch)
    )
    date = lambda **options: dk.DATE(reward, rho=1.0, **options)
    methods = {
        _PLAIN: dk.Fixed(),
        "updated step": date(),
        "updated step, two graphs": date(keep_graph=False),
        "updated step, resized decoder (half)": date(decoder=dk.decoders.Resized(0.5)),
        "updated step, linear decoder": date(decoder="linear"),
        "updated step, tiny decoder": date(decoder="tiny"),
    }
    stepping = lambda s: lambda: s.step(state)
    kinds = {
        name: (stepping(sampler(method)), backbone, method.reward)
        for name, method in methods.items()
    }
    plain = sampler(dk.Fixed())
    return kinds | {
        "one graph, unfrozen weights": (
            lambda: plain_step(plain, state, reward, 1.0),
            backbone,
            reward,
        )
    }


def markdown(content: dict) -> str:
    """The measurements as Markdown tables: cases, and, where they were measured, the phases of a step."""
    lines = ["| what | seconds | peak memory, MiB |", "|---|---|---|"]
    lines += [
        f"| {name} | {row['seconds']:.3f} | {row['peak MiB']} |"
        if row["seconds"] >= 5e-4
        else f"| {name} | | {row['peak MiB']} |"
        for name, row in content["rows"].items()
    ]
    lines.append(f"| `import datekit` | {content['import datekit']:.3f} | |")
    if "phases" in content:
        lines += ["", *_phase_table(content["phases"])]
    return "\n".join(lines)


def _phase_table(content: dict) -> list[str]:
    head = (
        f"step, batch {content['batch']}",
        "ms",
        "network",
        "decode",
        "reward",
        "backward",
        "GFLOP",
        "CPU time / plain",
        "operations / plain",
        "share of the matrix rate",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in content["rows"].items():
        cells = [
            f"{1000 * row['seconds']:.0f}",
            *(f"{1000 * value:.0f}" for value in row["phases"].values()),
            f"{row['GFLOP']:.1f}",
            f"{row['CPU time / plain']:.2f}",
            f"{row['operations / plain']:.2f}",
            f"{row['share of the matrix rate']:.0%}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _step(updated: bool, batch: int) -> Callable[[], Callable]:
    def build() -> Callable:
        sampler = _sampler(updated)
        state = sampler.init(["a red circle left of a blue square"] * batch, seeds=range(batch))
        return lambda: sampler.step(state)

    return build


def _run(updated: bool) -> Callable[[], Callable]:
    def build() -> Callable:
        sampler = _sampler(updated)
        return lambda: (
            sampler.start("a red circle left of a blue square", seeds=[0])
            .finish(progress=False)
            .pixels
        )

    return build


def _imports() -> Callable:
    import datekit.sampler
    import datekit.shapes.oracle  # noqa: F401

    return lambda: None


def _sampler(updated: bool):
    import datekit as dk

    method = (
        dk.DATE(dk.rewards.load("shapes-clip", device="cpu"), rho=1.0) if updated else dk.Fixed()
    )
    return dk.Sampler(dk.load("shapes", device="cpu"), method, num_steps=50)


_CASES: dict[str, Callable[[], Callable]] = {
    "libraries loaded, no model": _imports,
    "fixed step, batch 1": _step(False, 1),
    "updated step, batch 1": _step(True, 1),
    "fixed step, batch 8": _step(False, 8),
    "updated step, batch 8": _step(True, 8),
    "50-step run, fixed, batch 1": _run(False),
    "50-step run, every step updated, batch 1": _run(True),
}


def _in_new_process(name: str, call: str | None = None) -> dict:
    call = call or f"measure({name!r})"
    code = f"import json; from studies.bench import measure, phases; print(json.dumps({call}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _import_seconds() -> float:
    code = "import time; t = time.perf_counter(); import datekit; print(time.perf_counter() - t)"
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True
            ).stdout
        )
        for _ in range(REPEATS)
    ]
    return round(statistics.median(times), 4)
