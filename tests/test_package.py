"""The package as a whole:

layers, lazy imports, pins and environments that agree, docstrings that tell the truth.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_no_method_and_no_backbone_knows_another():
    for folder in ("methods", "backbones"):
        shared = {"__init__", "base", "text", "rho_rules", "soft_tokens"}
        files = {p.stem for p in (ROOT / "datekit" / folder).glob("*.py")} - shared
        for path in (ROOT / "datekit" / folder).glob("*.py"):
            if path.stem in files:
                text = path.read_text()
                assert not [
                    other
                    for other in files - {path.stem}
                    if re.search(rf"from \.{other} import|import {other}\b", text)
                ]


def test_environments_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    makefile = (ROOT / "Makefile").read_text()
    installed = [
        line.split("$(CONSTRAINTS) ")[1]
        for line in makefile.splitlines()
        if "uv pip install" in line
    ]
    assert installed == ["--editable '.[dev]'", "--no-deps image-reward"]
    assert (
        "pip install --no-deps --constraint .ci/constraints.txt image-reward"
        in (ROOT / "environment.yml").read_text()
    )
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["--constraint .ci/constraints.txt", "--editable .[dev]"]
    assert "CONSTRAINTS := .ci/constraints.txt" in makefile
    assert environment["name"] == project["name"] == "datekit"
    python = next(
        d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python=")
    )
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= tuple(
        map(int, project["requires-python"].removeprefix(">=").split("."))
    )


def test_every_dependency_is_pinned_within_its_range_and_installed_so():
    from importlib.metadata import version

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    pins = {name.lower().replace("_", "-"): value for name, value in pins.items()}
    wanted = project["dependencies"] + [
        r for extra in project["optional-dependencies"].values() for r in extra
    ]
    for requirement in map(Requirement, wanted):
        name = requirement.name.lower().replace("_", "-")
        if name != "datekit":
            assert requirement.specifier.contains(pins[name]), (
                f"{requirement} and its pin {pins[name]}"
            )
            assert version(name) == pins[name], f"{name}: run make install"


def test_the_readmes_commands_are_targets():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    commands = set(re.findall(r"make ([a-z-]+)", readme))
    assert {"demo", "test", "lab"} <= commands
    for command in commands:
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_ten_lines_of_the_readme_run(tmp_path):
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) <= 10
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_readmes_tables_are_those_of_the_result_files():
    done = subprocess.run(
        [sys.executable, ".ci/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_only_the_named_things_stand_at_the_top():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    assert top <= {
        "notebooks",
        "datekit",
        "figures",
        "tests",
        "environment.yml",
        "README.md",
        "Makefile",
        "pyproject.toml",
        ".ci",
        ".gitignore",
        "LICENSE",
    }
