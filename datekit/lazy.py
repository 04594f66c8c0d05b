"""What loads on first use: names of the package, and packages that only some users need."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from types import ModuleType


def needs(module: str, extra: str, what: str) -> ModuleType:
    """A module of an extra of this package, imported; what: who needs it.

    Raises ImportError that names the command which installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        command = f"pip install 'datekit[{extra}]'"
        raise ImportError(f"{what} needs {module}: {command}") from error


def attach(package: str, stub: str) -> tuple[Callable, Callable, list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package: the names that its stub imports.

    stub: the path of its `__init__.pyi`, which type checkers read too, so that each name is said
    once: "from .module import name as name", or "from . import module as module".
    """
    home = {}
    with open(stub, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            home |= dict.fromkeys([alias.name for alias in node.names], node.module)
    public = sorted(home)

    def load(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f".{home[name] or name}", package)
        value = getattr(module, name) if home[name] else module
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: public, public
