"""What the explorer can be set to; methods and their options come from the registry."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import Any

from .. import registry
from ..errors import unknown, whole
from ..feynman_kac import FKSteering
from ..methods import Method
from ..registry import option
from ..reno import ReNO
from ..schedules import Schedule, as_schedule, every, steps

FIRST = ("DATE", "Fixed", "RandomDirection")  # of the menu of methods
BESIDE = {"FKSteering": FKSteering, "ReNO": ReNO}  # no methods, but whole runs of Fixed
DRAFT = 5  # steps of a draft, where the run has at least twice as many
OCTAVE = 4  # positions of a slider of rho from one value to its double


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
    def method_class(self) -> type[Method] | type[FKSteering] | type[ReNO]:
        """The class of the method. Raises ValueError for a name that is not registered."""
        return BESIDE.get(self.method) or registry.find("method", self.method)

    @property
    def fields(self) -> dict[str, Field]:
        """The options that the method reads, but for the reward, which has a menu of its own."""
        options = registry.options(self.method_class)
        return {name: field for name, field in options.items() if name != "reward"}

    @property
    def updates(self) -> tuple[int, ...]:
        """The steps in which the method acts."""
        if "when" not in self.fields:
            return () if self.method in ("Fixed", *BESIDE) else tuple(range(self.num_steps))
        when = self.value("when")
        return () if when is None else as_schedule(when).indices(self.num_steps)

    def value(self, name: str) -> Any:
        """A setting, or an option of the method: as it was set, or else its default."""
        given = vars(self) | dict(self.options)
        return given[name] if name in given else default(self.fields[name])

    def change(self, **changes: Any) -> Settings:
        """Other settings, by the names of the fields and of the options.

        A list of steps loses those beyond the end of a shorter run. Raises ValueError for a name
        that is neither a field nor an option of anything on the menu.
        """
        fields, menu = registry.options(Settings), registry.entries("method") | BESIDE
        known = {*fields}.union(*map(registry.options, menu.values()))
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

    def draft(self) -> Settings | None:
        """The same in a few steps, for a first look; None where there are few already."""
        if self.num_steps < 2 * DRAFT:
            return None
        return self.change(
            num_steps=DRAFT, when=only({i * DRAFT // self.num_steps for i in self.updates})
        )

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

    def told(self, start: int = 0) -> str:
        """What acts from a step on, in words; only what differs from its default."""
        shown = [self.method]
        for name, field in self.fields.items():
            value = self.value(name)
            if name == "when":
                shown.append(schedule_in_words(self.updates, start, self.num_steps))
            elif name == "rho" or value != default(field):
                shown.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
        return ", ".join([*shown, f"guidance {self.guidance_scale:g}"])

    __str__ = told


Timeline = tuple[tuple[int, Settings], ...]  # (step from which they act, settings)


def method_names(settings: Settings) -> list[str]:
    """The menu: the methods whose options all have a default, or a value in these settings."""
    known = registry.entries("method") | BESIDE
    given, names = {"reward", "sampler", *dict(settings.options)}, []
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


def schedule_in_words(updates: Iterable[int], start: int, end: int) -> str:
    """Those of some steps that lie from `start` on, in a run of `end` steps."""
    kept = [i for i in updates if i >= start]
    if not kept:
        return "no update"
    if len(kept) == end - start:
        return "every step"
    gap = kept[1] - kept[0] if len(kept) > 1 else 1
    if len(kept) > 2 and kept == list(range(kept[0], kept[-1] + 1, gap)):
        evenly = f"steps {kept[0]} to {kept[-1]}"
        return evenly if gap == 1 else f"every {gap}th of {evenly}"
    return f"steps {', '.join(map(str, kept))}"


def notch(value: float, by: int = 0) -> float:
    """The position of rho's slider that is nearest to a value, or another one so far from it.

    Three digits, as nobody sets or reads more: the slider itself gives 0.5000000000000003.
    """
    return float(f"{2 ** ((round(OCTAVE * math.log2(value)) + by) / OCTAVE):.3g}")


def near(rho: float, most: int) -> list[float]:
    """The positions of rho's slider around a value, the nearest first."""
    steps_away = [by for n in range(1, most + 1) for by in (n, -n)]
    return [notch(rho, by) for by in steps_away] if rho > 0 else []
