"""Rewards made of rewards: on a common scale, and over the parts of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import unknown
from .base import Reward, WeightedSum, as_reward, checked_shape, score

REDUCE = {"min": torch.min, "sum": torch.sum}


@dataclass(frozen=True, repr=False)
class Standardised(Reward):
    """(h - mean) / std with numbers measured once, so that rewards of different scale can be added."""

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
        return (
            checked_shape(self.reward, self.reward.forward(images, prompts), len(prompts))
            - self.mean
        ) / self.std


@torch.no_grad()
def standardise(
    reward: Reward | Callable, images: Tensor, prompts: Sequence[str], batch: int = 16
) -> Reward:
    """(h - mean) / std, measured on these images, `batch` at a time; of a sum, each of its terms, the weights kept.

    Raises ValueError for fewer than two images or equal scores.
    """
    reward, prompts = as_reward(reward), list(prompts)
    if isinstance(reward, WeightedSum):
        return WeightedSum(
            tuple(
                (weight, standardise(part, images, prompts, batch)) for weight, part in reward.parts
            )
        )
    if len(images) < 2:
        raise ValueError(
            "a scale cannot be measured on fewer than two images; give some tens of typical ones"
        )
    starts = range(0, max(len(images), len(prompts)), batch)
    h = torch.cat(
        [score(reward, images[i : i + batch], prompts[i : i + batch], first=i) for i in starts]
    ).double()
    mean, std = h.mean().item(), h.std().item()
    if std <= 1e-6 * max(abs(mean), h.abs().max().item()):
        raise ValueError(
            f"{reward.name} scores all of these images alike ({mean:g}); measure its scale on images that differ"
        )
    return Standardised(reward, mean, std)


@dataclass(frozen=True, repr=False)
class PerConcept(Reward):
    """The least, or the sum, of a reward over the parts of a prompt; each part is scored on the whole picture.

    without: None, or a function from a prompt to the prompts that lack one part each, in the order of the parts. A part's value is
    then what it adds, h(image, prompt) - h(image, prompt without it): for rewards that take a text for all that a picture shows.
    """

    reward: Reward
    split: Callable[[str], Sequence[str]]
    reduce: str = "min"
    without: Callable[[str], Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if self.reduce not in REDUCE:
            raise unknown("reduction", self.reduce, REDUCE)
        if not callable(self.split):
            raise TypeError(
                f"split must be a function from a prompt to the list of its parts, got {self.split!r}"
            )
        if self.without is not None and not callable(self.without):
            raise TypeError(
                f"without must be a function from a prompt to the prompts that lack one part each, got {self.without!r}"
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
        return self.with_terms(images, prompts)[0]

    def with_terms(
        self, images: Tensor, prompts: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The reduction (B,) and, of a reward that is a combination, its terms: at the part that is least, or summed over parts."""
        totals, terms = self._parted(images, prompts)
        h = torch.stack([REDUCE[self.reduce](values) for values in totals])
        if len(terms) == 1:
            return h, {self.name: h}
        take = (
            (lambda values, total: values[total.argmin()])
            if self.reduce == "min"
            else lambda values, total: values.sum()
        )
        return h, {
            name: torch.stack([take(*pair) for pair in zip(values, totals, strict=True)])
            for name, values in terms.items()
        }

    def concepts(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """The values of the parts of each prompt, B tensors (K_b,). Raises ValueError for a prompt without parts, TypeError where they are no
        strings."""
        return self._parted(images, prompts)[0]

    def _parted(
        self, images: Tensor, prompts: Sequence[str]
    ) -> tuple[tuple[Tensor, ...], dict[str, tuple[Tensor, ...]]]:
        """The values of the parts of each prompt, and the same of each term of the reward."""
        parts = [_parts("split", self.split, prompt) for prompt in prompts]
        if self.without is None:
            return self._scored(images, parts)
        fewer = [_parts("without", self.without, prompt) for prompt in prompts]
        for prompt, row, less in zip(prompts, parts, fewer, strict=True):
            if len(row) != len(less):
                raise ValueError(
                    f"without must give one prompt for each of the {len(row)} parts of {prompt!r}, it gave {len(less)}"
                )
        found, terms = self._scored(
            images, [[prompt, *row] for prompt, row in zip(prompts, fewer, strict=True)]
        )
        added = lambda rows: tuple(values[:1] - values[1:] for values in rows)
        return added(found), {name: added(rows) for name, rows in terms.items()}

    def _scored(
        self, images: Tensor, texts: Sequence[Sequence[str]]
    ) -> tuple[tuple[Tensor, ...], dict[str, tuple[Tensor, ...]]]:
        counts = [len(row) for row in texts]
        every = [text for row in texts for text in row]
        repeated = images.repeat_interleave(torch.tensor(counts, device=images.device), 0)
        total, terms = self.reward.with_terms(repeated, every)
        return checked_shape(self.reward, total, len(every)).split(counts), {
            name: values.split(counts) for name, values in terms.items()
        }


def per_concept(
    reward: Reward | Callable,
    split: Callable[[str], Sequence[str]],
    reduce: str = "min",
    without: Callable[[str], Sequence[str]] | None = None,
) -> Reward:
    """A reward of prompts with several concepts: the "min" or the "sum" of `reward` over `split(prompt)`.

    without: what gives the prompts that lack one part each, for the difference that a part makes (`PerConcept`). The gradient of the least
    is that of the worst part alone. Raises ValueError for another reduction, TypeError for a `split` or `without` that
    is no function.
    """
    return PerConcept(as_reward(reward), split, reduce, without)


def _parts(what: str, split: Callable, prompt: str) -> list[str]:
    parts = split(prompt)
    if isinstance(parts, str) or not parts:
        raise ValueError(
            f"{what} must give a list of at least one part for each prompt; for {prompt!r} it gave {parts!r}"
        )
    found = list(parts) if isinstance(parts, Iterable) else [parts]
    if not all(isinstance(part, str) for part in found):
        raise TypeError(
            f"{what} must give a list of strings for each prompt; for {prompt!r} it gave {parts!r}"
        )
    return found
