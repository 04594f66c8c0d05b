"""The package as a whole: pins and environments that agree, a README that tells the truth."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README, MAKEFILE = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()


def run(*command: str, cwd: Path = ROOT) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_method_and_no_backbone_knows_another():
    shared = {"__init__", "base", "text", "unet", "rho_rules", "soft_tokens"}
    for folder in ("methods", "backbones"):
        paths = [p for p in (ROOT / "datekit" / folder).glob("*.py") if p.stem not in shared]
        for path in paths:
            for other in {p.stem for p in paths} - {path.stem}:
                known = rf"from \.{other} import|import {other}\b"
                assert not re.search(known, path.read_text()), f"{path.stem} knows {other}"


def test_environments_agree():
    text = (ROOT / "environment.yml").read_text()
    environment = yaml.safe_load(text)
    lines = [line for line in MAKEFILE.splitlines() if "uv pip install" in line]
    installed = [line.split("$(CONSTRAINTS) ")[1] for line in lines]
    assert installed == ["--editable '.[dev]'", "--no-deps image-reward"]
    assert "pip install --no-deps --constraint .ci/constraints.txt image-reward" in text
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["--constraint .ci/constraints.txt", "--editable .[dev]"]
    assert "CONSTRAINTS := .ci/constraints.txt" in MAKEFILE
    assert environment["name"] == PROJECT["name"] == "datekit"
    (python,) = [d for d in environment["dependencies"] if str(d).startswith("python=")]
    assert version_of(python, "python=") >= version_of(PROJECT["requires-python"], ">=")


def version_of(text: str, prefix: str) -> tuple[int, ...]:
    return tuple(map(int, text.removeprefix(prefix).split(".")))


def test_every_dependency_is_pinned_within_its_range_and_installed_so():
    pins = {}
    for line in (ROOT / ".ci" / "constraints.txt").read_text().splitlines():
        if "==" in line and not line.startswith("#"):
            name, pin = line.split("==")
            pins[name.lower().replace("_", "-")] = pin
    wanted = list(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        wanted += extra
    for requirement in map(Requirement, wanted):
        name = requirement.name.lower().replace("_", "-")
        if name != "datekit":
            assert requirement.specifier.contains(pins[name]), f"{requirement}, pin {pins[name]}"
            assert version(name) == pins[name], f"{name}: run make install"


def test_the_readmes_commands_are_targets():
    commands = set(re.findall(r"make ([a-z-]+)", README))
    assert {"demo", "test", "lab"} <= commands
    for command in commands:
        assert re.search(rf"^{command}:", MAKEFILE, re.MULTILINE), command
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_ten_lines_of_the_readme_run(tmp_path):
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    run(sys.executable, "-c", block, cwd=tmp_path)


def test_the_readmes_tables_are_those_of_the_result_files():
    run(sys.executable, ".ci/readme.py", "--check")


def test_only_the_named_things_stand_at_the_top():
    top = {name.split("/")[0] for name in run("git", "ls-files").split()}
    folders = {"notebooks", "datekit", "figures", "tests", ".ci"}
    single = {"environment.yml", "README.md", "Makefile", "pyproject.toml", ".gitignore", "LICENSE"}
    assert top <= folders | single
