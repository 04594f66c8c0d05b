"""The reward protocol, (images (B, 3, H, W) in [0, 1], prompts) -> (B,), its arithmetic and its contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NonFiniteError, RewardError


class Reward(ABC):
    """A differentiable score of images under prompts; `a + b`, `0.5 * a` and `-a` are rewards too.

    Any callable of the same signature serves as a reward; subclass for arithmetic, a name and `Run.save`.
    """

    name: str = "reward"

    @abstractmethod
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) nominally in [0, 1] and B prompts to (B,); carries gradient to the images."""

    def terms(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The unweighted values of the parts of a combination, by name; each (B,)."""
        return {self.name: self(images, prompts)}

    def __add__(self, other: Reward | Callable) -> Reward:
        return WeightedSum(((1.0, self),)) + other

    def __radd__(self, other: Reward | Callable | int) -> Reward:
        return self if other == 0 else WeightedSum(((1.0, as_reward(other)), (1.0, self)))

    def __mul__(self, weight: float) -> Reward:
        return WeightedSum(((_number(weight), self),))

    __rmul__ = __mul__

    def __neg__(self) -> Reward:
        return self * -1.0

    def __sub__(self, other: Reward | Callable) -> Reward:
        return self + as_reward(other) * -1.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


@dataclass(frozen=True, repr=False)
class WeightedSum(Reward):
    """sum_k weight_k reward_k."""

    parts: tuple[tuple[float, Reward], ...]

    @property
    def name(self) -> str:
        """The formula."""
        return " + ".join(f"{weight:g} * {part.name}" for weight, part in self.parts)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return sum(weight * part(images, prompts) for weight, part in self.parts)

    def terms(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The unweighted values of the parts, by name; each (B,)."""
        names = [part.name for _, part in self.parts]
        unique = [name if names.count(name) == 1 else f"{name} #{names[: n + 1].count(name)}" for n, name in enumerate(names)]
        return {name: part(images, prompts) for name, (_, part) in zip(unique, self.parts, strict=True)}

    def __add__(self, other: Reward | Callable) -> Reward:
        other = as_reward(other)
        return WeightedSum(self.parts + (other.parts if isinstance(other, WeightedSum) else ((1.0, other),)))

    def __mul__(self, weight: float) -> Reward:
        return WeightedSum(tuple((_number(weight) * w, part) for w, part in self.parts))

    __rmul__ = __mul__


class FunctionReward(Reward):
    """A plain function as a reward."""

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.function(images, prompts)


def as_reward(reward: Reward | Callable) -> Reward:
    """A `Reward` from a reward or from any function (images, prompts) -> (B,)."""
    if isinstance(reward, Reward):
        return reward
    if callable(reward):
        return FunctionReward(reward)
    raise TypeError(f"a reward must be callable as (images, prompts) -> (B,), got {type(reward).__name__}")


def score(reward: Callable, images: Tensor, prompts: Sequence[str], where: str = "", first: int = 0) -> Tensor:
    """The reward of images, float32 at least, checked: shape (B,) and finite; carries gradient.

    Raises RewardError on another shape, NonFiniteError with the sample's number on NaN or infinity.
    """
    prompts = list(prompts)
    images = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    h = reward(images, prompts)
    if not isinstance(h, Tensor) or h.shape != (len(prompts),):
        found = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
        raise RewardError(f"{_name(reward)} must return one score a sample, shape ({len(prompts)},); it returned {found}{where}")
    check_finite(h, f"{_name(reward)} gave a non-finite reward", where, first)
    return h


def check_finite(values: Tensor, what: str, where: str, first: int = 0) -> None:
    """Raise NonFiniteError that names the samples (rows, counted from `first`) with NaN or infinity."""
    finite = values.detach().isfinite().reshape(len(values), -1).all(1).tolist()
    bad = [str(first + row) for row, ok in enumerate(finite) if not ok]
    if bad:
        raise NonFiniteError(f"{what} for sample {', '.join(bad)}{where}; the embedding stays as it was")


def _name(reward: Callable) -> str:
    return getattr(reward, "name", None) or getattr(reward, "__name__", type(reward).__name__)


def _number(weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise TypeError(f"a reward is weighted by a number, got {type(weight).__name__}")
    return float(weight)
