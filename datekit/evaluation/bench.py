"""What a step costs on this machine with the shipped model: `datekit bench`. Medians of repeated runs, one process each."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .machine import facts, write_json

REPEATS = 7


def bench(out: str | Path) -> dict:
    """Measure and write to `out` (JSON): seconds of a fixed and an updated step at batch 1 and 8, of a 50-step run,
    peak memory of each, and of `import datekit`."""
    rows = {name: _in_new_process(name) for name in _CASES}
    content = {"command": "datekit bench", **facts(), "repeats": REPEATS, "import datekit": _import_seconds(), "rows": rows}
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(statistics.median(times), 4), "peak MiB": round(peak), "threads": torch.get_num_threads()}


def markdown(content: dict) -> str:
    """The measurements as a Markdown table."""
    lines = ["| what | seconds | peak memory, MiB |", "|---|---|---|"]
    lines += [f"| {name} | {row['seconds']:.3f} | {row['peak MiB']} |" for name, row in content["rows"].items()]
    return "\n".join([*lines, f"| `import datekit` | {content['import datekit']:.3f} | |"])


def _step(updated: bool, batch: int) -> Callable[[], Callable]:
    def build() -> Callable:
        sampler = _sampler(updated)
        state = sampler.init(["a red circle left of a blue square"] * batch, seeds=range(batch))
        return lambda: sampler.step(state)

    return build


def _run(updated: bool) -> Callable[[], Callable]:
    def build() -> Callable:
        sampler = _sampler(updated)
        return lambda: sampler.start("a red circle left of a blue square", seeds=[0]).finish(progress=False).pixels

    return build


def _imports() -> Callable:
    import datekit.sampler
    import datekit.shapes.oracle  # noqa: F401

    return lambda: None


def _sampler(updated: bool):
    import datekit as dk

    method = dk.DATE(dk.rewards.load("shapes-clip", device="cpu"), rho=1.0) if updated else dk.Fixed()
    return dk.Sampler(dk.load("shapes", device="cpu"), method, num_steps=50)


_CASES: dict[str, Callable[[], Callable]] = {
    "libraries loaded, no model": _imports,
    "fixed step, batch 1": _step(False, 1), "updated step, batch 1": _step(True, 1),
    "fixed step, batch 8": _step(False, 8), "updated step, batch 8": _step(True, 8),
    "50-step run, fixed, batch 1": _run(False), "50-step run, every step updated, batch 1": _run(True),
}


def _in_new_process(name: str) -> dict:
    code = f"import json; from datekit.evaluation.bench import measure; print(json.dumps(measure({name!r})))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _import_seconds() -> float:
    code = "import time; t = time.perf_counter(); import datekit; print(time.perf_counter() - t)"
    times = [float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) for _ in range(REPEATS)]
    return round(statistics.median(times), 4)
