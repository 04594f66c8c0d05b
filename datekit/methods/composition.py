"""Several methods in one: each acts on something else, in the order in which a step comes to it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..types import Conditioning, Prediction, State
from .base import STAGES, Method, MethodUpdate

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..rewards.base import Reward
    from ..sampler import Sampler


@dataclass(frozen=True, repr=False)
class Composition(Method):
    """Methods that act on different things, as `dk.DATE(...) + dk.UniversalGuidance(...)` makes it.

    A step first patches the network (EBCA, SoftREPA), then chooses the embedding (DATE, whose
    gradient is that of the patched network), then takes and changes the prediction at that
    embedding (Universal Guidance), in whichever order the parts are added up. Each hook of
    `methods.STAGES` is that of the one part that overrides it; two such parts raise ValueError.
    """

    parts: tuple[Method, ...]

    def __post_init__(self) -> None:
        acting: list[Method] = []
        for part in self.parts:
            inner = part.parts if isinstance(part, Composition) else (part,)
            acting += [each for each in inner if each.stages]
        if len(acting) < 2:
            raise ValueError(f"a composition needs two methods that do something, got {acting!r}")
        for hook, what in STAGES.items():
            rivals = [type(part).__name__ for part in acting if hook in part.stages]
            if len(rivals) > 1:
                both = f"{' and '.join(rivals)} cannot combine: both decide {what} of a step"
                raise ValueError(f"{both} (two rewards go into one method: a + b)")
        acting.sort(key=lambda part: list(STAGES).index(part.stages[0]))
        object.__setattr__(self, "parts", tuple(acting))

    def part(self, hook: str) -> Method:
        """The part that overrides a hook; a method that changes nothing where none does."""
        return next((part for part in self.parts if hook in part.stages), Method())

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(hook for hook in STAGES if self.part(hook).stages)

    @property
    def reward(self) -> Reward | None:
        """The reward of the part that chooses the embedding, or else of the first that has one."""
        rewards = [part.reward for part in (self.part("condition"), *self.parts)]
        return next((reward for reward in rewards if reward is not None), None)

    @property
    def rho(self) -> float | None:
        return getattr(self.part("condition"), "rho", None)

    def check(self, sampler: Sampler) -> None:
        for part in self.parts:
            part.check(sampler)

    def patch(self, denoiser: Denoiser) -> AbstractContextManager:
        return self.part("patch").patch(denoiser)

    def gradient_point(self, state: State) -> Conditioning:
        return self.part("condition").gradient_point(state)

    def condition(self, denoiser: Denoiser, state: State) -> MethodUpdate:
        return self.part("condition").condition(denoiser, state)

    def predict(self, denoiser: Denoiser, cond: Conditioning) -> Prediction:
        return self.part("predict").predict(denoiser, cond)

    def repeats(self, denoiser: Denoiser) -> int:
        return max(part.repeats(denoiser) for part in self.parts)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))
