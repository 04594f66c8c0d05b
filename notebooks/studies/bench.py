"""What a step costs on this machine with the shipped model: time, memory and operations."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

import datekit as dk
from datekit.evaluation.folders import write_json
from studies.cheap_decoders import Linear, Resized
from studies.cost import call_cost, flops, matrix_rate, peak_mib, plain_step, step_cost
from studies.machine import facts
from studies.results import FOLDER, grid

REPEATS = 7
PROMPT = "a red circle left of a blue square"
PLAIN = "fixed step"
CASES = {  # label: whether each step is updated, the batch, how many steps (None: no model at all)
    "libraries loaded, no model": (False, 0, None),
    "fixed step, batch 1": (False, 1, 1),
    "updated step, batch 1": (True, 1, 1),
    "fixed step, batch 8": (False, 8, 1),
    "updated step, batch 8": (True, 8, 1),
    "50-step run, fixed, batch 1": (False, 1, 50),
    "50-step run, every step updated, batch 1": (True, 1, 50),
}


def run(out: str | Path | None = None) -> dict:
    """Measure and write to `out` (JSON): each case in a process of its own, medians of repeats."""
    content = {
        "command": "PYTHONPATH=notebooks python -m studies bench",
        **facts(),
        "repeats": REPEATS,
        "import datekit": _import_seconds(),
        "rows": {name: _in_new_process(f"measure({name!r})") for name in CASES},
        "phases": _in_new_process("phases()"),
    }
    write_json(out or FOLDER / "bench.json", content)
    return content


def measure(name: str) -> dict:
    """One case, in this process: median seconds and peak resident memory."""
    call = _case(*CASES[name])
    call()  # the first call warms up
    times = []
    for _ in range(3 if "run" in name else REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return {
        "seconds": round(statistics.median(times), 4),
        "peak MiB": round(peak_mib()),
        "threads": torch.get_num_threads(),
    }


def _case(updated: bool, batch: int, steps: int | None) -> Callable:
    if steps is None:
        import datekit.sampler
        import datekit.shapes.oracle  # noqa: F401

        return lambda: None
    method = dk.Fixed()
    if updated:
        method = dk.DATE(dk.rewards.load("shapes-clip", device="cpu"), rho=1.0)
    sampler = dk.Sampler(dk.load("shapes", device="cpu"), method, num_steps=50)
    if steps > 1:
        return lambda: sampler.start(PROMPT, seeds=[0]).finish(progress=False).pixels
    state = sampler.init([PROMPT] * batch, seeds=range(batch))
    return lambda: sampler.step(state)


def phases(batch: int = 8, repeats: int = REPEATS) -> dict:
    """Each kind of step in this process: seconds by phase, GFLOP, and both beside a plain step.

    The kinds take turns, so that what else the machine does falls on all of them alike; the ratio
    is of medians of CPU seconds.
    """
    samplers, reward = _kinds()
    state = samplers[PLAIN].init([PROMPT] * batch, seeds=range(batch))
    calls = {name: lambda s=sampler: s.step(state) for name, sampler in samplers.items()}
    by_hand = "one graph, unfrozen weights"
    calls[by_hand] = lambda: plain_step(samplers[PLAIN], state, reward, 1.0)
    for call in calls.values():
        call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(2 * repeats):
        for name, call in calls.items():
            began = time.process_time()
            call()
            spent[name].append(time.process_time() - began)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    work = {name: flops(call) for name, call in calls.items()}
    rate = matrix_rate(torch.device("cpu"), torch.float32)
    rows = {}
    for name, call in calls.items():
        if name == by_hand:
            row = call_cost(call, torch.device("cpu"), repeats)
        else:
            row = step_cost(samplers[name], state, repeats)
        row["CPU time / plain"] = round(medians[name] / medians[PLAIN], 3)
        row["operations / plain"] = round(work[name] / work[PLAIN], 3)
        row["share of the matrix rate"] = round(row["GFLOP"] * 1e9 / row["seconds"] / rate, 3)
        rows[name] = row
    return {"batch": batch, "matrix GFLOP/s": round(rate / 1e9, 1), "rows": rows}


def _kinds() -> tuple[dict[str, dk.Sampler], dk.Reward]:
    backbone, reward = dk.load("shapes", device="cpu"), dk.rewards.load("shapes-clip", device="cpu")
    decoders = {
        "resized decoder (half)": Resized(0.5),
        "linear decoder": Linear(),
        "tiny decoder": "tiny",
    }
    sampler = dk.Sampler(backbone, dk.DATE(reward, rho=1.0), num_steps=50)
    samplers = {
        PLAIN: sampler.replace(method=dk.Fixed()),
        "updated step": sampler,
        "updated step, two graphs": sampler.replace(keep_graph=False),
    }
    for name, decoder in decoders.items():
        method = dk.DATE(reward, rho=1.0, decoder=decoder)
        samplers[f"updated step, {name}"] = sampler.replace(method=method)
    return samplers, reward


def markdown(content: Mapping) -> str:
    """The measurements as Markdown tables: cases, and the phases of a step."""
    cases = []
    for name, row in content["rows"].items():
        time_ = f"{row['seconds']:.3f}" if row["seconds"] >= 5e-4 else ""
        cases.append([name, time_, str(row["peak MiB"])])
    cases.append(["`import datekit`", f"{content['import datekit']:.3f}", ""])
    first = grid(["what", "seconds", "peak memory, MiB"], cases).replace("|  |", "| |")
    return f"{first}\n\n{_phase_table(content['phases'])}"


def _phase_table(content: Mapping) -> str:
    ratios = ("CPU time / plain", "operations / plain")
    names = ("network", "decode", "reward", "backward")
    head = [f"step, batch {content['batch']}", "ms", *names, "GFLOP", *ratios]
    lines = []
    for name, row in content["rows"].items():
        parts = [f"{1000 * row['phases'][p]:.0f}" if row["phases"] else "" for p in names]
        cells = [name, f"{1000 * row['seconds']:.0f}", *parts, f"{row['GFLOP']:.1f}"]
        cells += [f"{row[ratio]:.2f}" for ratio in ratios]
        lines.append([*cells, f"{row['share of the matrix rate']:.0%}"])
    return grid([*head, "share of the matrix rate"], lines)


def _in_new_process(call: str) -> dict:
    code = f"import json; from studies.bench import measure, phases; print(json.dumps({call}))"
    return json.loads(_python(code))


def _import_seconds() -> float:
    code = "import time; t = time.perf_counter(); import datekit; print(time.perf_counter() - t)"
    return round(statistics.median(float(_python(code)) for _ in range(REPEATS)), 4)


def _python(code: str) -> str:
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    return done.stdout.splitlines()[-1]
