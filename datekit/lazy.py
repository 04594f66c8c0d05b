"""Names that load on first use, so that importing a package costs next to nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence


def attach(
    package: str, names: dict[str, tuple[str, ...]], *ready: str, modules: Sequence[str] = ()
) -> tuple[Callable, Callable, list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    names: its modules with the public names that each holds; ready: public names that the package
    defines itself; modules: those that are public names themselves.
    """
    home = {name: module for module, held in names.items() for name in held}
    public = sorted([*home, *ready, *modules])

    def load(name: str):
        if name not in home and name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f".{home.get(name, name)}", package)
        value = getattr(module, name) if name in home else module
        setattr(sys.modules[package], name, value)
        return value

    def names_of_it() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public})

    return load, names_of_it, public
