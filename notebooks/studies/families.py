"""The oracle by task family, rewards and FID, through `datekit generate` and `datekit evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

from datekit.evaluation.folders import write_json
from studies.machine import facts
from studies.results import FOLDER, fingerprint

DRAW = "--prompts shapes:50 --steps 20 --batch-size 16"
RHO = {"original": 1.0, "running": 0.15}
ROWS = {
    "fixed": "--method Fixed",
    "DATE, all steps": f"--method DATE --rho {RHO['original']:g}",
    "DATE, all steps, running": f"--method DATE --rho {RHO['running']:g} --anchor running",
    "best of 4": "--method Fixed --best-of 4",
}


def run(out: str | Path | None = None, pictures: str | Path = "build/families") -> None:
    """Draw the pictures of each row into a folder of its own, and judge all; resumes."""
    folders = [str(Path(pictures) / name) for name in ROWS]
    for folder, flags in zip(folders, ROWS.values(), strict=True):
        _call("generate", *DRAW.split(), *flags.split(), "--out", folder)
    path = Path(out or FOLDER / "families.json")
    _call("evaluate", *folders, "--out", str(path))
    made = facts() | {"model": "shapes", "weights": fingerprint("shapes"), "rho": RHO}
    write_json(path, made | json.loads(path.read_text()))


def _call(*arguments: str) -> None:
    from datekit.cli import main

    if code := main(list(arguments)):
        raise SystemExit(code)
