"""Who is there: a method, reward, backbone, schedule or rule registers itself by being defined.

Its options are dataclass fields made by `option`, whose label, range and help the command line, the
explorer and the docs read from here.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any, ClassVar

from .errors import unknown

ENTRIES: dict[str, dict[str, type]] = {}  # kind -> name -> class
HOMES = {  # the modules that define what ships, loaded when somebody asks for a kind
    "schedule": ("schedules",),
    "backbone": ("backbones",),
    "reward": ("rewards",),
    "decoder": ("rewards.decoders",),
    "rho rule": ("methods.rho_rules",),
    "tokens": ("methods.soft_tokens",),
    "method": ("methods",),
    "sampler": ("sampler", "editing", "feynman_kac"),
    "search": ("reno",),
}


class Registered:
    """A class that others find by its kind and its name.

    label: what people call the entry, its class name by default. The class that sets the kind, and
    one whose name begins with an underscore, are not registered unless they say `register=True`.
    Raises TypeError for the name of another class of the kind; the same one may be defined again.
    """

    kind: ClassVar[str]
    label: ClassVar[str] = ""

    def __init_subclass__(cls, *, register: bool = False, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if not register and ("kind" in vars(cls) or cls.__name__.startswith("_")):
            return
        name, known = cls.__name__, ENTRIES.setdefault(cls.kind, {})
        home = known.get(name, cls).__module__
        if home != cls.__module__:
            raise TypeError(f"there is a {cls.kind} {name} already, in {home}; rename this one")
        known[name] = cls
        cls.label = vars(cls).get("label") or cls.__name__


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    label: str = "",
    range: tuple[float, float] | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field that knows how to show itself.

    help: one sentence; label: for a control, the field's name by default; range: (least, most) that
    a slider offers; choices: the words it takes.
    """
    about = {"help": help, "label": label, "range": range, "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata=about)


def options(entry: type) -> dict[str, dataclasses.Field]:
    """The fields of an entry that were made by `option`, by name."""
    fields = getattr(entry, "__dataclass_fields__", {})
    return {name: field for name, field in fields.items() if "help" in field.metadata}


def settings_of(entry: Any) -> dict[str, Any] | None:
    """The fields that an object was made of; None where an `__init__` of its own took others."""
    maker = next(cls for cls in type(entry).__mro__ if "__init__" in vars(cls))
    if "__dataclass_fields__" not in vars(maker):
        return None
    return {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}


def entries(kind: str) -> dict[str, type]:
    """The classes of a kind, by name."""
    for module in HOMES.get(kind, ()):
        importlib.import_module(f"{__package__}.{module}")
    return dict(ENTRIES.get(kind, {}))


def find(kind: str, name: str) -> type:
    """The class of a kind with a name. Raises ValueError, with the nearest names, for none."""
    if name not in (known := entries(kind)):
        raise unknown(kind, name, known, " A file of your own has to be imported first.")
    return known[name]


def import_all(package: str, paths: Sequence[str]) -> None:
    """Import every module of a package, so that what is defined there is registered."""
    for module in pkgutil.iter_modules(paths):
        importlib.import_module(f"{package}.{module.name}")
