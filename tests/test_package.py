"""The package as a whole: pins and environments that agree, a README that tells the truth."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata, packages_distributions, requires, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from studies.training.card_text import TEMPLATE

import datekit as dk
from datekit import cli
from datekit.analysis import Result
from datekit.evaluation import metrics
from datekit.evaluation.results import Evaluation

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README, MAKEFILE = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()


def run(*command: str, cwd: Path = ROOT) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_method_and_no_backbone_knows_another():
    shared = {"__init__", "base", "text", "unet", "rho_rules", "soft_tokens", "pushes"}
    shared |= {"latents", "patching", "packed"}
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


def test_the_oldest_versions_are_tested():
    """Those of CI's second environment are allowed, and no older diffusers is."""
    lines = (ROOT / ".ci" / "constraints-oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    ranges = [Requirement(line) for line in PROJECT["dependencies"]]
    assert all(each.specifier.contains(pins.get(each.name, "99")) for each in ranges)
    oldest = Requirement(f"diffusers>={'.'.join(pins['diffusers'].split('.')[:2])}")
    assert oldest in ranges


def names_of(requirements: list[str]) -> set[str]:
    """The packages that requirements name, as an index spells them."""
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def test_the_core_is_what_the_package_imports():
    """Each dependency is imported by some file, and what is imported is named, if in an extra."""
    found = set()
    for path in (ROOT / "datekit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "needs":
                found.add(node.args[0].value.split(".")[0])
    homes = packages_distributions()
    found -= set(sys.stdlib_module_names) | {"datekit", "IPython"}  # a notebook is where it runs
    used = {canonicalize_name(homes[module][0]) for module in found}
    core, extras = names_of(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    assert core - used == {"accelerate"}  # diffusers loads weights through it
    optional = names_of(extras["tables"] + extras["fid"] + extras["lab"])
    assert used - core <= optional
    assert not core & optional


NEEDED = {  # calls that need an extra: what is missing, and the extra
    "a table": ("pandas", "tables", lambda: Result().to_frame()),
    "evaluate": ("pandas", "tables", lambda: cli.main(["evaluate", "pictures"])),
    "an evaluation": ("pandas", "tables", lambda: Evaluation((), 0).frame()),
    "FID": ("torch_fidelity", "fid", lambda: metrics.frechet_distance(None, None)),
    "its network": ("torch_fidelity", "fid", metrics.inception),
    "the explorer": ("ipywidgets", "lab", lambda: dk.explore(None, None)),
}


@pytest.mark.parametrize("call", NEEDED)
def test_without_an_extra_the_command_that_installs_it_is_named(call, monkeypatch):
    module, extra, use = NEEDED[call]
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("DATEKIT_TRACEBACK", "1")
    with pytest.raises(ImportError, match=re.escape(f"{module}") + rf".*'datekit\[{extra}\]'"):
        use()
    wanted = names_of(PROJECT["optional-dependencies"][extra])
    assert canonicalize_name(module) in wanted


def test_without_the_extras_all_else_is_there():
    extras = ("pandas", "torch_fidelity", "ipywidgets", "torchmetrics")
    code = f"import sys; sys.modules |= dict.fromkeys({extras})\n" + ALONE
    run(sys.executable, "-c", code)


ALONE = """
import importlib, pkgutil
import datekit as dk
for module in pkgutil.walk_packages(dk.__path__, "datekit."):
    if module.name not in ("datekit.widgets.view", "datekit.widgets.controls"):
        importlib.import_module(module.name)
from datekit.analysis import ByStep
import torch
result = ByStep("x", (0,), torch.zeros(1, 2))
assert "datekit[tables]" in result._repr_html_() and repr(result)[1:-1] in result._repr_html_()
"""


def test_one_version_and_one_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert dk.__version__ == version("datekit") == citation["version"]
    assert PROJECT["license"] == citation["license"] == "Apache-2.0"
    card = (ROOT / "datekit" / "shapes" / "weights" / "MODEL_CARD.md").read_text()
    assert "Apache License 2.0" in card
    assert "Apache License 2.0" in TEMPLATE  # of the next card


def test_the_readmes_commands_are_targets():
    pages = [README, *(page.read_text() for page in (ROOT / "docs").glob("*.md"))]
    commands = set(re.findall(r"make ([a-z-]+)", "\n".join(pages)))
    assert {"demo", "test", "lab"} <= commands
    for command in commands:
        assert re.search(rf"^{command}:", MAKEFILE, re.MULTILINE), command
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_ten_lines_of_the_readme_run(tmp_path):
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    run(sys.executable, "-c", block, cwd=tmp_path)


def test_the_readmes_tables_are_those_of_the_result_files():
    run(sys.executable, ".ci/tables.py", "--check")


def test_only_the_named_things_stand_at_the_top():
    top = {name.split("/")[0] for name in run("git", "ls-files").split()}
    folders = {"notebooks", "datekit", "figures", "tests", "docs", ".ci"}
    single = {"environment.yml", "README.md", "Makefile", "pyproject.toml", ".gitignore", "LICENSE"}
    single |= {"CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md"}
    assert top <= folders | single


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


def test_python_is_one_that_every_dependency_runs_on():
    needed = [metadata(name)["Requires-Python"] for name in ("diffusers", "transformers")]
    least = Version(PROJECT["requires-python"].removeprefix(">="))
    assert least >= max(Version(re.sub("[>= ]", "", text)) for text in needed)
