"""The package as a whole: layers, lazy imports, pins and environments that agree, docstrings that tell the truth."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import datekit as dk
from datekit import types

ROOT = Path(__file__).parents[1]
LAYERS = [
    "lazy",
    "errors",
    "files",
    "large",
    "memory",
    "types",
    "display",
    "noise",
    "schedules",
    "solvers",
    "soft_tokens",
    "rewards",
    "rho_rules",
    "backbones",
    "decoders",
    "methods",
    "denoiser",
    "sampler",
    "estimates",
    "advice",
    "history",
    "spec",
    "run",
    "candidates",
    "editing",
    "shapes",
    "evaluation",
    "softrepa",
    "analysis",
    "plot",
    "widgets",
    "cli_softrepa",
    "cli",
]


def imports_of(path: Path) -> set[str]:
    """Names of datekit's own modules that a file imports when it is imported (not inside functions or TYPE_CHECKING)."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found: set[str] = set()

    def visit(nodes):
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                base = list(package[: len(package) - node.level + 1]) if node.level else []
                full = base + (node.module.split(".") if node.module else [])
                names = (
                    [full[1]]
                    if len(full) > 1
                    else [alias.name for alias in node.names]
                    if full == ["datekit"]
                    else []
                )
                found.update(name for name in names if full[:1] == ["datekit"])
            elif isinstance(node, (ast.If, ast.Try)) and "TYPE_CHECKING" not in ast.dump(
                getattr(node, "test", node)
            ):
                visit(node.body)

    visit(ast.parse(path.read_text()).body)
    return found


def test_each_module_imports_only_from_those_above_it():
    files = [
        p
        for p in (ROOT / "datekit").rglob("*.py")
        if p.name != "__init__.py" or p.parent.name != "datekit"
    ]
    assert len(files) > 20
    for path in files:
        own = path.relative_to(ROOT / "datekit").with_suffix("").parts[0]
        assert own in LAYERS, f"{path}: add {own} to the layers"
        for name in imports_of(path) - {own}:
            assert LAYERS.index(name) < LAYERS.index(own), (
                f"{own} imports {name}, which stands below it ({path})"
            )


def test_no_method_and_no_backbone_knows_another():
    for folder in ("methods", "backbones"):
        files = {p.stem for p in (ROOT / "datekit" / folder).glob("*.py")} - {"__init__", "base"}
        for path in (ROOT / "datekit" / folder).glob("*.py"):
            if path.stem in files:
                text = path.read_text()
                assert not [
                    other
                    for other in files - {path.stem}
                    if re.search(rf"from \.{other} import|import {other}\b", text)
                ]


def test_importing_is_lazy():
    code = "import sys, datekit; print([m for m in ('torch', 'diffusers', 'numpy', 'matplotlib') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
        == "[]"
    )


def test_every_public_name_loads():
    for name in dk.__all__:
        assert getattr(dk, name) is not None
    assert set(dk.__all__) <= set(dir(dk))


@pytest.mark.parametrize("name", ["Conditioning", "State", "Prediction", "RewardGradient", "StepInfo"])
def test_docstrings_name_the_fields_that_exist(name):
    """Every field is named in its class's docstring (or its base's), and every name before a colon is a field or property."""
    cls = getattr(types, name)
    fields = {f.name for f in dataclasses.fields(cls)}
    told = " ".join(
        c.__doc__ for c in cls.__mro__ if c.__module__ == types.__name__ and c is not types.Record
    )
    assert not [field for field in fields if not re.search(rf"\b{field}\b", told)]
    described = {
        word
        for group in re.findall(r"(?:; |\n    |\. )((?:\w+, )*\w+): ", cls.__doc__)
        for word in group.split(", ")
    }
    assert described
    assert not [word for word in described if not hasattr(cls, word) and word not in fields]


def test_public_functions_and_classes_have_docstrings():
    for path in (ROOT / "datekit").rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) or not tree.body, path
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"


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
