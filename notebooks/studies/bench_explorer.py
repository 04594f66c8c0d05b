"""How fast the explorer answers here: from a control's change to the pictures in their widgets."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import datekit as dk
from datekit.evaluation.folders import write_json
from studies.machine import facts
from studies.results import FOLDER, grid

GOALS = {  # seconds
    "scrub to a step": 0.1,
    "rho to the picture of a step after a fork": 0.3,
    "rho to the final picture": 1.0,
}
REPEATS = 9


def run(
    out: str | Path | None = None,
    repeats: int = REPEATS,
    *,
    model: str = "shapes",
    reward: str = "shapes-clip",
) -> dict:
    """Measure and write to `out` (JSON): medians and slowest of `repeats` (whole runs: 3 at most).

    20 steps, every one updated, on the CPU; without a browser, which adds the time to send and draw
    some 100 kB.
    """
    given = dk.load(model, device="cpu"), dk.rewards.load(reward, device="cpu")
    explorer = dk.explore(*given, num_steps=20).wait()
    rows = {}
    for name, measure in MEASURES.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        times = measure(explorer, repeats)
        median, slowest = round(statistics.median(times), 4), round(max(times), 4)
        rows[name] = {"seconds": median, "slowest": slowest, "goal": GOALS.get(name)}
    command = "PYTHONPATH=notebooks python -m studies bench-explorer"
    content = {"command": command, "model": model, **facts(), "repeats": repeats, "rows": rows}
    write_json(out or FOLDER / "explorer.json", content)
    return content


def markdown(content: Mapping) -> str:
    """The measurements as a Markdown table."""
    lines = []
    for name, row in content["rows"].items():
        values = [row[key] for key in ("seconds", "slowest", "goal")]
        lines.append([name, *("" if v is None else f"{1000 * v:.0f}" for v in values)])
    return grid(["what", "median, ms", "slowest, ms", "goal, ms"], lines)


def seconds(explorer, act: Callable[[], object]) -> float:
    """Seconds from an act of the user until the screen with another picture is complete.

    Raises RuntimeError where no other picture has come.
    """
    before, began = explorer.pictures["run"].value, time.perf_counter()
    act()
    explorer.wait()
    took = time.perf_counter() - began
    if explorer.pictures["run"].value == before:
        says = f"{explorer.status.value} {explorer.error.value}"
        raise RuntimeError(f"no other picture; the explorer says: {says}")
    return took


def _scrubs(explorer, repeats: int) -> list[float]:
    steps = [(7 * n + 3) % 20 for n in range(repeats)]
    return [seconds(explorer, lambda i=i: setattr(explorer.time, "value", i)) for i in steps]


def _forked(explorer, repeats: int) -> list[float]:
    explorer.time.value = 8
    explorer.buttons["fork here"].click()
    explorer.wait()
    times = _final(explorer, repeats, first=0.6)  # radii that nobody asks for again
    explorer.buttons["join"].click()
    explorer.buttons["end"].click()
    explorer.wait()
    return times


def _final(explorer, repeats: int, first: float = 0.75) -> list[float]:
    values = [first + 0.25 * n for n in range(repeats)]
    return [seconds(explorer, lambda rho=rho: explorer.set(rho=rho)) for rho in values]


def _new_runs(explorer, repeats: int) -> list[float]:
    seeds = range(100, 100 + min(3, repeats))
    return [seconds(explorer, lambda seed=seed: explorer.set(seed=seed)) for seed in seeds]


MEASURES = {
    "scrub to a step": _scrubs,
    "rho to the picture of a step after a fork": _forked,
    "rho to the final picture": _final,
    "another seed to the final picture, both rows": _new_runs,
}
