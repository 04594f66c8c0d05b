"""The protocol of a method: it decides what each step feeds the network."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import Field, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..display import summary
from ..errors import check_layers, finite, unknown, whole
from ..registry import Registered, find, options
from ..rewards.base import as_reward, decoder_of
from ..schedules import as_schedule
from ..types import Conditioning, Prediction, RewardGradient, State

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..sampler import Sampler

STAGES = {  # the hooks in the order in which a step calls them, and what each acts on
    "patch": "the inside of the network",
    "condition": "the text embedding",
    "predict": "the prediction",
}


@dataclass(frozen=True)
class MethodUpdate:
    """What a method answers in one step.

    cond: the embedding to feed; gradient: what the method looked at to choose it, if it did; moved:
    whether the embedding of any sample moved; carry: tensors (B, ...) by name that the next step
    finds in `state.extras`.
    """

    cond: Conditioning
    gradient: RewardGradient | None = None
    moved: bool = False
    carry: dict[str, Tensor] = field(default_factory=dict)


class Method(Registered):
    """One way to condition a step: a frozen dataclass of settings. Its hooks change nothing here.

    It never holds state, which `MethodUpdate.carry` takes to the next step, so that a step is a
    pure function of the `State`. `a + b` applies both where they override different hooks.
    """

    kind = "method"
    reward: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__repr__" not in vars(cls):  # else a dataclass would write one of its own
            cls.__repr__ = cls.__repr__

    def __repr__(self) -> str:
        return summary(self)

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError for an option that is not of its kind or out of range."""
        for name, each in options(type(self)).items():
            object.__setattr__(self, name, _check(each, getattr(self, name)))

    @property
    def stages(self) -> tuple[str, ...]:
        """The hooks of `STAGES` that the method overrides: what it acts on."""
        own = type(self)
        return tuple(hook for hook in STAGES if getattr(own, hook) is not getattr(Method, hook))

    def __add__(self, other: Method) -> Method:
        if not isinstance(other, Method):
            return NotImplemented
        if not other.stages:  # it does nothing
            return self
        return find("method", "Composition")((self, other)) if self.stages else other

    def check(self, sampler: Sampler) -> None:
        """Raise an error for settings that do not fit the sampler, before anything is sampled."""
        if getattr(self, "reward", None) is not None:
            check_layers(getattr(sampler.backbone, "network", None))
            decoder_of(self.reward, sampler.backbone)  # fitted while nothing is patched

    def patch(self, denoiser: Denoiser) -> AbstractContextManager:
        """What is changed inside the network while one step is looked at or taken.

        `denoiser.branch` tells, during a forward pass, which rows of the batch are conditional.
        """
        return contextlib.nullcontext()

    def gradient_point(self, state: State) -> Conditioning:
        """The embedding at which the method takes its gradient; `Run.peek` looks there too."""
        return state.cond_org

    def condition(self, denoiser: Denoiser, state: State) -> MethodUpdate:
        """The embedding to feed in this step, which the next step finds in `state.cond`."""
        return MethodUpdate(state.cond_org)

    def predict(self, denoiser: Denoiser, cond: Conditioning) -> Prediction:
        """The guided prediction that the solver steps with, at the embedding of `condition`."""
        return denoiser.predict(cond)

    def repeats(self, denoiser: Denoiser) -> int:
        """How often the step is taken: each further time from its result, noised again."""
        return 1


@dataclass(frozen=True)
class Fixed(Method):
    """Feeds c_org at every step, which is the sampling of the pipeline itself."""


def _check(option: Field, value: Any) -> Any:
    """The value of an option, its number as a Python number."""
    name, kind = option.name, getattr(option.type, "__name__", option.type)
    choices, limits = option.metadata["choices"], option.metadata["range"] or (0, 0)
    if name == "when":
        return as_schedule(value)
    if name == "reward" and value is not option.default:
        as_reward(value)
    elif choices and value not in choices:
        raise unknown(name, value, choices)
    elif kind == "float":
        return finite(name, value, min(0.0, limits[0]))
    elif kind == "int":
        return whole(name, value, limits[0])
    return value
