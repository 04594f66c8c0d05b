"""The least, or the sum, of a reward over the parts of a prompt."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import unknown
from .base import Reward, as_reward
from .checks import check_shape

REDUCE = {"min": torch.min, "sum": torch.sum}
Split = Callable[[str], Sequence[str]]


@dataclass(frozen=True, repr=False)
class PerConcept(Reward):
    """The least, or the sum, of a reward over the parts of a prompt.

    Each part is scored on the whole picture, and the gradient of the least is that of the worst
    part alone. split: from a prompt to the list of its parts; reduce: "min" or "sum"; without:
    None, or from a prompt to the prompts that lack one part each, in the order of the parts. A
    part's value is then what it adds, h(image, prompt) - h(image, prompt without it), for rewards
    that take a text for all that a picture shows. Raises ValueError for another reduction, and
    TypeError for a `split` or `without` that is no function.
    """

    reward: Reward
    split: Split
    reduce: str = "min"
    without: Split | None = None

    def __post_init__(self) -> None:
        if self.reduce not in REDUCE:
            raise unknown("reduction", self.reduce, REDUCE)
        for name, function in (("split", self.split), ("without", self.without)):
            if not (callable(function) or (name == "without" and function is None)):
                raise TypeError(
                    f"{name} must be a function from a prompt to a list of texts, got {function!r}"
                )
        object.__setattr__(self, "reward", as_reward(self.reward))

    @property
    def name(self) -> str:
        """The reduction and the reward."""
        return f"{self.reduce} over concepts of {self.reward.name}"

    @property
    def size(self) -> tuple[int, int] | None:
        """The reward's own."""
        return self.reward.size

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """min_k or sum_k of h(image, part k of its prompt), (B,)."""
        return torch.stack([REDUCE[self.reduce](row) for row in self.concepts(images, prompts)])

    def concepts(self, images: Tensor, prompts: Sequence[str]) -> list[Tensor]:
        """The values of the parts of each prompt, B tensors (K_b,).

        Raises ValueError for a prompt without parts, and TypeError where they are no strings.
        """
        parts = [_texts("split", self.split, prompt) for prompt in prompts]
        if self.without is None:
            return self._scores(images, parts)
        fewer = [_texts("without", self.without, prompt) for prompt in prompts]
        for prompt, own, less in zip(prompts, parts, fewer, strict=True):
            if len(own) != len(less):
                raise ValueError(
                    f"without must give one prompt for each of the {len(own)} parts of {prompt!r}, "
                    f"it gave {len(less)}"
                )
        asked = [[prompt, *less] for prompt, less in zip(prompts, fewer, strict=True)]
        return [row[:1] - row[1:] for row in self._scores(images, asked)]

    def _scores(self, images: Tensor, texts: list[list[str]]) -> list[Tensor]:
        """Each picture under each of its texts, in one pass."""
        counts = [len(row) for row in texts]
        every = list(itertools.chain(*texts))
        repeated = images.repeat_interleave(torch.tensor(counts, device=images.device), 0)
        h = check_shape(self.reward.name, self.reward.forward(repeated, every), len(every))
        return list(h.split(counts))


def per_concept(
    reward: Reward | Callable, split: Split, reduce: str = "min", without: Split | None = None
) -> PerConcept:
    """`PerConcept` of any reward: its "min" or "sum" over the parts of a prompt."""
    return PerConcept(as_reward(reward), split, reduce, without)


def _texts(what: str, split: Split, prompt: str) -> list[str]:
    texts = split(prompt)
    if isinstance(texts, str) or not texts:
        raise ValueError(
            f"{what} must give a list of at least one part for each prompt; "
            f"for {prompt!r} it gave {texts!r}"
        )
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise TypeError(
            f"{what} must give a list of strings for each prompt; for {prompt!r} it gave {texts!r}"
        )
    return list(texts)
