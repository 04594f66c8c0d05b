"""What a training is made of, settings and batches: plain data, each batch a function of (seed, number)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..methods.base import finite, whole
from .data import Pairs
from .loss import Contrast

FLOOR = 1e-5  # of the learning rate
PRECISIONS = (None, "bfloat16", "float16")


@dataclass(frozen=True)
class Plan:
    """All that the result of a training depends on, beside model and pairs."""

    num_tokens: int
    layers: tuple
    time: bool
    steps: int
    batch: int
    negatives: int | None
    hard: bool
    contrast: Contrast
    lr: float
    weight_decay: float
    restart: int
    accumulate: int
    precision: str | None
    t_range: tuple[int, int]
    seed: int

    def __post_init__(self) -> None:
        for name, least in (
            ("num_tokens", 1),
            ("steps", 1),
            ("batch", 1),
            ("restart", 1),
            ("accumulate", 1),
            ("seed", 0),
        ):
            whole(name, getattr(self, name), least)
        for name in ("lr", "weight_decay"):
            finite(name, getattr(self, name))
        if self.negatives is None and self.batch < 2:
            raise ValueError(
                "batch must be at least 2 where the other captions of the batch are the negatives"
            )
        if self.negatives is not None:
            whole("negatives", self.negatives, 1)
        if self.hard and self.negatives is None:
            raise ValueError(
                "hard=True takes the pairs' own false captions; say how many an image: negatives=3"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")
        low, high = self.t_range
        if not 0 <= low < high <= 1000:
            raise ValueError(
                f"t_range is (first, one past the last) timestep within 0 to 1000, got {self.t_range!r}"
            )

    def learning_rate(self, step: int) -> float:
        """A cosine from lr to 1e-5 that starts again every `restart` steps."""
        low = min(FLOOR, self.lr)
        return low + (self.lr - low) * 0.5 * (
            1 + math.cos(math.pi * (step % self.restart) / self.restart)
        )


@dataclass(frozen=True)
class Batch:
    """What one batch is made of, a function of (seed, number) alone, so that resuming repeats nothing.

    images: (B,) of the latents; texts: U distinct captions; columns: (B, K), which of them each image is held against; positive: (B,)
    the column of its own; t: the timestep; noise: the seed of the noise.
    """

    images: Tensor
    texts: list[str]
    columns: Tensor
    positive: Tensor
    t: int
    noise: int

    @staticmethod
    def draw(pairs: Pairs, plan: Plan, number: int) -> Batch:
        """The batch of a number. No two of its captions are the same, as long as the pairs have enough different ones."""
        rng = np.random.default_rng([plan.seed, number])
        t, noise = int(rng.integers(*plan.t_range)), int(rng.integers(2**62))
        rows = _distinct(pairs, rng, plan.batch, set())
        own = [pairs.captions[row] for row in rows]
        if plan.negatives is None:
            table = [own] * len(rows)
        elif plan.hard:
            wrong = (rng.permutation(len(pairs.negatives[row]))[: plan.negatives] for row in rows)
            table = [
                [text, *(pairs.negatives[row][n] for n in which)]
                for row, text, which in zip(rows, own, wrong, strict=True)
            ]
        else:
            table = [
                [text, *(pairs.captions[n] for n in _distinct(pairs, rng, plan.negatives, {text}))]
                for text in own
            ]
        texts = list(dict.fromkeys(text for line in table for text in line))
        index = {text: n for n, text in enumerate(texts)}
        positive = (
            torch.arange(len(rows))
            if plan.negatives is None
            else torch.zeros(len(rows), dtype=torch.long)
        )
        return Batch(
            torch.tensor([pairs.rows[row] for row in rows]),
            texts,
            torch.tensor([[index[text] for text in line] for line in table]),
            positive,
            t,
            noise,
        )


def _distinct(pairs: Pairs, rng: np.random.Generator, count: int, taken: set[str]) -> list[int]:
    """Rows with captions that are all different, and none of those taken; fewer different ones than asked for may repeat."""
    found: list[int] = []
    for attempt in range(100 * count):
        row = int(rng.integers(len(pairs)))
        if attempt >= 50 * count or pairs.captions[row] not in taken:
            found.append(row)
            taken = taken | {pairs.captions[row]}
        if len(found) == count:
            break
    return found
