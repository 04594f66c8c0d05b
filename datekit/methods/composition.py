"""Several methods in one: each acts on something else, in the order in which a step comes to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ..types import Conditioning, Prediction
from .base import STAGES, Method, Conditioned


@dataclass(frozen=True, repr=False)
class Composition(Method):
    """Methods that act on different things, as `dk.DATE(...) + dk.UniversalGuidance(...)` makes it.

    A step first installs what changes the network (EBCA, SoftREPA), then chooses the embedding (DATE, whose gradient is that of the changed
    network), then takes and changes the prediction at that embedding (Universal Guidance). The order in which the parts are
    added up does not matter. parts: methods, each overriding other hooks of `methods.STAGES`. Raises ValueError for two that
    act on the same thing, or for fewer than two that act at all.
    """

    parts: tuple[Method, ...]

    def __post_init__(self) -> None:
        flat = [
            p
            for part in self.parts
            for p in (part.parts if isinstance(part, Composition) else (part,))
        ]
        order = list(STAGES)
        acting = sorted(
            (part for part in flat if part.stages), key=lambda part: order.index(part.stages[0])
        )
        if len(acting) < 2:
            raise ValueError(f"a composition needs two methods that do something, got {flat!r}")
        for hook, what in STAGES.items():
            rivals = [type(part).__name__ for part in acting if hook in part.stages]
            if len(rivals) > 1:
                raise ValueError(
                    f"{' and '.join(rivals)} cannot combine: both decide {what} of a step, so that one would undo the "
                    "other; keep one of them (two rewards go into one method: a + b)"
                )
        object.__setattr__(self, "parts", tuple(acting))

    @property
    def stages(self) -> tuple[str, ...]:
        """What the parts act on together."""
        return tuple(hook for hook in STAGES if self._part(hook) is not None)

    @property
    def reward(self):
        """The reward of the part that chooses the embedding, or of the first that has one."""
        rewards = [
            part.reward
            for part in (self._part("condition"), *self.parts)
            if part is not None and part.reward is not None
        ]
        return rewards[0] if rewards else None

    @property
    def rewards(self) -> dict:
        """Those of the parts."""
        return {stage: reward for part in self.parts for stage, reward in part.rewards.items()}

    @property
    def rho(self) -> float | None:
        """The radius of the part that chooses the embedding."""
        return getattr(self._part("condition"), "rho", None)

    @property
    def keep_graph(self) -> bool | None:
        """Whether the part that chooses the embedding keeps the network's graph."""
        return self._for("condition").keep_graph

    def check(self, sampler) -> None:
        """Each part's own."""
        for part in self.parts:
            part.check(sampler)

    @contextlib.contextmanager
    def patch(self, denoiser) -> Iterator[None]:
        """Each part's own, nested."""
        with contextlib.ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.patch(denoiser))
            yield

    def gradient_point(self, state) -> Conditioning:
        """Where the part that chooses the embedding looks."""
        return self._for("condition").gradient_point(state)

    def condition(self, denoiser, state) -> Conditioned:
        """By the part that chooses the embedding."""
        return self._for("condition").condition(denoiser, state)

    def predict(self, denoiser, cond: Conditioning) -> Prediction:
        """By the part that changes the prediction, at the embedding chosen before."""
        return self._for("predict").predict(denoiser, cond)

    def repeats(self, denoiser) -> int:
        """As often as the part asks that repeats the most."""
        return max(part.repeats(denoiser) for part in self.parts)

    def _part(self, hook: str) -> Method | None:
        return next((part for part in self.parts if hook in part.stages), None)

    def _for(self, hook: str) -> Method:
        return self._part(hook) or Method()

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


def combine(first: Method, second: Method) -> Method:
    """`first + second`; a method that does nothing (Fixed) leaves the other as it is."""
    acting = [method for method in (first, second) if method.stages]
    return Composition((first, second)) if len(acting) == 2 else (acting or [first])[0]
