"""Do the updates agree? Cosines of eps_hat between timesteps, samples and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..run import Run
from ..statistics import Interval, bootstrap_pairs
from .base import Result, check_sequence_only

LIMITS = (0.1, 0.05)
BETWEEN = ("timesteps", "samples of one prompt", "prompts")


@dataclass(frozen=True, eq=False, repr=False)
class Directions(Result):
    """Cosines of eps_hat; float64, on the CPU. A zero direction has none, and stands as NaN."""

    steps: tuple[int, ...]  # the T steps that recorded a direction
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    dimension: int  # how many entries of c may move
    timesteps: Tensor  # (B, T, T), each sample's cosines between its steps
    samples: Tensor  # (T, B, B), each step's cosines between the samples

    @property
    def matrix(self) -> Tensor:
        """Cosines between timesteps, averaged over the samples, (T, T)."""
        return self.timesteps.nanmean(0)

    @property
    def by_step(self) -> dict[str, Tensor]:
        """The mean cosine at each step between samples of one prompt, and between prompts, (T,)."""
        return {between: self._pairs(between)[0].nanmean(0) for between in BETWEEN[1:]}

    def cosines(self, between: str) -> Tensor:
        """All finite cosines between "timesteps", "samples of one prompt" or "prompts", (N,)."""
        values = self._pairs(between)[0]
        return values[values.isfinite()]

    def mean(self, between: str) -> Interval:
        """The mean of `cosines(between)` with its 95 % bootstrap interval over prompts.

        Prompts are drawn anew with all that belongs to them, as they are the independent unit. With
        one prompt its samples are the unit, and the interval holds for that prompt alone. The ends
        are NaN where there is nothing to draw from: one sample, or, between prompts, fewer than
        three.
        """
        values, one, other = self._pairs(between)
        sums, counts = np.zeros((2, len(self.seeds), len(self.seeds)))
        sums[one, other] = values.nan_to_num(0).sum(1)
        counts[one, other] = values.isfinite().sum(1)
        prompts = list(dict.fromkeys(self.prompts))
        units = np.array([prompts.index(prompt) for prompt in self.prompts])
        return bootstrap_pairs(sums, counts, units if len(prompts) > 1 else np.arange(len(units)))

    def to_frame(self):
        """One row a kind of pair: the mean, its interval, and the shares below each limit.

        The last row has the same of random directions.
        """
        import pandas as pd

        rows = []
        for between in BETWEEN:
            cosines = self.cosines(between)
            if len(cosines):
                row = {"between": between} | self.mean(between)._asdict()
                for limit in LIMITS:
                    row[f"below {limit}"] = (cosines < limit).double().mean().item()
                    row[f"|cos| below {limit}"] = (cosines.abs() < limit).double().mean().item()
                rows.append(row)
        end = 1.96 * self.dimension**-0.5
        chance = {"between": "random directions", "mean": 0.0, "low": -end, "high": end}
        for limit in LIMITS:
            within = random_share(limit, self.dimension)
            chance |= {f"below {limit}": 0.5 + within / 2, f"|cos| below {limit}": within}
        return pd.DataFrame([*rows, chance])

    def _pairs(self, between: str) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """The cosines by pair of samples, (P, N), and the numbers of both samples of each, (P,).

        Between timesteps, a sample is paired with itself.
        """
        if between not in BETWEEN:
            raise ValueError(f"between must be one of {BETWEEN}, got {between!r}")
        if between == "timesteps":
            rows, columns = np.triu_indices(len(self.steps), 1)
            each = np.arange(len(self.seeds))
            return self.timesteps[:, rows, columns], each, each
        prompts = np.array(self.prompts)
        same = prompts[:, None] == prompts
        one, other = np.triu(same if between == "samples of one prompt" else ~same, 1).nonzero()
        return self.samples[:, one, other].T, one, other


def directions(runs: Run | Sequence[Run]) -> Directions:
    """Cosines of eps_hat between the steps of each sample, and between the samples at each step.

    runs: a run whose method recorded gradients (dk.DATE), or several with the same steps, whose
    samples are put together. Samples of one prompt are known by equal prompts. For the time of the
    call this holds the directions once more in float64, 8 T B L D bytes. Raises ValueError where no
    step recorded a gradient, where the steps differ, or for a method that moves the pooled vector.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    infos = [[info for info in run.history if info.grad is not None] for run in runs]
    steps = [tuple(info.i for info in row) for row in infos]
    for run in runs:
        check_sequence_only(run.sampler.method)
    if not all(steps):
        raise ValueError(
            "this run recorded no gradients, so there is no direction to compare: sample it with "
            "dk.DATE(reward), or with dk.DATE(reward, rho=0.0), which moves nothing"
        )
    if len(set(steps)) > 1:
        raise ValueError(f"these runs recorded gradients at different steps: {set(steps)}")
    by_run = []
    for row in infos:
        by_run.append(torch.stack([info.direction.flatten(1).double().cpu() for info in row]))
    eps = torch.cat(by_run, dim=1)
    eps = eps / eps.norm(dim=2, keepdim=True)  # a zero direction becomes NaN: it has no cosine
    mask = runs[0].state.cond_org.mask
    length, width = runs[0].state.c.shape[1:]
    free = length if mask is None else int(mask.sum(1).max())
    return Directions(
        steps=steps[0],
        prompts=tuple(prompt for run in runs for prompt in run.prompts),
        seeds=tuple(seed for run in runs for seed in run.seeds),
        dimension=free * width,
        timesteps=torch.einsum("sbn,tbn->bst", eps, eps),
        samples=torch.einsum("tan,tbn->tab", eps, eps),
    )


def random_share(limit: float, dimension: int) -> float:
    """P(|cos| < limit) of two independent uniform directions: cos^2 is Beta(1/2, (n - 1)/2)."""
    from scipy.special import betainc

    return float(betainc(0.5, (dimension - 1) / 2, limit**2))
