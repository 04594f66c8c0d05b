"""What the explorer can be set to; methods and their options come from the registry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import Any

from .. import registry
from ..errors import unknown, whole
from ..methods import Method
from ..registry import option
from ..schedules import Schedule, as_schedule, every, steps

FIRST = ("DATE", "Fixed", "RandomDirection")  # of the menu of methods


@dataclass(frozen=True)
class Settings:
    """One position of all controls.

    method, reward: by name; no reward ("") where the method reads none. options: (name, value) of
    each option that was set, for all methods that have one of that name, so that rho stays where it
    is when the method changes; the schedule `when` may be None, for no step at all.
    """

    prompt: str = option("a red circle left of a blue square", help="What to draw.")
    seed: int = option(0, help="The seed of the noise.")
    method: str = option("DATE", help="What each step feeds the network.")
    reward: str = option("", help="What is climbed.")
    guidance_scale: float = option(7.5, help="1 is the conditional model.", label="guidance")
    num_steps: int = option(20, help="The steps of the whole run.", label="steps")
    solver: str = option("ddim", help="How each step is taken.")
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for a prompt that is no text, or a run too long to be shown."""
        whole("num_steps", self.num_steps, 1, 10_000)
        if not isinstance(self.prompt, str):
            raise ValueError(f"a prompt is a text, got {self.prompt!r}")

    @property
    def method_class(self) -> type[Method]:
        """The class of the method. Raises ValueError for a name that is not registered."""
        return registry.find("method", self.method)

    @property
    def fields(self) -> dict[str, Field]:
        """The options that the method reads, but for the reward, which has a menu of its own."""
        options = registry.options(self.method_class)
        return {name: field for name, field in options.items() if name != "reward"}

    @property
    def updates(self) -> tuple[int, ...]:
        """The steps in which the method acts."""
        if "when" not in self.fields:
            return () if self.method == "Fixed" else tuple(range(self.num_steps))
        when = self.value("when")
        return () if when is None else as_schedule(when).indices(self.num_steps)

    def value(self, name: str) -> Any:
        """A setting, or an option of the method: as it was set, or else its default."""
        given = vars(self) | dict(self.options)
        return given[name] if name in given else default(self.fields[name])

    def change(self, **changes: Any) -> Settings:
        """Other settings, by the names of the fields and of the options.

        A list of steps loses those beyond the end of a shorter run. Raises ValueError for a name
        that is neither a field nor an option of any registered method.
        """
        fields = registry.options(Settings)
        known = {*fields}.union(*map(registry.options, registry.entries("method").values()))
        own, options = {}, dict(self.options)
        for name, value in changes.items():
            if name not in known:
                raise unknown("setting", name, known)
            # neither a number of numpy nor an object could stand in exported lines
            value = value.item() if hasattr(value, "item") else value
            if name != "when" and not isinstance(value, (str, int, float, type(None))):
                raise ValueError(f"the explorer sets {name} to a number or a word, not {value!r}")
            target = own if name in fields else options
            target[name] = value
        changed = replace(self, **own)
        if isinstance(when := options.get("when"), steps):
            options["when"] = only(i for i in when.wanted if i < changed.num_steps)
        return replace(changed, options=tuple(sorted(options.items())))

    def plain(self) -> Settings:
        """One way to write all settings that sample the same: only what is read, no default."""
        fields, updates = self.fields, self.updates
        if "when" in fields and not updates:
            return replace(self, method="Fixed").plain()
        chosen = {name: value for name, value in self.options if name in fields}
        if "when" in fields:
            chosen["when"] = every() if len(updates) == self.num_steps else only(updates)
        changed = {name: x for name, x in chosen.items() if x != default(fields[name])}
        reward = self.reward if "reward" in registry.options(self.method_class) else ""
        return replace(self, reward=reward, options=tuple(sorted(changed.items())))

    def __str__(self) -> str:
        shown = [self.method]
        for name, field in self.fields.items():
            value = self.value(name)
            if name != "when" and (name == "rho" or value != default(field)):
                shown.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
        return ", ".join([*shown, f"guidance {self.guidance_scale:g}"])


Timeline = tuple[tuple[int, Settings], ...]  # (step from which they act, settings)


def method_names(settings: Settings) -> list[str]:
    """The menu: the methods whose options all have a default, or a value in these settings."""
    given, known = {"reward", *dict(settings.options)}, registry.entries("method")
    names = []
    for name in dict.fromkeys([*FIRST, *known]):
        needed = {f.name for f in fields(known[name]) if default(f) is MISSING}
        if needed <= given:
            names.append(name)
    return names


def default(field: Field) -> Any:
    """The value of an option that nobody set; `dataclasses.MISSING` where it must be given."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def only(wanted: Iterable[int]) -> Schedule | None:
    """A schedule of just these steps; None for none."""
    kept = sorted(wanted)
    return steps(*kept) if kept else None


def until(i: int, rows: Timeline) -> Timeline:
    """What step i depends on: the settings up to it, not those that act later."""
    return tuple(row for row in rows if row[0] <= i)


def plain_timeline(rows: list[tuple[int, Settings]]) -> Timeline:
    """The same trajectory in one way of writing it."""
    kept: list[tuple[int, Settings]] = []
    for start, settings in rows:
        plain = settings.plain()
        if not kept or plain != kept[-1][1]:
            kept.append((start, plain))
    return tuple(kept)
