"""How fast the explorer answers on this machine: `datekit bench --explorer`. From a control's change to the pictures in their widgets."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from datekit.evaluation.machine import facts, write_json

GOALS = {
    "scrub to a step": 0.1,
    "rho at the paused step": 0.3,
    "first picture of a new 20-step run": 1.0,
}  # seconds
REPEATS = 9


def bench(
    out: str | Path, repeats: int = REPEATS, *, model: str = "shapes", reward: str = "shapes-clip"
) -> dict:
    """Measure and write to `out` (JSON): medians and slowest of `repeats` (whole runs: 3 at most).

    20 steps, every one updated, on the CPU; without a browser, which adds the time to send and draw some 100 kB.
    """
    from datekit import backbones, rewards
    from datekit.widgets.entry import explore

    explorer = explore(
        backbones.load(model, device="cpu"), rewards.load(reward, device="cpu"), num_steps=20
    ).wait()
    rows = {}
    for name, measure in MEASURES.items():
        print(
            f"{name} ...", file=sys.stderr, flush=True
        )  # it may take minutes where others use the machine too
        rows[name] = measure(explorer, repeats)
    content = {
        "command": "datekit bench --explorer",
        "model": model,
        **facts(),
        "repeats": repeats,
        "rows": {
            name: {
                "seconds": round(statistics.median(times), 4),
                "slowest": round(max(times), 4),
                "goal": GOALS.get(name),
            }
            for name, times in rows.items()
        },
    }
    write_json(out, content)
    return content


def markdown(content: dict) -> str:
    """The measurements as a Markdown table."""
    lines = ["| what | median, ms | slowest, ms | goal, ms |", "|---|---|---|---|"]
    milliseconds = lambda value: "" if value is None else f"{1000 * value:.0f}"
    return "\n".join(
        [
            *lines,
            *(
                f"| {name} | {' | '.join(milliseconds(row[key]) for key in ('seconds', 'slowest', 'goal'))} |"
                for name, row in content["rows"].items()
            ),
        ]
    )


def shown(explorer, act: Callable[[], object]) -> float:
    """Seconds from an act of the user until the screen with another picture is complete; then waits until all is done, however long.

    Raises RuntimeError where the explorer has nothing left to do and no other picture has come.
    """
    show, seen = explorer.worker.show, []
    screen = lambda: [explorer.pictures["run", what].png for what in ("xt", "decoded")]
    before = screen()

    def noticed() -> None:
        show()
        if not seen and screen() != before:
            seen.append(time.perf_counter())

    explorer.worker.show = noticed
    try:
        began = time.perf_counter()
        act()
        explorer.wait()
    finally:
        explorer.worker.show = show
    if not seen:
        raise RuntimeError(
            f"no other picture; the explorer says: {explorer.controller.status()} {explorer.error.value}".strip()
        )
    return seen[0] - began


def _scrubs(explorer, repeats: int, first: int = 3) -> list[float]:
    return [
        shown(explorer, lambda i=(7 * n + first) % 20: setattr(explorer.time, "value", i))
        for n in range(repeats)
    ]


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
    times = [
        shown(explorer, lambda n=n: explorer.set(rho=0.5 + 0.25 * (n + 1))) for n in range(repeats)
    ]
    explorer.buttons["join"].click()
    explorer.buttons["end"].click()
    explorer.wait()
    return times


def _new_runs(explorer, repeats: int) -> list[float]:
    """What is prepared for scrubbing comes after the first picture, so that leaving it out changes no number, only the time between."""
    explorer.controller.eager = False
    times = [
        shown(explorer, lambda seed=seed: explorer.set(seed=seed)) for seed in range(1, repeats + 1)
    ]
    explorer.controller.eager = True
    return times


def _whole_runs(explorer, repeats: int) -> list[float]:
    """From a new seed to the last step on screen, without what is prepared for scrubbing afterwards."""
    explorer.controller.eager, times = False, []
    for seed in range(100, 100 + min(3, repeats)):
        began = time.perf_counter()
        explorer.set(seed=seed).wait()
        times.append(time.perf_counter() - began)
        if not explorer.controller.done:
            raise RuntimeError(
                f"the run did not come to its end; the explorer says: {explorer.error.value}"
            )
    explorer.controller.eager = True
    return times


MEASURES = {
    "scrub to a step": _scrubs, "scrub to a step nobody has looked at": _cold_scrubs, "rho at the paused step": _rho,
    "first picture of a new 20-step run": _new_runs, "a whole new 20-step run": _whole_runs,
}  # fmt: skip
