"""What the explorer can be set to: methods, rules for rho and options come from the registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, replace
from itertools import combinations
from typing import Any

from .. import registry
from ..errors import is_whole, unknown
from ..methods import STAGES, Composition, Fixed, Method
from ..methods.rho_rules import RhoRule
from ..rewards.base import Reward, WeightedSum, as_reward
from ..sampler import Sampler
from ..schedules import Schedule, as_schedule, steps
from ..solvers import SOLVERS

RULES = "rho rule"  # what the registry calls a rule for rho
PAST = ("prompt", "seed", "num_steps", "solver")  # another one of these begins another run


@dataclass(frozen=True)
class Settings:
    """One position of all controls.

    prompt, seed: of the one sample.
    method: the registered name of a method, or of several, as in "DATE + EBCA".
    rule: the registered name of a rule that chooses rho at each update, at most the rho that is
        set; "" for rho itself. It counts where a method has both a reward and a rho.
    weights: (name of a reward, weight) of each; the reward is their weighted sum.
    guidance_scale, num_steps, solver: of the sampler.
    options: (name, value) of each option that was set. A value is for all methods and rules that
        have an option of that name, so that rho stays where it is when the method changes. The
        schedule `when` may be None, for no step at all.
    """

    prompt: str = "a red circle left of a blue square"
    seed: int = 0
    method: str = "DATE"
    rule: str = ""
    weights: tuple[tuple[str, float], ...] = ()
    guidance_scale: float = 7.5
    num_steps: int = 20
    solver: str = "ddim"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def methods(self) -> list[type[Method]]:
        """The classes that `method` names. Raises ValueError for a name that is not registered."""
        return [registry.find("method", name) for name in self.method.split(" + ")]

    @property
    def rule_class(self) -> type[RhoRule] | None:
        """The class of the rule for rho; None for a plain rho. Raises ValueError as `methods`."""
        chosen = registry.find(RULES, self.rule) if self.rule else None
        return chosen if any(map(takes_rule, self.methods)) else None

    @property
    def fields(self) -> dict[str, Field]:
        """The options that the methods and the rule read, by name; `most` of a rule is rho."""
        read: dict[str, Field] = {}
        for cls in [*self.methods, *filter(None, [self.rule_class])]:
            read = registry.options(cls) | read
        return {name: field for name, field in read.items() if name not in ("reward", "most")}

    @property
    def updates(self) -> tuple[int, ...]:
        """The steps in which the methods act, as far as they have a schedule."""
        when = self.value("when") if "when" in self.fields else None
        return () if when is None else when.indices(self.num_steps)

    def value(self, name: str) -> Any:
        """An option as it was set, or else the default of the class that reads it."""
        set_here = dict(self.options)
        return set_here[name] if name in set_here else default(self.fields[name])

    def change(self, **changes) -> Settings:
        """Other settings, by the names of the fields and of the options.

        A list of steps loses those beyond the end of a shorter run. Raises ValueError for a name
        that is neither a field nor an option of any registered method or rule.
        """
        own = {field.name for field in dataclasses.fields(self)}
        python = {name: x.item() if hasattr(x, "item") else x for name, x in changes.items()}
        given = python  # numbers of numpy would not stand in exported lines
        set_here = dict(given.pop("options", self.options))
        for name in given.keys() - own:
            if name not in (known := option_names()):
                raise unknown("setting", name, own | known)
            set_here[name] = given.pop(name)
        if "weights" in given:
            given["weights"] = tuple(dict(given["weights"]).items())
        count = given.get("num_steps", self.num_steps)
        if (when := set_here.get("when")) is not None:
            when = set_here["when"] = as_schedule(when)
        if isinstance(when, steps) and is_whole(count):
            set_here["when"] = some(i for i in when.wanted if i < count)
        new = replace(self, **given, options=tuple(sorted(set_here.items())))
        elsewhere = _defaults()  # of an option without a default, as another class has it
        missing = [name for name in new.fields if new.value(name) is MISSING and name in elsewhere]
        return new.change(**{name: elsewhere[name] for name in missing}) if missing else new

    def plain(self) -> Settings:
        """One way to write all settings that sample the same: only what is read, no default."""
        fields = self.fields
        if "when" in fields and not self.updates:
            return replace(self, method="Fixed", rule="").plain()
        set_here = {name: value for name, value in self.options if name in fields}
        if "when" in fields:
            set_here["when"] = some(self.updates)
        changed = {name: x for name, x in set_here.items() if x != default(fields[name])}
        weights = self.weights if any(map(reads_reward, self.methods)) else ()
        rule, options = self.rule if self.rule_class else "", tuple(sorted(changed.items()))
        return replace(self, rule=rule, weights=weights, options=options)

    def __str__(self) -> str:
        shown = [self.method, *filter(None, [self.rule])]
        for name, field in self.fields.items():
            value = self.value(name)
            if name != "when" and (name == "rho" or value != default(field)):
                shown.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
        return ", ".join([*shown, f"guidance {self.guidance_scale:g}"])


class Rewards:
    """The rewards of the menu by name, and their weighted sums, each of them made once.

    given: a reward, a weighted sum, several in a list, or a dict by name. Of several, the first has
    weight 1 and the others, which only look on, 0. Raises TypeError for what cannot be called and
    ValueError for two of one name.
    """

    def __init__(self, given: Reward | Callable | Mapping[str, Callable] | list) -> None:
        weights = None
        if isinstance(given, WeightedSum):
            weights, several = zip(*given.parts, strict=True)
            named = [(part.name, part) for part in several]
        elif isinstance(given, Mapping):
            named = [(name, as_reward(part)) for name, part in given.items()]
        else:
            several = given if isinstance(given, (list, tuple)) else [given]
            named = [(part.name, part) for part in map(as_reward, several)]
        self.parts: dict[str, Reward] = dict(named)
        if not named or len(self.parts) < len(named):
            names = [name for name, _ in named]
            raise ValueError(
                f"the explorer needs rewards of different names, got {names}; name them in a dict"
            )
        weights = weights or [float(n == 0) for n in range(len(named))]
        self.weights = tuple(zip(self.parts, weights, strict=True))
        self._sums: dict[tuple, Reward] = {}

    def combined(self, weights: tuple[tuple[str, float], ...]) -> Reward:
        """The sum with these weights, or a reward alone. Raises ValueError where all are 0."""
        terms = tuple((float(weight), self.parts[name]) for name, weight in weights if weight)
        if not terms:
            raise ValueError("every reward has weight 0: give at least one of them a weight")
        if weights not in self._sums:
            alone = len(terms) == 1 and terms[0][0] == 1
            self._sums[weights] = terms[0][1] if alone else WeightedSum(terms)
        return self._sums[weights]


def arguments(settings: Settings, cls: type) -> dict[str, Any]:
    """The options of one method or rule as far as they are set, but for the reward."""
    set_here = dict(settings.options)
    kept = {name: set_here[name] for name in registry.options(cls) if name in set_here}
    if (rule := settings.rule_class) and takes_rule(cls):
        kept["rho"] = rule(**arguments(settings, rule), most=settings.value("rho"))
    return kept


def method_of(settings: Settings, rewards: Rewards) -> Method:
    """The method that the settings describe. Raises ValueError or TypeError if they do not fit."""
    plain = settings.plain()
    made = []
    for cls in plain.methods:
        given = {"reward": rewards.combined(plain.weights)} if reads_reward(cls) else {}
        if missing := unset(cls) - given.keys() - dict(plain.options).keys():
            raise ValueError(
                f"{cls.__name__} needs {' and '.join(sorted(missing))}, and none is set: "
                f"dk.explore(..., {missing.pop()}=...)"
            )
        made.append(cls(**given, **arguments(plain, cls)))
    return sum(made[1:], start=made[0])


def sampler_of(settings: Settings, backbone, rewards: Rewards) -> Sampler:
    """The sampler that the settings describe. Raises ValueError or TypeError if they do not fit."""
    if not settings.prompt.strip():
        raise ValueError("the prompt is empty: write what to draw")
    if not is_whole(settings.seed) or not 0 <= settings.seed < 2**63:
        raise ValueError(f"a seed is a whole number from 0 to 2**63 - 1, got {settings.seed!r}")
    return Sampler(
        backbone,
        method_of(settings, rewards),
        num_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        solver=settings.solver,
    )


def method_names(given: Collection[str]) -> list[str]:
    """The menu: each registered method, and each sum of two that act on different things.

    given: the names of the options that have a value. A method is left out while an option that
    has no default, other than the reward, is not among them.
    """
    classes = registry.entries("method")
    alone = [
        name
        for name, cls in classes.items()
        if cls is not Composition and unset(cls) <= {"reward", *given}
    ]
    acts_on = {name: stages(classes[name]) for name in alone}
    pairs = [
        f"{first} + {second}"
        for first, second in combinations([name for name in alone if acts_on[name]], 2)
        if not acts_on[first] & acts_on[second]
    ]
    return [*alone, *pairs]


def solvers_of(backbone) -> list[str]:
    """The solvers that fit a backbone, the recommended one first."""
    first = backbone.recommended.solver

    def fits(name: str) -> bool:
        try:
            Sampler(backbone, Fixed(), num_steps=4, solver=name)
        except ValueError:
            return False
        return True

    return [first, *(name for name in SOLVERS if name != first and fits(name))]


def option_names() -> set[str]:
    """The names of the options of all registered methods and rules for rho."""
    classes = [*registry.entries("method").values(), *registry.entries(RULES).values()]
    return {name for cls in classes for name in registry.options(cls)} - {"reward", "most"}


def _defaults() -> dict[str, Any]:
    """For each option name, the default of the first class that has one."""
    defaults: dict[str, Any] = {}
    for cls in [*registry.entries("method").values(), *registry.entries(RULES).values()]:
        for name, field in registry.options(cls).items():
            if default(field) is not MISSING:
                defaults.setdefault(name, default(field))
    return defaults


def default(field: Field) -> Any:
    """The value of an option that nobody set; `dataclasses.MISSING` where it must be given."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def unset(cls: type) -> set[str]:
    """The names of the options that have no default."""
    return {field.name for field in dataclasses.fields(cls) if default(field) is MISSING}


def reads_reward(cls: type) -> bool:
    """Whether a method is made with a reward."""
    return "reward" in {field.name for field in dataclasses.fields(cls)}


def takes_rule(cls: type) -> bool:
    """Whether a method's rho may be a rule, which measures the reward."""
    rho = registry.options(cls).get("rho")
    return reads_reward(cls) and rho is not None and "Callable" in str(rho.type)


def some(wanted: Iterable[int]) -> Schedule | None:
    """A schedule of just these steps; None for none."""
    kept = sorted(wanted)
    return steps(*kept) if kept else None


def stages(cls: type[Method]) -> set[str]:
    """What a method acts on: the hooks of `methods.STAGES` that it has of its own."""
    return {hook for hook in STAGES if getattr(cls, hook) is not getattr(Method, hook)}
