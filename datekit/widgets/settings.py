"""What the explorer can be set to; methods and their options come from the registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, replace
from typing import Any

from .. import registry
from ..errors import is_whole, unknown
from ..methods import Method
from ..rewards.base import Reward
from ..schedules import Schedule, as_schedule, every, steps

FIRST = ("DATE", "Fixed", "RandomDirection")  # of the menu of methods


@dataclass(frozen=True)
class Settings:
    """One position of all controls.

    method, reward: by name; no reward ("") where the method reads none. options: (name, value) of
    each option that was set, for all methods that have one of that name, so that rho stays where it
    is when the method changes; the schedule `when` may be None, for no step at all.
    """

    prompt: str = "a red circle left of a blue square"
    seed: int = 0
    method: str = "DATE"
    reward: str = ""
    guidance_scale: float = 7.5
    num_steps: int = 20
    solver: str = "ddim"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def method_class(self) -> type[Method]:
        """The class of the method. Raises ValueError for a name that is not registered."""
        return registry.find("method", self.method)

    @property
    def fields(self) -> dict[str, Field]:
        """The options that the method reads, by name."""
        return options_of(self.method_class)

    @property
    def updates(self) -> tuple[int, ...]:
        """The steps in which the method acts."""
        if "when" not in self.fields:
            return () if self.method == "Fixed" else tuple(range(self.num_steps))
        when = self.value("when")
        return () if when is None else when.indices(self.num_steps)

    def value(self, name: str) -> Any:
        """A setting, or an option of the method: as it was set, or else its default."""
        given = vars(self) | dict(self.options)
        return given[name] if name in given else default(self.fields[name])

    def change(self, **changes) -> Settings:
        """Other settings, by the names of the fields and of the options.

        A list of steps loses those beyond the end of a shorter run. Raises ValueError for a name
        that is neither a field nor an option of any registered method.
        """
        own = {*vars(self)} - {"options"}
        # numbers of numpy would not stand in exported lines
        given = {name: x.item() if hasattr(x, "item") else x for name, x in changes.items()}
        set_here = dict(self.options)
        for name in given.keys() - own:
            if name not in (known := option_names()):
                raise unknown("setting", name, own | known)
            set_here[name] = value = given.pop(name)
            if name != "when" and not isinstance(value, (str, int, float, type(None))):
                raise ValueError(f"the explorer sets {name} to a number or a word, not {value!r}")
        when, count = set_here.get("when"), given.get("num_steps", self.num_steps)
        if isinstance(when, steps) and is_whole(count):
            set_here["when"] = only(i for i in when.wanted if i < count)
        elif when is not None:
            as_schedule(when)
        return replace(self, **given, options=tuple(sorted(set_here.items())))

    def plain(self) -> Settings:
        """One way to write all settings that sample the same: only what is read, no default."""
        fields = self.fields
        if "when" in fields and not self.updates:
            return replace(self, method="Fixed").plain()
        set_here = {name: value for name, value in self.options if name in fields}
        if "when" in fields:
            set_here["when"] = _simplest(self.updates, self.num_steps)
        changed = {name: x for name, x in set_here.items() if x != default(fields[name])}
        needs = {field.name for field in dataclasses.fields(self.method_class)}
        reward = self.reward if "reward" in needs else ""
        return replace(self, reward=reward, options=tuple(sorted(changed.items())))

    def method_with(self, reward: Reward | None) -> Method:
        """The method. Raises ValueError or TypeError for options that do not fit."""
        plain = self.plain()
        given = {"reward": reward} if plain.reward else {}
        return plain.method_class(**given, **dict(plain.options))

    def __str__(self) -> str:
        shown = [self.method]
        for name, field in self.fields.items():
            value = self.value(name)
            if name != "when" and (name == "rho" or value != default(field)):
                shown.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
        return ", ".join([*shown, f"guidance {self.guidance_scale:g}"])


def method_names(settings: Settings) -> list[str]:
    """The menu: the methods whose options all have a default, or a value in these settings."""
    given, known = {"reward", *dict(settings.options)}, registry.entries("method")
    names = []
    for name in dict.fromkeys([*FIRST, *known]):
        needed = {f.name for f in dataclasses.fields(known[name]) if default(f) is MISSING}
        if needed <= given:
            names.append(name)
    return names


def options_of(cls: type[Method]) -> dict[str, Field]:
    """The options of a method, but for the reward, which has a menu of its own."""
    return {name: field for name, field in registry.options(cls).items() if name != "reward"}


def option_names() -> set[str]:
    """The names of the options of all registered methods."""
    return {name for cls in registry.entries("method").values() for name in options_of(cls)}


def default(field: Field) -> Any:
    """The value of an option that nobody set; `dataclasses.MISSING` where it must be given."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def only(wanted: Iterable[int]) -> Schedule | None:
    """A schedule of just these steps; None for none."""
    kept = sorted(wanted)
    return steps(*kept) if kept else None


def _simplest(updates: tuple[int, ...], num_steps: int) -> Schedule:
    """The schedule of these steps in one way of writing it: `every(k)` where that is the same."""
    k = updates[1] if len(updates) > 1 else num_steps
    return every(k) if updates == tuple(range(0, num_steps, k)) else steps(*updates)
