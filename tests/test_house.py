"""The house: imports point down, everything registers itself, the package explains itself."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import datekit as dk
from datekit import types

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "datekit"
SELF = ("self", "cls", "_")
ROOMS = [  # from the ground up: a room imports only from those before it
    {"errors", "lazy", "files", "statistics", "texts"},
    {"tensors"},
    {"display"},
    {"registry", "types", "noise", "memory", "schedulers"},
    {"schedules", "solvers"},
    {"backbones"},
    {"rewards"},
    {"denoiser"},
    {"methods"},
    {"serialize", "inputs"},
    {"run"},
    {"sampler"},
    {"best_of_n", "callbacks", "estimates", "feynman_kac", "reno"},
    {"modular", "pipelines"},
    {"shapes"},
    {"analysis", "editing"},
    {"softrepa", "evaluation"},
    {"plot"},
    {"widgets", "cli"},
]


def files() -> dict[str, Path]:
    """Every module of the package by its dotted name below datekit, but for the package itself."""
    paths = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        paths[".".join(part for part in parts if part != "__init__")] = path
    paths.pop("")
    return paths


def imports(path: Path) -> set[str]:
    """The modules of datekit that a file imports at run time, inside functions too.

    They are dotted names below datekit. What is imported for annotations only is left out.
    """
    package = path.relative_to(PACKAGE).parts[:-1]
    modules, waiting = set(), [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            modules |= {".".join(name[1:]) for name in names if name[0] == "datekit"}
        if isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = ["datekit", *package[: len(package) - node.level + 1], *base]
            for alias in node.names if base[:1] == ["datekit"] else ():
                full = PACKAGE.joinpath(*base[1:], alias.name)
                is_module = full.is_dir() or full.with_suffix(".py").is_file()
                modules.add(".".join([*base[1:], alias.name] if is_module else base[1:]))
    return modules - {""}


def test_imports_point_down():
    floor = {room: n for n, rooms in enumerate(ROOMS) for room in rooms}
    upward = []
    for name, path in files().items():
        own = name.split(".")[0]
        assert own in floor, f"{own} has no place in the house"
        for other in imports(path):
            room = other.split(".")[0]
            if room != own and floor[room] >= floor[own]:
                upward.append(f"{name} imports {other}")
    assert not upward


def test_no_files_import_each_other_in_a_circle():
    paths = files()
    graph = {name: imports(path) & set(paths) - {name} for name, path in paths.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises with the circle


def test_importing_is_lazy():
    heavy = ("torch", "diffusers", "numpy", "matplotlib")
    code = f"import sys, datekit; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_loads():
    for name in dk.__all__:
        assert getattr(dk, name) is not None
    assert set(dk.__all__) <= set(dir(dk))


def functions(thing: object) -> list:
    """The public functions of a public name: its own, its methods, those of a module's names."""
    if inspect.isfunction(thing):
        return [thing]
    if inspect.isclass(thing) and thing.__module__.startswith("datekit"):
        members = [getattr(v, "fget", getattr(v, "__func__", v)) for v in vars(thing).values()]
        named = [f for f in members if inspect.isfunction(f) and f.__module__ == thing.__module__]
        return [f for f in named if f.__name__ == "__init__" or not f.__name__.startswith("_")]
    found = []
    if inspect.ismodule(thing):
        held = [name for name in dir(thing) if not name.startswith("_")]
        for value in [getattr(thing, name) for name in getattr(thing, "__all__", held)]:
            if not inspect.ismodule(value) and getattr(value, "__module__", "")[:7] == "datekit":
                found += functions(value)
    return found


def test_public_functions_are_annotated_whole():
    found, bare = 0, set()
    for name in dk.__all__:
        for function in functions(getattr(dk, name)):
            found += 1
            signature = inspect.signature(function)
            kinds = [p.annotation for p in signature.parameters.values() if p.name not in SELF]
            if inspect.Signature.empty in (*kinds, signature.return_annotation):
                bare.add(f"{function.__module__}.{function.__qualname__}")
    assert found > 300
    assert not bare


@pytest.mark.parametrize(
    "name", ["Conditioning", "State", "Prediction", "RewardGradient", "StepInfo"]
)
def test_docstrings_name_the_fields_that_exist(name):
    """Each field is named in its class's docstring or its base's, and each name told is a field."""
    cls = getattr(types, name)
    fields = {field.name for field in dataclasses.fields(cls)}
    own = [c for c in cls.__mro__ if c.__module__ == types.__name__ and c is not types.Record]
    told = " ".join(c.__doc__ for c in own)
    assert not [field for field in fields if not re.search(rf"\b{field}\b", told)]
    groups = re.findall(r"(?:; |\n    |\. )((?:\w+, )*\w+): ", cls.__doc__)
    described = {word for group in groups for word in group.split(", ")}
    assert described
    assert not [word for word in described if not hasattr(cls, word) and word not in fields]


def test_public_functions_and_classes_have_docstrings():
    for name, path in files().items():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) or not tree.body, name
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name}: {node.name}"
