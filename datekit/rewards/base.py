"""The reward protocol, (images (B, 3, H, W) in [0, 1], prompts) -> (B,), and its arithmetic."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import check_finite
from ..files import shipped
from ..registry import Registered
from .checks import check_inputs, check_shape


class Reward(Registered, ABC):
    """A differentiable score of images under prompts; `a + b`, `0.5 * a` and `-a` are rewards too.

    Any callable of the same signature serves as a reward. Subclass and write `forward` for
    arithmetic, a name, and runs that are saved and loaded.

    SHIPPED: the names by which `rewards.load` makes it, each with the folder of its weights, None
    for a reward without any; shipped: the name by which it was loaded; size: the (height, width)
    that it brings pictures to, None where it takes them as they are or does not say; device: where
    its weights are, None for a reward that has none and takes no such keyword.
    """

    kind: ClassVar[str] = "reward"
    SHIPPED: ClassVar[dict[str, str | None]] = {}
    name: str = "reward"
    shipped: str | None = None
    size: tuple[int, int] | None = None
    device: torch.device | None = None

    @abstractmethod
    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W), nominally in [0, 1], under B prompts.

        Carries gradient to the images.
        """

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The scores, checked as by `score`; carries gradient to the images."""
        return score(self, images, prompts)

    def with_terms(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict]:
        """The reward (B,) and, of the same pass, the unweighted parts of a combination by name."""
        h = check_shape(self.name, self.forward(images, prompts), len(prompts))
        return h, {self.name: h}

    def terms(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The unweighted values of the parts of a combination, by name; each (B,)."""
        check_inputs(images, prompts)
        return self.with_terms(images, prompts)[1]

    @torch.no_grad()
    def standardised(self, images: Tensor, prompts: Sequence[str], batch: int = 16) -> Reward:
        """(h - mean) / std with both measured on these images, `batch` at a time.

        A sum is standardised term by term, and the weights are kept: terms of different scale then
        weigh as their weights say. Raises ValueError for fewer than two images and for equal
        scores.
        """
        if len(images) < 2:
            raise ValueError("a scale needs two images at least; give some tens of them")
        check_inputs(images, prompts)
        parts = []
        for start in range(0, len(images), batch):
            rows = slice(start, start + batch)
            parts.append(score(self, images[rows], prompts[rows], first=start))
        h = torch.cat(parts).double()
        mean, std = h.mean().item(), h.std().item()
        if std <= 1e-6 * h.abs().max().item():
            raise ValueError(f"{self.name} scores all of these images alike, {mean:g}")
        return Standardised(self, mean, std)

    def describe(self) -> dict[str, Any] | None:
        """What `rebuild` makes the reward again from: its name, or the fields of a dataclass.

        Other rewards may stand in the fields. None where the reward is no dataclass.
        """
        if not self.shipped and not is_dataclass(self):
            return None
        place = {"device": torch.device(self.device).type} if self.device else {}
        if self.shipped:
            return {"shipped": self.shipped} | place
        settings = {}
        for field in fields(self):
            value = getattr(self, field.name)
            settings[field.name] = str(value) if isinstance(value, Path) else value
        settings.pop("device", None)
        return {"settings": settings} | place

    @classmethod
    def rebuild(cls, data: dict[str, Any]) -> Reward:
        """The reward that `describe` told of; on the CPU where CUDA is gone."""
        place = {"device": data["device"]} if "device" in data else {}
        if place.get("device") == "cuda" and not torch.cuda.is_available():
            place = {"device": "cpu"}
        if "shipped" in data:
            return cls.load_shipped(data["shipped"], **place)
        return cls(**data["settings"], **place)

    @classmethod
    def load_shipped(cls, name: str, *, device: str | None = None) -> Reward:
        """The reward of a name of `SHIPPED`; FileNotFoundError where its weights are missing."""
        part = cls.SHIPPED[name]
        source = [] if part is None else [shipped(part)]
        if source and not source[0].is_dir():
            raise FileNotFoundError(f"the weights of {name!r} are missing, {source[0]}")
        reward = cls(*source, device=device)
        reward.name = reward.shipped = name
        return reward

    def __add__(self, other: Reward | Callable) -> Reward:
        return WeightedSum(((1.0, self),)) + other

    def __radd__(self, other: Reward | Callable | int) -> Reward:
        return self if other == 0 else as_reward(other) + self

    def __mul__(self, weight: float) -> Reward:
        return WeightedSum(((_number(weight), self),))

    __rmul__ = __mul__

    def __neg__(self) -> Reward:
        return self * -1.0

    def __truediv__(self, number: float) -> Reward:
        return self * (1 / number)

    def __sub__(self, other: Reward | Callable) -> Reward:
        return self + as_reward(other) * -1.0

    def __rsub__(self, other: Reward | Callable) -> Reward:
        return as_reward(other) + self * -1.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


@dataclass(frozen=True, repr=False)
class WeightedSum(Reward):
    """sum_k weight_k reward_k. parts: pairs of a weight and a reward."""

    parts: tuple[tuple[float, Reward], ...]

    @property
    def name(self) -> str:
        """The formula."""
        return " + ".join(f"{weight:g} * {part.name}" for weight, part in self.parts)

    @property
    def size(self) -> tuple[int, int] | None:
        """The largest of the parts' sizes, None where one does not say."""
        sizes = [part.size for _, part in self.parts]
        if None in sizes:
            return None
        heights, widths = zip(*sizes, strict=True)
        return max(heights), max(widths)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The weighted sum, (B,)."""
        return self.with_terms(images, prompts)[0]

    def with_terms(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict]:
        """The weighted sum (B,) and the unweighted values of its parts: name -> (B,)."""
        names = [part.name for _, part in self.parts]
        total: Any = 0
        terms = {}
        for n, (weight, part) in enumerate(self.parts):
            value, _ = part.with_terms(images, prompts)
            total = total + weight * value
            again = f" #{names[: n + 1].count(part.name)}" if names.count(part.name) > 1 else ""
            terms[part.name + again] = value
        return total, terms

    def standardised(self, images: Tensor, prompts: Sequence[str], batch: int = 16) -> Reward:
        """Each of the terms standardised on these images; the weights are kept."""
        parts = [(weight, part.standardised(images, prompts, batch)) for weight, part in self.parts]
        return WeightedSum(tuple(parts))

    def __add__(self, other: Reward | Callable) -> Reward:
        other = as_reward(other)
        more = other.parts if isinstance(other, WeightedSum) else ((1.0, other),)
        return WeightedSum(self.parts + more)

    def __mul__(self, weight: float) -> Reward:
        weight = _number(weight)
        return WeightedSum(tuple((weight * own, part) for own, part in self.parts))

    __rmul__ = __mul__


@dataclass(frozen=True, repr=False)
class Standardised(Reward):
    """(h - mean) / std, measured once, so that rewards of different scale can be added."""

    reward: Reward
    mean: float
    std: float

    @property
    def name(self) -> str:
        """The reward's own, marked."""
        return f"standardised {self.reward.name}"

    @property
    def size(self) -> tuple[int, int] | None:
        """The reward's own."""
        return self.reward.size

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(h - mean) / std, (B,)."""
        h, _ = self.reward.with_terms(images, prompts)
        return (h - self.mean) / self.std


class FunctionReward(Reward):
    """A plain function as a reward; it has the function's name, and its `size` where it has one."""

    kind = "reward"  # said here, so that it is not one of the rewards that can be asked for by name

    def __init__(self, function: Callable) -> None:
        self.function = function
        own = getattr(function, "name", None) or getattr(function, "__name__", None)
        self.name = own or type(function).__name__
        self.size = getattr(function, "size", None)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """What the function says."""
        return self.function(images, prompts)


def _number(weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
        raise TypeError(f"a reward is weighted by a number, got {type(weight).__name__}")
    return float(weight)


def as_reward(reward: Reward | Callable) -> Reward:
    """A `Reward` from a reward or from any function (images, prompts) -> (B,)."""
    if isinstance(reward, Reward):
        return reward
    if not callable(reward):
        raise TypeError(f"a reward must be callable as (images, prompts) -> (B,), got {reward!r}")
    return FunctionReward(reward)


def score(
    reward: Callable,
    images: Tensor,
    prompts: Sequence[str],
    where: str = "",
    first: int = 0,
    terms: dict[str, Tensor] | None = None,
) -> Tensor:
    """The reward (B,) of images (B, 3, H, W), in float32 at least, with input and output checked.

    Carries gradient to the images. where, first: the place and the number of the first sample, for
    error messages; terms: a dictionary that receives the values of a combination's parts. Raises
    RewardError where images and prompts do not fit each other or [0, 1], or where the reward is not
    (B,), and NonFiniteError, with the number of the sample, for NaN or infinity in either.
    """
    reward = as_reward(reward)
    check_inputs(images, prompts, where, first)
    images = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    h, values = reward.with_terms(images, list(prompts))
    check_shape(reward.name, h, len(prompts), where)
    check_finite(h, f"{reward.name} gave a non-finite reward", where, first)
    if terms is not None:
        terms.update(values)
    return h


def decoder_of(reward: Callable, backbone) -> Callable[[Tensor], Tensor]:
    """What makes the pictures that a reward is shown, from latents: the backbone's own decoder.

    A reward may bring a cheaper one instead (`decoders.DecodedWith`).
    """
    return reward.decoder(backbone) if hasattr(reward, "decoder") else backbone.decode
