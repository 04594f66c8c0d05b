"""The reward protocol, (images (B, 3, H, W) in [0, 1], prompts) -> (B,), its arithmetic and its contract."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RewardError, check_finite

_BYTES = 8.0  # an x0bar overshoots [0, 1] on both sides; a picture that is hardly ever negative and goes far beyond holds 0 to 255


class Reward(ABC):
    """A differentiable score of images under prompts; `a + b`, `0.5 * a` and `-a` are rewards too.

    Any callable of the same signature serves as a reward; subclass and write `forward` for arithmetic, a name and
    `Run.save`. settings: the keywords that make the reward again, None where it cannot be made from plain data; size: (height, width)
    that it brings pictures to, None where it takes them as they are or does not say.
    """

    name: str = "reward"
    settings: dict | None = None
    size: tuple[int, int] | None = None

    @abstractmethod
    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) nominally in [0, 1] and B prompts to (B,); carries gradient to the images."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`forward` with its input and output checked as by `score`; carries gradient to the images."""
        return score(self, images, prompts)

    def with_terms(
        self, images: Tensor, prompts: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The reward (B,) and, of the same pass and unweighted, the values of the parts of a combination, by name; each (B,)."""
        h = self.forward(images, prompts)
        return h, {self.name: h}

    def terms(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The unweighted values of the parts of a combination, by name; each (B,)."""
        found: dict[str, Tensor] = {}
        score(self, images, prompts, terms=found)
        return found

    def standardised(self, images: Tensor, prompts: Sequence[str], batch: int = 16) -> Reward:
        """(h - mean) / std, measured on these images, `batch` at a time; of a sum, each of its terms, the weights kept.

        So terms of different scale weigh as their weights say. Raises ValueError for fewer than two images or equal scores.
        """
        from .combine import standardise

        return standardise(self, images, prompts, batch)

    def __add__(self, other: Reward | Callable) -> Reward:
        return WeightedSum(((1.0, self),)) + other

    def __radd__(self, other: Reward | Callable | int) -> Reward:
        return self if other == 0 else WeightedSum(((1.0, as_reward(other)), (1.0, self)))

    def __mul__(self, weight: float) -> Reward:
        return WeightedSum(((_number(weight), self),))

    __rmul__ = __mul__

    def __neg__(self) -> Reward:
        return self * -1.0

    def __truediv__(self, number: float) -> Reward:
        return self * (1 / _number(number))

    def __rsub__(self, other: Reward | Callable) -> Reward:
        return as_reward(other) + self * -1.0

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

    @property
    def size(self) -> tuple[int, int] | None:
        """The largest of its parts, None where one does not say."""
        sizes = [part.size for _, part in self.parts]
        return None if None in sizes else tuple(max(sides) for sides in zip(*sizes, strict=True))

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The weighted sum, (B,)."""
        return self.with_terms(images, prompts)[0]

    def with_terms(
        self, images: Tensor, prompts: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum (B,) and the unweighted values of its parts, by name; each (B,)."""
        names = [part.name for _, part in self.parts]
        unique = [
            name if names.count(name) == 1 else f"{name} #{names[: n + 1].count(name)}"
            for n, name in enumerate(names)
        ]
        values = [
            checked_shape(part, part.forward(images, prompts), len(prompts))
            for _, part in self.parts
        ]
        total = sum(weight * value for (weight, _), value in zip(self.parts, values, strict=True))
        return total, dict(zip(unique, values, strict=True))

    def __add__(self, other: Reward | Callable) -> Reward:
        other = as_reward(other)
        return WeightedSum(
            self.parts + (other.parts if isinstance(other, WeightedSum) else ((1.0, other),))
        )

    def __mul__(self, weight: float) -> Reward:
        return WeightedSum(tuple((_number(weight) * w, part) for w, part in self.parts))

    __rmul__ = __mul__


class FunctionReward(Reward):
    """A plain function as a reward."""

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.name = getattr(function, "name", None) or getattr(
            function, "__name__", type(function).__name__
        )
        self.size = getattr(function, "size", None)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """What the function says."""
        return self.function(images, prompts)


def as_reward(reward: Reward | Callable) -> Reward:
    """A `Reward` from a reward or from any function (images, prompts) -> (B,)."""
    if isinstance(reward, Reward):
        return reward
    if callable(reward):
        return FunctionReward(reward)
    raise TypeError(
        f"a reward must be callable as (images, prompts) -> (B,), got {type(reward).__name__}"
    )


def decoder_of(reward: Callable, backbone) -> Callable[[Tensor], Tensor]:
    """What shows a reward its pictures: the backbone's decoder, unless the reward brings its own (`decoders.DecodedWith`)."""
    return reward.decoder(backbone) if hasattr(reward, "decoder") else backbone.decode


def score(
    reward: Callable,
    images: Tensor,
    prompts: Sequence[str],
    where: str = "",
    first: int = 0,
    terms: dict[str, Tensor] | None = None,
) -> Tensor:
    """The reward of images, float32 at least, with input and output checked; carries gradient.

    where, first: for error messages, the place and the number of the first sample; terms: a dictionary that receives the
    values of a combination's parts. Raises RewardError where images and prompts do not fit each other or [0, 1], or where
    the reward's shape is not (B,); NonFiniteError with the sample's number on NaN or infinity in either.
    """
    reward = as_reward(reward)
    check_inputs(images, prompts, where, first)
    images = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    h, values = reward.with_terms(images, list(prompts))
    checked_shape(reward, h, len(prompts), where)
    check_finite(h, f"{reward.name} gave a non-finite reward", where, first)
    if terms is not None:
        terms.update(values)
    return h


def check_inputs(images: Tensor, prompts: Sequence[str], where: str = "", first: int = 0) -> None:
    """Raise unless images are floats (B, 3, H, W), finite and not of 0 to 255, with a list of B prompts.

    RewardError for the form, NonFiniteError for NaN or infinity. Values somewhat outside of [0, 1] pass: x0bar has them.
    """
    if (
        not isinstance(images, Tensor)
        or images.ndim != 4
        or images.shape[1] != 3
        or not images.numel()
    ):
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise RewardError(f"images must be a tensor of shape (B, 3, H, W), got {found}{where}")
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise RewardError(
            f"prompts must be a list of strings, one an image, got {prompts!r}{where}"
        )
    if len(images) != len(prompts):
        raise RewardError(
            f"{len(images)} images need {len(images)} prompts, got {len(prompts)}{where}"
        )
    if not images.is_floating_point():
        raise RewardError(
            f"images must be floats in [0, 1], got {images.dtype}{where}; divide bytes by 255"
        )
    check_finite(images, "the images hold NaN or infinity", where, first)
    low, high = torch.aminmax(images.detach().flatten(1), dim=1)
    if (wrong := (high > _BYTES) & (low > -high / 10)).any():
        row = int(wrong.nonzero()[0])
        raise RewardError(
            f"images must lie in [0, 1], but sample {first + row} reaches {high[row].item():g}{where}; divide it by 255"
        )


def checked_shape(reward: Reward, h: object, count: int, where: str = "") -> Tensor:
    """h, unless it is no tensor of shape (count,): then RewardError."""
    if not isinstance(h, Tensor) or h.shape != (count,):
        found = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
        raise RewardError(
            f"{reward.name} must return one score a sample, shape ({count},); it returned {found}{where}"
        )
    return h


def _number(weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
        raise TypeError(f"a reward is weighted by a number, got {type(weight).__name__}")
    return float(weight)
