"""The reward protocol, (images (B, 3, H, W) in [0, 1], prompts) -> (B,), and its arithmetic."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import RewardError, check_context, check_finite, finite, has_numbers
from ..registry import Registered

VARYING = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd)
BYTES = 8.0  # an x0bar that overshoots [0, 1] so far does it on both sides


class Reward(Registered, ABC):
    """A differentiable score of images under prompts; `a + b`, `0.5 * a` and `a - b` are rewards.

    Any callable of the same signature serves too; a subclass is one `forward`. The runs of one that
    is a dataclass can be loaded by their file alone, unless its weights do not come along.
    """

    kind: ClassVar[str] = "reward"
    SHIPPED: ClassVar[dict[str, str | None]] = {}  # names for `rewards.load` -> folders of weights
    name: str = "reward"

    @abstractmethod
    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W), in [0, 1] or near; carries gradient to them.

        They may come on another device than that of the images.
        """

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The scores, checked as by `score`; carries gradient to the images."""
        return score(self, images, prompts)

    def call_forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """What `forward` says, where the images are. Raises RewardError unless it is (B,)."""
        h = self.forward(images.clone(), list(prompts))  # which somebody's own may change
        shape = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
        if shape != (len(prompts),):  # one score for all would be broadcast
            wanted = f"one score a sample, shape ({len(prompts)},)"
            raise RewardError(f"{self.name} must return {wanted}; it returned {shape}")
        return h.to(images.device)

    def terms(self) -> tuple[tuple[float, Reward], ...]:
        """The terms of a sum, each with its weight; of another reward itself."""
        return ((1.0, self),)

    def __add__(self, other: Reward | Callable) -> Reward:
        return WeightedSum(self.terms() + as_reward(other).terms())

    def __radd__(self, other: Reward | Callable | int) -> Reward:
        return self if other == 0 else as_reward(other) + self

    def __mul__(self, weight: float) -> Reward:
        weight = float(finite("the weight of a reward", weight, least=-math.inf))
        return WeightedSum(tuple((weight * own, part) for own, part in self.terms()))

    __rmul__ = __mul__

    def __neg__(self) -> Reward:
        return self * -1.0

    def __sub__(self, other: Reward | Callable) -> Reward:
        return self + -as_reward(other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


@dataclass(frozen=True, repr=False)
class WeightedSum(Reward):
    """sum_k weight_k reward_k. parts: pairs of a weight and a reward."""

    parts: tuple[tuple[float, Reward], ...]

    def __post_init__(self) -> None:
        for _, part in self.parts:
            if hasattr(part, "decoder"):
                raise ValueError("a sum has one decoder: add first, then use decoders.through")

    @property
    def name(self) -> str:
        return " + ".join(f"{weight:g} * {part.name}" for weight, part in self.parts)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return sum(weight * part.call_forward(images, prompts) for weight, part in self.parts)

    def terms(self) -> tuple[tuple[float, Reward], ...]:
        return self.parts


class FunctionReward(Reward):
    """A plain function as a reward, of the function's name.

    Raises ValueError for a module whose dropout or batch norm is in training mode: every call of it
    would be another reward.
    """

    kind = "reward"  # said here, so that it is not one of the rewards that can be asked for by name

    def __init__(self, function: Callable) -> None:
        parts = function.modules() if isinstance(function, torch.nn.Module) else ()
        if any(part.training and isinstance(part, VARYING) for part in parts):
            told = "its dropout or batch norm makes every call another reward"
            raise ValueError(
                f"{type(function).__name__} is in training mode, and {told}: eval() it"
            )
        self.function = function
        own = getattr(function, "name", None) or getattr(function, "__name__", None)
        self.name = own or type(function).__name__

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.function(images, prompts)


def as_reward(reward: Reward | Callable) -> Reward:
    """A `Reward` from a reward or from any function (images, prompts) -> (B,)."""
    if isinstance(reward, Reward):
        return reward
    if not callable(reward) or isinstance(reward, (type, Registered)):
        raise TypeError(f"a reward must be callable as (images, prompts) -> (B,), got {reward!r}")
    return FunctionReward(reward)


def score(
    reward: Callable, images: Tensor, prompts: Sequence[str], where: str = "", first: int = 0
) -> Tensor:
    """The reward (B,) of images (B, 3, H, W), in float32 at least, with input and output checked.

    where, first: the place and the number of the first sample, for error messages. Raises
    RewardError for what has another form, NonFiniteError for NaN or infinity, and RuntimeError
    inside torch.autocast.
    """
    reward = as_reward(reward)
    check_inputs(images, prompts, where, first)
    check_context(images.device)
    images = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    h = reward.call_forward(images, prompts)
    check_finite(h, f"{reward.name} gave a non-finite reward", where, first)
    return h


def check_pull(grad: Tensor | None, where: str, first: int) -> None:
    """Raise unless a reward has a gradient in x0bar, (B, C, H, W); warn where all of it is zero."""
    if grad is None:
        raise RewardError("the reward carries no gradient to the images")
    check_finite(grad, "the reward's gradient in x0bar is not finite", where, first)
    if has_numbers(grad) and not grad.any():
        told = "is it constant, or does it compare the pictures of a batch with each other?"
        warnings.warn(f"the reward has no slope{where}, so nothing moves: {told}", stacklevel=2)


def check_inputs(images: Tensor, prompts: Sequence[str], where: str = "", first: int = 0) -> None:
    """Raise unless images are finite floats (B, 3, H, W), not of 0 to 255, with B prompts."""
    shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
    if not isinstance(images, Tensor) or len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise RewardError(f"images must be a tensor of shape (B, 3, H, W), got {shape}{where}")
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise RewardError(f"prompts must be a list of strings, got {prompts!r}{where}")
    if len(prompts) != len(images):
        raise RewardError(f"{len(images)} images need as many prompts, got {len(prompts)}{where}")
    if not images.is_floating_point():
        raise RewardError(f"images must be floats in [0, 1], got {images.dtype}{where}")
    check_finite(images, "the images hold NaN or infinity", where, first)
    if not has_numbers(images):
        return
    low, high = torch.aminmax(images.detach().flatten(1), dim=1)
    if ((high > BYTES) & (low > -high / 10)).any():
        reached = f"they reach {high.max().item():g}{where}"
        raise RewardError(f"images must lie in [0, 1], but {reached}; divide them by 255")


def decoder_of(reward: Callable, backbone) -> Callable[[Tensor], Tensor]:
    """What makes a reward's pictures from latents: its own decoder, or else the backbone's."""
    return reward.decoder(backbone) if hasattr(reward, "decoder") else backbone.decode
