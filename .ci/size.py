"""Lines of the library by room, as `ruff format` writes them at 100 columns, and the targets."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {  # the modules and folders of a room, and how many lines it should have at most
    "types, tensors, noise, schedulers, solvers, schedules": 700,
    "backbones": 1000,
    "rewards": 1000,
    "denoiser": 200,
    "methods": 1000,
    "sampler, run, inputs, errors": 450,
    "registry, serialize, files, display, lazy": 250,
    "memory, best_of_n, feynman_kac, reno, estimates": 550,
    "analysis, editing, softrepa": 2300,
    "shapes": 800,
    "evaluation, texts": 750,
    "plot, widgets, cli": 1800,
}
CORE = "types, noise, solvers, schedules, denoiser, sampler, run, methods/base, methods/date"


def lines(*parts: str) -> int:
    """Lines of files and folders."""
    files: set[Path] = set()
    for part in parts:
        path = ROOT / part
        found = [*path.rglob("*.py"), *path.rglob("*.pyi")] if path.is_dir() else [path]
        files.update(file for file in found if file.is_file())
    return sum(len(file.read_text().splitlines()) for file in files)


def row(name: str, count: int, target: int | str = "") -> None:
    """Print one line of the table."""
    print(f"{name:96} {count:6} {target:>6}")


def main() -> None:
    """Print the table."""
    print(f"{'room':96} {'lines':>6} {'target':>6}")
    rest = lines("datekit")
    for room, target in ROOMS.items():
        parts = [f"datekit/{name}" for name in room.split(", ")]
        count = lines(*parts, *(f"{part}.py" for part in parts))
        rest -= count
        row(room, count, target)
    row("other modules", rest)
    row("the package", lines("datekit"), 10000)
    row(f"the core: {CORE}", lines(*(f"datekit/{name}.py" for name in CORE.split(", "))), 1500)
    row("tests", lines("tests"), 10000)
    training = lines("notebooks/studies/training")
    row("studies without training", lines("notebooks/studies") - training)
    row("training of the shipped weights", training)


if __name__ == "__main__":
    main()
