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


def least(requirement: Requirement) -> Version | None:
    """The version from which on a requirement is fulfilled."""
    return max(
        (
            Version(part.version)
            for part in requirement.specifier
            if part.operator in (">=", "==", "~=")
        ),
        default=None,
    )


OURS = {
    requirement.name.lower().replace("_", "-"): least(requirement)
    for requirement in map(Requirement, PROJECT["dependencies"])
}


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_no_bound_is_below_what_the_pipelines_library_needs(library):
    """Plain requirements and those that it checks when torch is there."""
    theirs = [Requirement(text) for text in requires(library)]
    counted = [r for r in theirs if r.marker is None or r.marker.evaluate({"extra": "torch"})]
    checked = 0
    for requirement in counted:
        name = requirement.name.lower().replace("_", "-")
        if name in OURS and least(requirement):
            assert OURS[name] >= least(requirement), (
                f"{name}: {library} needs {requirement.specifier}"
            )
            checked += 1
    assert checked >= 2


def test_python_is_one_that_every_dependency_runs_on_and_the_one_tested():
    needed = [metadata(name)["Requires-Python"] for name in ("diffusers", "transformers")]
    assert Version(PYTHON) >= max(Version(re.sub("[>= ]", "", text)) for text in needed)
    makefile = (ROOT / "Makefile").read_text()
    assert f"sys.version_info < ({PYTHON.replace('.', ', ')})" in makefile
    assert f"needs Python {PYTHON}" in makefile or f"need Python {PYTHON}" in makefile
    assert f"- python={PYTHON}" in (ROOT / "environment.yml").read_text()
    assert f"on Python {PYTHON}" in (ROOT / ".ci" / "constraints.txt").read_text().splitlines()[0]
    assert (
        f'target-version = "py{PYTHON.replace(".", "")}"' in (ROOT / "pyproject.toml").read_text()
    )
