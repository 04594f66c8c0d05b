"""The wheel brings the shipped weights along and works without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLIPS = {"clip", "clip-plain", "clip-heldout"}
FOLDERS = CLIPS | {"pipeline", "pipeline-flow", "preference", "aesthetic", "tiny"}

USE = """
import datekit as dk
from pathlib import Path
assert "unpacked" in dk.__file__, dk.__file__
reward = dk.rewards.load("shapes-clip")
for name in dk.rewards.SHIPPED:
    dk.rewards.load(name)
date = dk.DATE(reward, rho=1.0, when=dk.every(2))
run = dk.Sampler(dk.load("shapes"), date, num_steps=4).start("a red star", seeds=[0])
assert run.finish().images[0].size == (64, 64)
assert dk.shapes.judge(run.pixels, ["a red star"])
assert Path(dk.pipelines.SDXL, "pipeline.py").is_file()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    listing = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        if (name.startswith("datekit/") or "/" not in name) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
    build = [*command, source / "dist", source]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((source / "dist").glob("datekit-*.whl"))


def test_holds_the_weights_and_no_results_studies_or_anything_else_large(wheel):
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    inside = "datekit/shapes/weights/"
    weights = {name: size for name, size in sizes.items() if name.startswith(inside)}
    folders = {}
    for name, size in weights.items():
        folder = name.removeprefix(inside).split("/")[0]
        folders[folder] = folders.get(folder, 0) + size
    assert set(folders) >= FOLDERS
    needed = folders["pipeline"] + folders["clip"] + folders["clip-heldout"]
    assert needed <= 15e6  # what dk.load("shapes") and its two CLIPs need
    assert sum(weights.values()) <= 28e6
    assert wheel.stat().st_size <= 26e6
    assert not [name for name in weights if name.endswith((".pt", ".bin", ".ckpt", ".partial"))]
    others = {name for name in sizes if not name.startswith(("datekit/", "datekit-"))}
    assert not others  # no tests, notebooks, studies, figures
    code = {name for name in sizes if name.startswith("datekit/")} - set(weights)
    kinds = {".py", ".pyi", ".md", ".typed"}
    assert {Path(name).suffix for name in code} <= kinds  # no result files
    assert {"datekit/py.typed", "datekit/README.md", f"{inside}MODEL_CARD.md"} <= set(sizes)


def test_works_away_from_the_repository(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "unpacked")}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
