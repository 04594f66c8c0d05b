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
    part alone. split: from a prompt to the list of its parts; without: from a prompt to the prompts
    that lack one part each, in place of split. A part's value is then what it adds,
    h(image, prompt) - h(image, prompt without it).
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
        return f"{self.reduce} over concepts of {self.reward.name}"

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.stack([REDUCE[self.reduce](row) for row in self.concepts(images, prompts)])

    def concepts(self, images: Tensor, prompts: Sequence[str]) -> list[Tensor]:
        """The values of the parts of each prompt, B tensors (K_b,), in one pass of the reward.

        Raises ValueError for a prompt without parts, or whose parts are no list.
        """
        texts = []
        for prompt in prompts:
            parts = (self.without or self.split)(prompt)
            if isinstance(parts, str) or len(parts) == 0:
                raise ValueError(f"{prompt!r} must be split into a list of texts, got {parts!r}")
            texts.append([prompt, *parts] if self.without else list(parts))
        counts = [len(row) for row in texts]
        repeated = images.repeat_interleave(torch.tensor(counts, device=images.device), 0)
        rows = self.reward.call_forward(repeated, list(itertools.chain(*texts))).split(counts)
        return [row[:1] - row[1:] for row in rows] if self.without else list(rows)
