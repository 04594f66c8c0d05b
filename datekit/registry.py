"""Who is there: methods, rewards, backbones, schedules and rules register themselves by being
defined.

What an entry needs stands in its own file. Its options are dataclass fields made by `option`, whose
label, range and help the command line, the explorer, saved files and the docs read from here.
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
    "sampler": ("sampler", "editing"),
}


class Registered:
    """A class that others find by its kind and its name.

    kind: "method", "reward", ... as a base class sets it; label: what people call the entry, its
    class name by default; listed: whether menus offer it. The class that sets the kind, and
    one whose name begins with an underscore, are not registered unless they say `register=True`.
    """

    kind: ClassVar[str]
    listed: ClassVar[bool] = True
    label: ClassVar[str] = ""

    def __init_subclass__(cls, *, register: bool = False, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        protocol = "kind" in vars(cls) or cls.__name__.startswith("_")
        if register or not protocol:
            ENTRIES.setdefault(cls.kind, {})[cls.__name__] = cls
            cls.label = vars(cls).get("label") or cls.__name__


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    label: str = "",
    range: tuple[float, float] | None = None,
    choices: Sequence[str] = (),
    factory: Any = dataclasses.MISSING,
) -> Any:
    """A dataclass field that knows how to show itself.

    help: one sentence; label: for a control, the field's name by default; range: (least, most) that
    a slider offers; choices: the words it takes; factory: makes the default, in place of `default`.
    """
    about = {"help": help, "label": label, "range": range, "choices": tuple(choices)}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=about)
    return dataclasses.field(default=default, metadata=about)


def options(entry: type) -> dict[str, dataclasses.Field]:
    """The fields of an entry that were made by `option`, by name."""
    fields = dataclasses.fields(entry) if dataclasses.is_dataclass(entry) else ()
    return {field.name: field for field in fields if "help" in field.metadata}


def entries(kind: str) -> dict[str, type]:
    """The classes of a kind, by name."""
    for module in HOMES.get(kind, ()):
        importlib.import_module(f"{__package__}.{module}")
    return dict(ENTRIES.get(kind, {}))


def find(kind: str, name: str) -> type:
    """The class of a kind that has this name.

    Raises ValueError, with the nearest names, for none.
    """
    for module in HOMES.get(kind, ()):
        if name not in ENTRIES.get(kind, {}):
            importlib.import_module(f"{__package__}.{module}")
    if name not in ENTRIES.get(kind, {}):
        more = " One that a file of your own defines is known once that file is imported."
        raise unknown(kind, name, entries(kind), more)
    return ENTRIES[kind][name]


def import_all(package: str, paths: Sequence[str]) -> None:
    """Import every module of a package, so that what is defined there is registered."""
    for module in pkgutil.iter_modules(paths):
        importlib.import_module(f"{package}.{module.name}")
