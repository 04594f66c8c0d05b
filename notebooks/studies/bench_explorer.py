"""How fast the explorer answers here: from a control's change to the pictures in their widgets."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import datekit as dk
from datekit.evaluation.machine import facts, write_json
from studies.results import FOLDER, grid

GOALS = {  # seconds
    "scrub to a step": 0.1,
    "rho at the paused step": 0.3,
    "first picture of a new 20-step run": 1.0,
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


def shown(explorer, act: Callable[[], object]) -> float:
    """Seconds from an act of the user until the screen with another picture is complete.

    Waits until all is done, however long. Raises RuntimeError where the explorer has nothing left
    to do and no other picture has come.
    """
    show, seen = explorer.worker.show, []

    def screen() -> list:
        return [explorer.pictures["run", what].png for what in ("xt", "decoded")]

    before = screen()

    def watch() -> None:
        show()
        if not seen and screen() != before:
            seen.append(time.perf_counter())

    explorer.worker.show = watch
    try:
        began = time.perf_counter()
        act()
        explorer.wait()
    finally:
        explorer.worker.show = show
    if not seen:
        says = f"{explorer.controller.status()} {explorer.error.value}".strip()
        raise RuntimeError(f"no other picture; the explorer says: {says}")
    return seen[0] - began


def _scrubs(explorer, repeats: int, first: int = 3) -> list[float]:
    steps = [(7 * n + first) % 20 for n in range(repeats)]
    return [shown(explorer, lambda i=i: setattr(explorer.time, "value", i)) for i in steps]


def _cold_scrubs(explorer, repeats: int) -> list[float]:
    explorer.controller.eager = False
    explorer.set(seed=99).wait()
    times = _scrubs(explorer, repeats, first=4)
    explorer.controller.eager = True
    return times


def _rho(explorer, repeats: int) -> list[float]:
    explorer.time.value = 8
    explorer.wait()
    explorer.buttons["fork here"].click()
    explorer.wait()
    values = [0.75 + 0.25 * n for n in range(repeats)]
    times = [shown(explorer, lambda rho=rho: explorer.set(rho=rho)) for rho in values]
    explorer.buttons["join"].click()
    explorer.buttons["end"].click()
    explorer.wait()
    return times


def _new_runs(explorer, repeats: int) -> list[float]:
    """Without what is prepared for scrubbing after the first picture, which changes no number."""
    explorer.controller.eager = False
    seeds = range(1, repeats + 1)
    times = [shown(explorer, lambda seed=seed: explorer.set(seed=seed)) for seed in seeds]
    explorer.controller.eager = True
    return times


def _whole_runs(explorer, repeats: int) -> list[float]:
    """From a new seed to the last step on screen, without what is prepared afterwards."""
    explorer.controller.eager, times = False, []
    for seed in range(100, 100 + min(3, repeats)):
        began = time.perf_counter()
        explorer.set(seed=seed).wait()
        times.append(time.perf_counter() - began)
        if not explorer.controller.done:
            says = explorer.error.value
            raise RuntimeError(f"the run did not come to its end; the explorer says: {says}")
    explorer.controller.eager = True
    return times


MEASURES = {
    "scrub to a step": _scrubs,
    "scrub to a step nobody has looked at": _cold_scrubs,
    "rho at the paused step": _rho,
    "first picture of a new 20-step run": _new_runs,
    "a whole new 20-step run": _whole_runs,
}
