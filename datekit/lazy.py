"""What loads on first use: names of the package, and packages that only some users need."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
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


def attach(
    package: str, names: dict[str, Sequence[str]], *ready: str
) -> tuple[Callable, Callable, list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    names: its modules with the public names that each holds, and under "" the modules that are
    public names themselves; ready: public names that the package defines itself.
    """
    home = {name: module for module, held in names.items() for name in held}
    public = sorted([*home, *ready])

    def load(name: str):
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f".{home[name] or name}", package)
        value = getattr(module, name) if home[name] else module
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: public, public
