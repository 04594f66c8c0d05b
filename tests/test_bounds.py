"""The lower bounds of pyproject.toml promise no more than the libraries themselves allow."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHON = PROJECT["requires-python"].removeprefix(">=")


def bounds(texts) -> dict[str, Version]:
    """The version from which on each requirement is fulfilled, with those of torch users."""
    least = {}
    for requirement in map(Requirement, texts):
        counts = requirement.marker is None or requirement.marker.evaluate({"extra": "torch"})
        parts = [p for p in requirement.specifier if p.operator in (">=", "==", "~=")]
        if counts and parts:
            name = requirement.name.lower().replace("_", "-")
            least[name] = max(Version(part.version) for part in parts)
    return least


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_no_bound_is_below_what_the_pipelines_library_needs(library):
    ours, theirs = bounds(PROJECT["dependencies"]), bounds(requires(library))
    shared = ours.keys() & theirs.keys()
    assert len(shared) >= 2
    assert {name for name in shared if ours[name] < theirs[name]} == set()


def test_python_is_one_that_every_dependency_runs_on_and_the_one_tested():
    needed = [metadata(name)["Requires-Python"] for name in ("diffusers", "transformers")]
    assert Version(PYTHON) >= max(Version(re.sub("[>= ]", "", text)) for text in needed)
    assert f"< ({PYTHON.replace('.', ', ')})" in (ROOT / "Makefile").read_text()
    assert f"- python={PYTHON}" in (ROOT / "environment.yml").read_text()
    assert f"on Python {PYTHON}" in (ROOT / ".ci" / "constraints.txt").read_text()
