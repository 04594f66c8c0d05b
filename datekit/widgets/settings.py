"""What the explorer can be set to, and what that means: a method, a sampler, lines of Python."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from .. import methods, schedules
from ..methods import rho_rules
from ..errors import is_finite, is_whole, unknown
from ..methods import Method
from ..methods.date import ANCHORS
from ..rewards.base import Reward, WeightedSum, as_reward
from ..sampler import Sampler
from ..schedules import Schedule, as_schedule, every, steps
from ..solvers import SOLVERS

# name in the menu: (class in datekit.methods, the settings that it takes); a new method is one line; "radius" is rho or its rule
_SINGLE = {
    "fixed": ("Fixed", ()),
    "DATE": ("DATE", ("reward", "radius", "when", "anchor")),
    "random direction": ("RandomDirection", ("rho", "when")),
    "Universal Guidance": ("UniversalGuidance", ("reward", "scale", "when")),
    "EBCA": ("EBCA", ("when",)),
    "SoftREPA": ("SoftREPA", ("tokens", "when")),
}
_TOGETHER = (
    "DATE + Universal Guidance",
    "DATE + EBCA",
    "DATE + SoftREPA",
    "EBCA + Universal Guidance",
    "DATE + EBCA + Universal Guidance",
)
METHODS = {
    name: tuple(_SINGLE[part] for part in name.split(" + ")) for name in (*_SINGLE, *_TOGETHER)
}  # a sum has several rows
RULES = {
    "constant": None,
    "Taylor": rho_rules.Taylor,
    "signal to noise": rho_rules.SignalToNoise,
    "unnormalised": rho_rules.Unnormalised,
}
PAST = (
    "prompt",
    "seed",
    "num_steps",
    "solver",
)  # what no step can be taken back from: another run begins


@dataclass(frozen=True)
class Settings:
    """One position of all controls.

    prompt, seed: of the one sample; method: a name of `METHODS`; weights: (name of a reward, weight), the reward is their sum; anchor,
    rho, scale, when: of the method, where it has them; rule: a name of `RULES`, what chooses DATE's radius at each update, at most rho
    ("unnormalised" takes `scale` too); tokens: SoftREPA's, a file or the name of a shipped model; when: a schedule, None for no step
    at all; guidance_scale, num_steps, solver: of the sampler.
    """

    prompt: str = "a red circle left of a blue square"
    seed: int = 0
    method: str = "DATE"
    weights: tuple[tuple[str, float], ...] = ()
    anchor: str = ANCHORS[0]
    rho: float = 0.5
    rule: str = "constant"
    scale: float = 1.0
    tokens: str = ""
    when: Schedule | None = field(default_factory=every)
    guidance_scale: float = 7.5
    num_steps: int = 20
    solver: str = "ddim"

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("method", self.method, METHODS),
            ("rule for rho", self.rule, RULES),
        ):
            if name not in known:
                raise unknown(kind, name, known)
        if self.when is not None:
            object.__setattr__(self, "when", as_schedule(self.when))
        for kind, fits, names in (
            (int, is_whole, ("seed", "num_steps")),
            (float, is_finite, ("rho", "scale", "guidance_scale")),
        ):
            for name in names:  # Python's numbers, so that the exported lines need no numpy; what is none is refused by the sampler
                if fits(value := getattr(self, name)):
                    object.__setattr__(self, name, kind(value))

    @property
    def uses(self) -> tuple[str, ...]:
        """Which settings the method reads."""
        by_rule = ("rho", "rule", "scale") if self.rule == "unnormalised" else ("rho", "rule")
        return tuple(
            dict.fromkeys(
                read
                for _, uses in METHODS[self.method]
                for use in uses
                for read in (by_rule if use == "radius" else (use,))
            )
        )

    @property
    def radius(self) -> float | rho_rules.RhoRule:
        """rho, or the rule that chooses it, which goes no further than rho. Raises ValueError for a rho or scale that is none."""
        if self.rule == "constant":
            return self.rho
        return RULES[self.rule](
            most=self.rho, **({"scale": self.scale} if self.rule == "unnormalised" else {})
        )

    @property
    def updates(self) -> tuple[int, ...]:
        """The steps that the schedule names."""
        return () if self.when is None else self.when.indices(self.num_steps)

    def change(self, **changes) -> Settings:
        """Other settings; steps beyond the end of a shorter run are dropped from a list of steps."""
        new = replace(self, **changes)
        if isinstance(new.when, steps):
            new = replace(new, when=_steps(i for i in new.when.wanted if i < new.num_steps))
        return new

    def toggled(self, i: int) -> Settings:
        """The same with step i added to the steps that update, or taken out."""
        return replace(self, when=_steps({*self.updates} ^ {i}))

    def plain(self) -> Settings:
        """One way to write all settings that sample the same: what the method does not read has its default."""
        unread = {"reward": "weights"}
        read = {unread.get(name, name) for name in self.uses}
        if "when" in read and not self.updates:
            return replace(self, method="fixed").plain()
        same = {
            name: getattr(_DEFAULT, name)
            for name in ("weights", "anchor", "rho", "rule", "scale", "tokens", "when")
            if name not in read
        }
        return replace(self, **({"when": _steps(self.updates)} if "when" in read else {}) | same)

    def __str__(self) -> str:
        shown = [
            f"{name} {getattr(self, name):g}" for name in ("rho", "scale") if name in self.uses
        ]
        shown += [f"rule {self.rule}"] if "rule" in self.uses and self.rule != "constant" else []
        shown += [self.anchor] if "anchor" in self.uses else []
        return ", ".join([self.method, *shown, f"guidance {self.guidance_scale:g}"])


_DEFAULT = Settings()
_WORDS = {"radius": "rho"}  # what a method calls a setting, where that is another name


class Rewards:
    """The rewards of the menu by name, and their weighted sums; one object for each combination, so that results can be kept by it.

    given: a reward, a weighted sum, several in a list, or a dict by name. Raises TypeError for what cannot be called, ValueError for
    two of one name.
    """

    def __init__(
        self, given: Reward | Callable | Mapping[str, Callable] | Iterable[Callable]
    ) -> None:
        if isinstance(given, WeightedSum):
            pairs = [(part.name, part, weight) for weight, part in given.parts]
        elif isinstance(given, Mapping):
            pairs = [
                (name, as_reward(part), float(n == 0))
                for n, (name, part) in enumerate(given.items())
            ]
        else:
            several = (
                [given]
                if callable(given)
                else list(given)
                if isinstance(given, (list, tuple))
                else [given]
            )
            pairs = [
                (part.name, part, float(n == 0)) for n, part in enumerate(map(as_reward, several))
            ]
        self.parts: dict[str, Reward] = {name: part for name, part, _ in pairs}
        if not pairs or len(self.parts) < len(pairs):
            raise ValueError(
                f"the explorer needs rewards of different names, got {[name for name, *_ in pairs]}; give a dict to name them"
            )
        self.weights = tuple((name, weight) for name, _, weight in pairs)
        self._sums: dict[tuple, Reward] = {}

    def combined(self, weights: tuple[tuple[str, float], ...]) -> Reward:
        """The sum of the rewards with these weights; a single one of weight 1 is itself. Raises ValueError where all weights are 0."""
        terms = tuple((float(weight), self.parts[name]) for name, weight in weights if weight)
        if not terms:
            raise ValueError("every reward has weight 0: give at least one of them a weight")
        if weights not in self._sums:
            self._sums[weights] = (
                terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else WeightedSum(terms)
            )
        return self._sums[weights]


def method_of(settings: Settings, rewards: Rewards) -> Method:
    """The method that the settings describe. Raises ValueError where they do not fit it."""
    plain = settings.plain()
    if "tokens" in plain.uses and not plain.tokens:
        raise ValueError(
            "SoftREPA needs soft tokens, and none ship for this model: dk.explore(..., tokens='file.safetensors')"
        )
    given = lambda use: rewards.combined(plain.weights) if use == "reward" else getattr(plain, use)
    parts = [
        getattr(methods, name)(**{_WORDS.get(use, use): given(use) for use in uses})
        for name, uses in METHODS[plain.method]
    ]
    return functools.reduce(operator.add, parts)


def sampler_of(settings: Settings, backbone, rewards: Rewards) -> Sampler:
    """The sampler that the settings describe. Raises ValueError or TypeError where they do not fit it."""
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


def solvers_of(backbone) -> list[str]:
    """The solvers that fit a backbone, the recommended one first."""
    first = backbone.recommended.solver

    def fits(name: str) -> bool:
        try:
            Sampler(backbone, num_steps=4, solver=name)
        except ValueError:
            return False
        return True

    return [first, *(name for name in SOLVERS if name != first and fits(name))]


def schedule_code(when: Schedule) -> str:
    """A schedule as Python; what has no short name is written out by `Settings.plain` before."""
    if isinstance(when, every):
        return f"dk.every({when.k})"
    if isinstance(when, schedules.fraction):
        return f"dk.fraction({when.share!r})"
    if isinstance(when, schedules.third):
        return f"dk.{('early', 'middle', 'late')[when.which]}()"
    return f"dk.steps({', '.join(map(str, when.wanted))})"


def method_code(settings: Settings) -> str:
    """The method as Python, the reward under the name `reward`."""
    if "when" in settings.uses and not settings.updates:
        return "dk.Fixed()"
    when = (
        settings.when
        if not isinstance(settings.when, schedules.predicate)
        else _steps(settings.updates)
    )

    def said(use: str) -> str:
        if use in ("reward", "when"):
            return use if use == "reward" else f"when={when and schedule_code(when)}"
        value = getattr(settings, use)
        return f"{_WORDS.get(use, use)}={'dk.rho_rules.' if isinstance(value, rho_rules.RhoRule) else ''}{value!r}"

    return " + ".join(
        f"dk.{name}({', '.join(map(said, uses))})" for name, uses in METHODS[settings.method]
    )


def _steps(wanted: Iterable[int]) -> Schedule | None:
    found = sorted(wanted)
    return steps(*found) if found else None
