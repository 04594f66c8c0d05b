"""Which steps update. A schedule answers for step i of num_steps; steps count from the noisiest."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import finite, whole
from .registry import Registered, option


class Schedule(Registered):
    """A set of steps. A subclass answers `schedule(i, num_steps) -> bool`."""

    kind = "schedule"

    def __call__(self, i: int, num_steps: int) -> bool:
        raise NotImplementedError

    def indices(self, num_steps: int) -> tuple[int, ...]:
        """The steps that update in a run of num_steps."""
        return tuple(i for i in range(num_steps) if self(i, num_steps))


@dataclass(frozen=True)
class every(Schedule):
    """Steps 0, k, 2k, ...; k = 10 of 50 steps is the authors' 10 %."""

    k: int = option(1, help="How many steps lie from one update to the next.", range=(1, 50))

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", whole("the k of every(k)", self.k, 1))

    def __call__(self, i: int, num_steps: int) -> bool:
        return i % self.k == 0


@dataclass(frozen=True)
class fraction(Schedule):
    """A share of the steps, spread evenly from the first; at least one."""

    share: float = option(help="The share of the steps that update.", range=(0.0, 1.0))

    def __post_init__(self) -> None:
        if not 0 < finite("the share of fraction(share)", self.share) <= 1:
            raise ValueError(f"fraction takes a share above 0 and up to 1, got {self.share!r}")

    def __call__(self, i: int, num_steps: int) -> bool:
        count = max(1, round(self.share * num_steps))
        return i in {n * num_steps // count for n in range(count)}


@dataclass(frozen=True, init=False)
class steps(Schedule):
    """Exactly these steps: `steps(0, 10, 20)` or `steps(range(10, 20))`."""

    wanted: tuple[int, ...]

    def __init__(self, *wanted: int | Iterable[int]) -> None:
        one = len(wanted) == 1 and not isinstance(wanted[0], numbers.Real)
        indices = tuple(whole("a step of steps(...)", i, 0) for i in (wanted[0] if one else wanted))
        if not indices:
            raise ValueError("steps(...) needs at least one step; for none, use dk.Fixed()")
        object.__setattr__(self, "wanted", indices)

    def __call__(self, i: int, num_steps: int) -> bool:
        if max(self.wanted) >= num_steps:
            ends = f"a run of {num_steps} steps ends with {num_steps - 1}"
            raise ValueError(f"steps(...) names step {max(self.wanted)}, but {ends}")
        return i in self.wanted

    @classmethod
    def rebuild(cls, settings: dict) -> steps:
        """The schedule of a saved description."""
        return cls(settings["wanted"])


@dataclass(frozen=True)
class third(Schedule):
    """One third of the run."""

    which: int = option(help="The third that updates: 0 the noisiest, 2 the last.", range=(0, 2))

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


def as_schedule(when: Schedule) -> Schedule:
    """The schedule itself. Raises TypeError for what is none."""
    if not isinstance(when, Schedule):
        raise TypeError(f"when must be a schedule such as dk.every(5), got {when!r}")
    return when
