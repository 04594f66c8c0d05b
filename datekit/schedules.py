"""Which steps update. A schedule is anything that answers for step i of num_steps; steps count from the noisiest."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from dataclasses import dataclass

from .errors import is_whole


class Schedule:
    """A set of steps. Subclasses answer `schedule(i, num_steps) -> bool`."""

    def __call__(self, i: int, num_steps: int) -> bool:
        raise NotImplementedError

    def indices(self, num_steps: int) -> tuple[int, ...]:
        """The steps that update in a run of num_steps."""
        return tuple(i for i in range(num_steps) if self(i, num_steps))


@dataclass(frozen=True)
class every(Schedule):
    """Steps 0, k, 2k, ... (k = 10 of 50 steps is the authors' 10 %)."""

    k: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _whole("every(k)", self.k, 1))

    def __call__(self, i: int, num_steps: int) -> bool:
        return i % self.k == 0


@dataclass(frozen=True)
class fraction(Schedule):
    """A share of the steps, spread evenly from the first; at least one."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"fraction takes a share above 0 and up to 1, got {self.share!r}")

    def __call__(self, i: int, num_steps: int) -> bool:
        count = max(1, round(self.share * num_steps))
        return i in {n * num_steps // count for n in range(count)}


@dataclass(frozen=True, init=False)
class steps(Schedule):
    """Exactly these steps: `steps(0, 10, 20)` or `steps(range(10, 20))`."""

    wanted: tuple[int, ...]

    def __init__(self, *wanted) -> None:
        flat = (
            wanted[0]
            if len(wanted) == 1 and not isinstance(wanted[0], numbers.Integral)
            else wanted
        )
        object.__setattr__(self, "wanted", tuple(_whole("steps(...)", i, 0) for i in flat))
        if not self.wanted:
            raise ValueError("steps(...) needs at least one step; for none, use dk.Fixed()")

    def __call__(self, i: int, num_steps: int) -> bool:
        if (last := max(self.wanted)) >= num_steps:
            raise ValueError(
                f"steps(...) names step {last}, but a run of {num_steps} steps ends with {num_steps - 1}"
            )
        return i in self.wanted


@dataclass(frozen=True)
class third(Schedule):
    """One third of the run: 0 the noisiest, 2 the last."""

    which: int

    def __call__(self, i: int, num_steps: int) -> bool:
        return min(3 * i // num_steps, 2) == self.which


def early() -> third:
    """The first, noisiest third of the steps."""
    return third(0)


def middle() -> third:
    """The middle third of the steps."""
    return third(1)


def late() -> third:
    """The last third of the steps."""
    return third(2)


@dataclass(frozen=True)
class predicate(Schedule):
    """Any function of the step: `f(i)` or `f(i, num_steps)`."""

    function: Callable[..., bool]

    def __call__(self, i: int, num_steps: int) -> bool:
        try:
            required = [
                p
                for p in inspect.signature(self.function).parameters.values()
                if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            ]
        except ValueError:  # builtins without a signature
            required = [None]
        return bool(self.function(*(i, num_steps)[: max(1, len(required))]))


def as_schedule(when) -> Schedule:
    """A schedule from a schedule, a function of the step, or a collection of steps."""
    if isinstance(when, Schedule):
        return when
    if callable(when):
        return predicate(when)
    if isinstance(when, (range, list, tuple, set, frozenset)):
        return steps(sorted(when))
    raise TypeError(
        f"when must be a schedule such as dk.every(5), a function of the step, or steps; got {when!r}"
    )


def _whole(what: str, value: object, least: int) -> int:
    if not is_whole(value) or value < least:
        raise ValueError(f"{what} takes whole numbers from {least} up, got {value!r}")
    return int(value)
