"""Names that load on first use, so that importing a package costs next to nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable


def attach(
    package: str, names: dict[str, tuple[str, ...]], *ready: str
) -> tuple[Callable, Callable, list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose modules (keys) hold its public names (values).

    ready: public names that the package defines itself.
    """
    home = {name: module for module, held in names.items() for name in held}
    public = sorted([*home, *ready])

    def getattr_(name: str):
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{home[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    return getattr_, lambda: sorted({*vars(sys.modules[package]), *public}), public
