"""What a training is made of: settings, and batches that are a function of (seed, number)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..backbones import Backbone
from ..errors import finite, whole
from ..methods.softrepa import takes
from ..registry import option
from .data import Pairs
from .loss import Contrast


@dataclass(frozen=True)
class Plan:
    """All that a training depends on, beside model and pairs; None is the authors' choice."""

    num_tokens: int = option(4, help="soft tokens at each place")
    layers: object = option(None, help="some of down, mid, up; how many first blocks; or all")
    time: bool | None = option(None, help="whether each of 100 time bins has a vector")
    steps: int = option(2000, help="steps of the optimiser")
    batch: int = option(4, help="images a batch")
    negatives: int | None = option(None, help="an image's false captions; None: the batch's others")
    contrast: Contrast | None = option(None, help="the loss")
    lr: float = option(1e-3, help="the learning rate, from which a cosine falls to 1e-5")
    weight_decay: float = option(1e-4, help="of AdamW")
    restart: int | None = option(None, help="steps after which the cosine starts again")
    t_range: tuple[int, int] = option((0, 1000), help="first timestep, and one past the last")
    seed: int = option(0, help="of first tokens, batches and noise")

    def __post_init__(self) -> None:
        for name in ("num_tokens", "steps", "batch", "restart", "negatives"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1)
        for name in ("seed", "lr", "weight_decay"):
            finite(name, getattr(self, name))
        if self.negatives is None and self.batch < 2:
            raise ValueError("batch must be at least 2 where its other captions are the negatives")
        low, high = self.t_range
        if not 0 <= low < high <= 1000:
            raise ValueError(f"t_range lies within 0 to 1000, got {self.t_range!r}")

    def for_model(self, backbone: Backbone) -> Plan:
        """The plan with the authors' choices for a model where it has None.

        They are the down blocks (and mid, in SDXL), no time vector and dweight 10 in a U-Net; the
        first 5 blocks, a time vector and dweight 0 in a joint transformer.
        """
        joint = takes(backbone)[0]
        return replace(
            self,
            layers=layers_of(backbone, self.layers),
            time=joint if self.time is None else self.time,
            contrast=self.contrast or Contrast(dweight=0.0 if joint else 10.0),
            restart=self.restart or self.steps,
        )

    def learning_rate(self, step: int) -> float:
        """A cosine from lr to 1e-5 that starts again every `restart` steps."""
        low, angle = min(1e-5, self.lr), math.pi * (step % self.restart) / self.restart
        return low + (self.lr - low) * 0.5 * (1 + math.cos(angle))


def layers_of(backbone, layers) -> tuple:
    """The places that `Plan.layers` means for a model. Raises ValueError for others."""
    joint, _, blocks = takes(backbone)
    known = tuple(blocks)
    if layers is None and joint:
        wanted = known[:5]
    elif layers is None:
        wanted = ("down", "mid") if backbone.pooled else ("down",)
    elif layers == "all":
        wanted = known
    elif isinstance(layers, int):
        wanted = tuple(range(layers))
    else:
        wanted = tuple(layers)
    if not wanted or not set(wanted) <= set(known):
        raise ValueError(f"layers of {backbone.name} are some of {known} or 'all', got {layers!r}")
    return tuple(layer for layer in known if layer in wanted)


@dataclass(frozen=True)
class Batch:
    """What one batch is made of.

    images: (B,), their numbers; texts: U distinct captions; columns: (B, K), which of them each
    image is held against; positive: (B,), the column of its own; noise: the seed of the noise.
    """

    images: Tensor
    texts: list[str]
    columns: Tensor
    positive: Tensor
    t: int
    noise: int

    @staticmethod
    def draw(pairs: Pairs, plan: Plan, number: int) -> Batch:
        """The batch of a number, a function of (seed, number), so that resuming repeats nothing.

        No two images have the same caption, as long as the pairs have enough different ones.
        """
        rng = np.random.default_rng([plan.seed, number])
        t, noise = int(rng.integers(*plan.t_range)), int(rng.integers(2**62))
        rows = _distinct(pairs, rng, plan.batch)
        own = [pairs.captions[row] for row in rows]
        table, positive = [own] * len(rows), torch.arange(len(rows))
        if plan.negatives is not None:
            table, positive = [], torch.zeros_like(positive)
            for row, text in zip(rows, own, strict=True):
                wrong = pairs.negatives[row]
                chosen = rng.permutation(len(wrong))[: plan.negatives]
                table.append([text, *(wrong[n] for n in chosen)])
        texts = list(dict.fromkeys(itertools.chain(*table)))
        columns = torch.tensor([[texts.index(text) for text in line] for line in table])
        return Batch(torch.tensor(rows), texts, columns, positive, t, noise)


def _distinct(pairs: Pairs, rng: np.random.Generator, count: int) -> list[int]:
    """Rows with captions that all differ, if there are so many."""
    rows, taken, attempts = [], set(), 0
    while len(rows) < count:
        row = int(rng.integers(len(pairs)))
        if attempts >= 50 * count or pairs.captions[row] not in taken:
            rows.append(row)
            taken.add(pairs.captions[row])
        attempts += 1
    return rows
