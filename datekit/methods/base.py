"""The protocol of a method: it decides what each step feeds the network."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import finite, whole
from ..types import Conditioning, RewardGradient, Prediction, State

if TYPE_CHECKING:
    from ..denoiser import Denoiser

__all__ = ["STAGES", "Method", "Conditioned", "check_rho", "finite", "whole"]


@dataclass(frozen=True)
class Conditioned:
    """What a method did to the embedding in one step: the one to feed, what it saw, whether anything moved."""

    cond: Conditioning
    look: RewardGradient | None = None
    moved: bool = False
    notes: dict = field(default_factory=dict)


class Method:
    """One way to condition a step. Each hook changes nothing by default; override those that matter.

    A method holds settings only, never state, so that a step is a pure function of the `State`. `a + b` applies both
    where they override different hooks of `STAGES`.
    """

    reward = None
    keep_graph: bool | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """Which hooks of `STAGES` the method overrides: what it acts on."""
        return tuple(
            hook for hook in STAGES if getattr(type(self), hook) is not getattr(Method, hook)
        )

    @property
    def rewards(self) -> dict:
        """The reward of each of `stages` that takes a gradient of one."""
        return {} if self.reward is None else dict.fromkeys(self.stages, self.reward)

    def __add__(self, other: Method) -> Method:
        if not isinstance(other, Method):
            return NotImplemented
        from .composition import combine

        return combine(self, other)

    def check(self, sampler) -> None:
        """Raise ValueError or TypeError for settings that do not fit the sampler, before any sampling."""

    def patch(self, denoiser: Denoiser) -> AbstractContextManager:
        """What is changed inside the network while one step is looked at or taken, and restored after it.

        `denoiser.branch` tells, during a forward pass, which rows of the batch are conditional.
        """
        return contextlib.nullcontext()

    def gradient_point(self, state: State) -> Conditioning:
        """The embedding at which the method looks before it decides; `Run.peek` looks there too."""
        return state.cond_org

    def condition(self, denoiser: Denoiser, state: State) -> Conditioned:
        """The embedding to feed in this step; this also is what the next step finds in `state.cond`."""
        return Conditioned(state.cond_org)

    def predict(self, denoiser: Denoiser, cond: Conditioning) -> Prediction:
        """The prediction to step with, at the embedding that `condition` chose."""
        return denoiser.recall(cond)

    def repeats(self, denoiser: Denoiser) -> int:
        """How often the step is taken, 1 at least: before each further time the sampler brings the result back to this step's
        noise level with fresh noise, and everything but xt is again as it was before the step."""
        return 1


STAGES = {
    "patch": "the inside of the network",
    "condition": "the text embedding",
    "predict": "the prediction",
}  # the hooks in the order in which a step calls them, and what each acts on


def check_rho(rho: object) -> float:
    """The radius as a Python number. Raises ValueError unless it is a finite number from 0 up."""
    return finite("rho", rho)
