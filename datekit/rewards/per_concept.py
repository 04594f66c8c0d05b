"""The least, or the sum, of a reward over the parts of a prompt."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import unknown
from .base import Reward, as_reward

REDUCE = {"min": torch.min, "sum": torch.sum}
Split = Callable[[str], Sequence[str]]


@dataclass(frozen=True, repr=False)
class PerConcept(Reward):
    """The least, or the sum, of a reward over the parts of a prompt.

    Each part is scored on the whole picture, and the gradient of the least is that of the worst
    part alone. split: from a prompt to the list of its parts; reduce: "min" or "sum"; without:
    None, or from a prompt to the prompts that lack one part each. A part's value is then what it
    adds, h(image, prompt) - h(image, prompt without it), for rewards that take a text for all that
    a picture shows. Raises ValueError for another reduction.
    """

    reward: Reward
    split: Split
    reduce: str = "min"
    without: Split | None = None

    def __post_init__(self) -> None:
        if self.reduce not in REDUCE:
            raise unknown("reduction", self.reduce, REDUCE)
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

        Raises ValueError for a prompt without parts, or whose parts are no list of strings.
        """
        if self.without is None:
            return self._scores(images, [_texts(self.split, prompt) for prompt in prompts])
        asked = [[prompt, *_texts(self.without, prompt)] for prompt in prompts]
        for prompt, texts in zip(prompts, asked, strict=True):
            count = len(_texts(self.split, prompt))
            if len(texts) != count + 1:
                raise ValueError(
                    f"without must give one prompt for each of the {count} parts of {prompt!r}, "
                    f"it gave {len(texts) - 1}"
                )
        return [row[:1] - row[1:] for row in self._scores(images, asked)]

    def _scores(self, images: Tensor, texts: list[list[str]]) -> list[Tensor]:
        """Each picture under each of its texts, in one pass."""
        counts = [len(row) for row in texts]
        every = list(itertools.chain(*texts))
        repeated = images.repeat_interleave(torch.tensor(counts, device=images.device), 0)
        h, _ = self.reward.with_terms(repeated, every)
        return list(h.split(counts))


def per_concept(
    reward: Reward | Callable, split: Split, reduce: str = "min", without: Split | None = None
) -> PerConcept:
    """`PerConcept` of any reward: its "min" or "sum" over the parts of a prompt."""
    return PerConcept(as_reward(reward), split, reduce, without)


def _texts(split: Split, prompt: str) -> list[str]:
    texts = split(prompt)
    texts = texts if isinstance(texts, str) else list(texts)
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"a list of texts is needed for {prompt!r}, but its split gave {texts!r}")
    return texts
