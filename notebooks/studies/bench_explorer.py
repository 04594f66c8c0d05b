"""How fast the explorer answers here: from a control's change to the pictures in their widgets."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import datekit as dk
from datekit.evaluation.folders import write_json
from datekit.widgets.settings import notch
from studies.machine import facts
from studies.results import FOLDER, grid

SCRUB, FORKED = "scrub to a step", "rho to the picture of a step after a fork"
NEAR = "rho to a neighbour, whose picture was made beforehand"
RHO, SEED = "rho to the final picture", "another seed to the final picture, both rows"
DRAFT = ", a draft of it"
GOALS = {SCRUB: 0.1, FORKED: 0.3, NEAR: 0.1, RHO + DRAFT: 1.0}  # seconds
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
        first, last = zip(*times, strict=True)
        several = any(a < b for a, b in times)
        for told, own in ((name + DRAFT, first), (name, last)) if several else ((name, last),):
            median, slowest = round(statistics.median(own), 4), round(max(own), 4)
            rows[told] = {"seconds": median, "slowest": slowest, "goal": GOALS.get(told)}
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


def seconds(explorer, act: Callable[[], object]) -> tuple[float, float]:
    """Seconds from an act of the user to the first other picture on screen, and to the last.

    Raises RuntimeError where no other picture has come.
    """
    box, times = explorer.pictures["run"], []

    def note(change: dict) -> None:
        times.append(time.perf_counter() - began)

    box.observe(note, "value")
    began = time.perf_counter()
    act()
    explorer.wait()
    box.unobserve(note, "value")
    if not times:
        says = f"{explorer.status.value} {explorer.error.value}"
        raise RuntimeError(f"no other picture; the explorer says: {says}")
    return times[0], times[-1]


def _scrubs(explorer, repeats: int) -> list[tuple]:
    steps = [(7 * n + 3) % 20 for n in range(repeats)]
    times = [seconds(explorer, lambda i=i: setattr(explorer.time, "value", i)) for i in steps]
    explorer.time.value = 20
    explorer.wait()
    return times


def _forked(explorer, repeats: int) -> list[tuple]:
    explorer.time.value = 8
    explorer.wait().buttons["fork here"].click()
    explorer.wait()
    times = _radii(explorer, repeats, first=0.6)  # radii that nobody asks for again
    explorer.buttons["join"].click()
    explorer.time.value = 20
    explorer.wait()
    return times


def _near(explorer, repeats: int) -> list[tuple]:
    times = []
    for _ in range(repeats):
        time.sleep(8)  # a hand that rests
        rho = notch(explorer.controller.settings.value("rho"), 1)
        times.append(seconds(explorer, lambda rho=rho: explorer.set(rho=rho)))
    return times


def _radii(explorer, repeats: int, first: float = 0.75) -> list[tuple]:
    values = [first + 0.25 * n for n in range(repeats)]
    return [seconds(explorer, lambda rho=rho: explorer.set(rho=rho)) for rho in values]


def _new_runs(explorer, repeats: int) -> list[tuple]:
    seeds = range(100, 100 + min(3, repeats))
    return [seconds(explorer, lambda seed=seed: explorer.set(seed=seed)) for seed in seeds]


MEASURES = {SCRUB: _scrubs, FORKED: _forked, NEAR: _near, RHO: _radii, SEED: _new_runs}
