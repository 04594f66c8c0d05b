"""Colab: nothing that it preinstalls moves, and the notebooks find what they need there."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import jupytext
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (Path(__file__).parent / "colab.txt").read_text().splitlines()
COLAB = dict(line.partition("==")[::2] for line in LINES if not line.startswith("#"))
PYTHON = COLAB.pop("python")


def wanted(name: str, extra: str) -> list[Requirement]:
    """What a package requires on Colab, or what one of its extras adds."""
    if name == "datekit":
        lists = PROJECT["optional-dependencies"]
        return [*map(Requirement, lists[extra] if extra else PROJECT["dependencies"])]
    there = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0"}
    found = [Requirement(line) for line in requires(name) or ()]

    def holds(requirement: Requirement, extra: str) -> bool:
        marker = requirement.marker
        return marker is None or marker.evaluate(there | {"extra": extra})

    return [r for r in found if holds(r, extra) and not (extra and holds(r, ""))]


def moved(extra: str) -> list[str]:
    """What pip would install over what Colab has, for datekit with an extra."""
    waiting, seen, found = [("datekit", ""), ("datekit", extra)], set(), []
    while waiting:
        package = waiting.pop()
        if package in seen:
            continue
        seen.add(package)
        for requirement in wanted(*package):
            name, extras = canonicalize_name(requirement.name), requirement.extras
            version = "" if name == "datekit" else COLAB[name]  # a new name: look it up there
            if version and not requirement.specifier.contains(version, prereleases=True):
                found.append(f"{package[0]} wants {requirement}, Colab has {version}")
            waiting += [(name, other) for other in (extras if version else {"", *extras})]
    return found


def test_nothing_that_colab_preinstalls_would_move(monkeypatch):
    assert not moved("lab")
    monkeypatch.setitem(COLAB, "numpy", "1.25.0")
    monkeypatch.setitem(COLAB, "tornado", "6.1")  # jupyterlab, which Colab lacks, wants 6.2
    assert {line.split()[0] for line in moved("lab")} >= {"datekit", "jupyterlab"}


FIRST = jupytext.read(ROOT / "notebooks" / "01_quickstart.py").cells[1].source
FIRST = FIRST.split("\nimport os\n")[0]


@pytest.mark.parametrize("repository", ["", "owner/name"])
@pytest.mark.parametrize("wheels", [(), ("datekit-0.1.0-py3-none-any.whl",)])
def test_the_first_cell_installs_what_is_missing(repository, wheels, tmp_path, monkeypatch):
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "check_call", calls.append)
    for wheel in wheels:
        Path(wheel).touch()
    exec(FIRST.replace('REPOSITORY = ""', f'REPOSITORY = "{repository}"'), {})
    package = wheels[0] if wheels else "datekit"
    assert calls[0] == [sys.executable, "-m", "pip", "install", "-q", f"{package}[lab]"]
    assert [call[-2] for call in calls[1:]] == [f"https://github.com/{repository}"] * bool(
        repository
    )
    assert Path("studies").is_symlink() == bool(repository)


@pytest.fixture
def course(tmp_path):
    """A copy of README and notebooks, and what writes badges into it."""
    (tmp_path / "notebooks").mkdir()
    for path in [ROOT / "README.md", *(ROOT / "notebooks").glob("*.*")]:
        shutil.copy(path, tmp_path / path.relative_to(ROOT))

    def write(*repository: str) -> dict[str, str]:
        command = [sys.executable, str(ROOT / ".ci" / "badges.py"), *repository]
        subprocess.run(command, cwd=tmp_path, check=True)
        return {str(path): path.read_text() for path in sorted(tmp_path.rglob("*.*"))}

    return write


def test_badges_open_each_notebook_and_go_as_they_came(course, tmp_path):
    course("another/one")
    badged = course("owner/name")
    names = sorted(path.stem for path in tmp_path.glob("notebooks/*.ipynb"))
    opened = r"colab\.research\.google\.com/github/owner/name/blob/main/notebooks/(\w+)\.ipynb\)"
    assert re.findall(opened, badged[str(tmp_path / "README.md")]) == names
    for name in names:
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        executed, source = json.loads(path.read_text()), jupytext.read(path.with_suffix(".py"))
        assert ["".join(c["source"]) for c in executed["cells"]] == [c.source for c in source.cells]
        assert re.findall(opened, source.cells[0].source) == [name]
        assert '\nREPOSITORY = "owner/name"  #' in source.cells[1].source
    for path, text in course().items():
        assert text == (ROOT / Path(path).relative_to(tmp_path)).read_text()
