"""How fast the explorer answers on this machine: `datekit bench --explorer`. From a control's change to the pictures in their widgets."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ..evaluation.machine import facts, write_json

GOALS = {"scrub to a step": 0.1, "rho at the paused step": 0.3, "first picture of a new 20-step run": 1.0}  # seconds
REPEATS = 9


def bench(out: str | Path, repeats: int = REPEATS, *, model: str = "shapes", reward: str = "shapes-clip") -> dict:
    """Measure and write to `out` (JSON): medians and slowest of `repeats` (whole runs: 3 at most).

    20 steps, every one updated, on the CPU; without a browser, which adds the time to send and draw some 100 kB.
    """
    from .. import backbones, rewards
    from .entry import explore

    explorer = explore(backbones.load(model, device="cpu"), rewards.load(reward, device="cpu"), num_steps=20).wait()
    rows = {
        "scrub to a step": _scrubs(explorer, repeats), "scrub to a step nobody has looked at": _cold_scrubs(explorer, repeats),
        "rho at the paused step": _rho(explorer, repeats), "first picture of a new 20-step run": _new_runs(explorer, repeats),
        "a whole new 20-step run": [_until_done(explorer, seed) for seed in range(100, 100 + min(3, repeats))],
    }
    content = {"command": "datekit bench --explorer", "model": model, **facts(), "repeats": repeats, "rows": {
        name: {"seconds": round(statistics.median(times), 4), "slowest": round(max(times), 4), "goal": GOALS.get(name)}
        for name, times in rows.items()}}
    write_json(out, content)
    return content


def markdown(content: dict) -> str:
    """The measurements as a Markdown table."""
    lines = ["| what | median, ms | slowest, ms | goal, ms |", "|---|---|---|---|"]
    milliseconds = lambda value: "" if value is None else f"{1000 * value:.0f}"
    return "\n".join([*lines, *(f"| {name} | {' | '.join(milliseconds(row[key]) for key in ('seconds', 'slowest', 'goal'))} |"
                                for name, row in content["rows"].items())])


def shown(explorer, act: Callable[[], object]) -> float:
    """Seconds from an act of the user until the screen with another picture is complete; then waits until all is done.

    Raises TimeoutError where no other picture comes within a minute.
    """
    show, before, done, seen = explorer.worker.show, explorer.pictures["run", "xt"].png, threading.Event(), []
    decoded = explorer.pictures["run", "decoded"].png

    def noticed() -> None:
        show()
        if not seen and (explorer.pictures["run", "xt"].png, explorer.pictures["run", "decoded"].png) != (before, decoded):
            seen.append(time.perf_counter())
            done.set()

    explorer.worker.show = noticed
    try:
        began = time.perf_counter()
        act()
        if not done.wait(60):
            raise TimeoutError("no other picture after 60 s; the explorer says: " + explorer.error.value)
    finally:
        explorer.worker.show = show
    explorer.wait()
    return seen[0] - began


def _scrubs(explorer, repeats: int, first: int = 3) -> list[float]:
    return [shown(explorer, lambda i=(7 * n + first) % 20: setattr(explorer.time, "value", i)) for n in range(repeats)]


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
    times = [shown(explorer, lambda n=n: explorer.set(rho=0.5 + 0.25 * (n + 1))) for n in range(repeats)]
    explorer.buttons["join"].click()
    explorer.buttons["end"].click()
    explorer.wait()
    return times


def _new_runs(explorer, repeats: int) -> list[float]:
    return [shown(explorer, lambda seed=seed: explorer.set(seed=seed)) for seed in range(1, repeats + 1)]


def _until_done(explorer, seed: int) -> float:
    controller, began = explorer.controller, time.perf_counter()
    explorer.set(seed=seed)
    while not (controller.settings.seed == seed and controller.done and explorer.progress.value == 20):
        time.sleep(0.002)
    took = time.perf_counter() - began
    explorer.wait()
    return took
