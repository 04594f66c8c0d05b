"""Do the updates agree? Cosines of eps_hat between timesteps, samples and prompts, beside those of random directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..statistics import Interval
from ..run import Run
from .base import Result, sequence_only

LIMITS = (0.1, 0.05)
BETWEEN = ("timesteps", "samples of one prompt", "prompts")


@dataclass(frozen=True, eq=False, repr=False)
class Directions(Result):
    """Cosines of eps_hat, (T, B, n) in all; n counts the entries of c that may move.

    steps: the T steps that recorded a direction; prompts, seeds: one a sample; dimension: n; timesteps: (B, T, T), each sample's
    cosines between its steps; samples: (T, B, B), each step's cosines between the samples. Float64, on the CPU.
    """

    steps: tuple[int, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    dimension: int
    timesteps: Tensor
    samples: Tensor

    @property
    def matrix(self) -> Tensor:
        """Cosines between timesteps, averaged over the samples, (T, T); a zero direction has none."""
        return self.timesteps.nanmean(0)

    @property
    def by_step(self) -> dict[str, Tensor]:
        """The mean cosine between samples of one prompt, and between prompts, at each step, (T,); NaN without such pairs."""
        return {
            name: torch.stack([row[pairs].nanmean() for row in self.samples])
            for name, pairs in self._pairs().items()
        }

    def cosines(self, between: str) -> Tensor:
        """All cosines between "timesteps", "samples of one prompt" or "prompts", (number of pairs,); a zero direction has none."""
        if between not in BETWEEN:
            raise ValueError(f"between must be one of {BETWEEN}, got {between!r}")
        if between == "timesteps":
            rows, columns = torch.triu_indices(len(self.steps), len(self.steps), 1)
            found = self.timesteps[:, rows, columns]
        else:
            found = self.samples[:, self._pairs()[between]]
        return found[found.isfinite()]

    def mean(self, between: str) -> Interval:
        """The mean of all `cosines(between)` and its 95 % bootstrap interval over prompts, the independent unit.

        Prompts are drawn anew with everything that belongs to them: their samples, steps and pairs (a pair of two prompts counts as often as
        both were drawn together). With one prompt its samples are the unit, and the interval holds for that prompt alone. The ends
        are NaN where there is nothing to draw from: one sample, or, between prompts, fewer than three.
        """
        sums, counts = self._totals(between)
        prompts = list(dict.fromkeys(self.prompts))
        units = (
            [prompts.index(prompt) for prompt in self.prompts]
            if len(prompts) > 1
            else range(len(self.prompts))
        )
        return _over_units(sums.numpy(), counts.numpy(), np.array(units))

    @property
    def title(self) -> str:
        """Sizes, and what random directions of the same dimension do."""
        return (
            f"{len(self.prompts)} samples, {len(self.steps)} steps, {self.dimension} entries; "
            f"random directions: cosine 0.0 +- {self.dimension**-0.5:.4f}"
        )

    def to_frame(self):
        """One row a kind of pair: the mean with its interval, the shares below each limit, and the same of random directions."""
        import pandas as pd

        rows = []
        for name in BETWEEN:
            cosines = self.cosines(name)
            if not len(cosines):
                continue
            row = dict(
                zip(("between", "mean", "low", "high"), (name, *self.mean(name)), strict=True)
            )
            for limit in LIMITS:
                row[f"below {limit}"] = (cosines < limit).double().mean().item()
                row[f"|cos| below {limit}"] = (cosines.abs() < limit).double().mean().item()
            rows.append(row)
        chance = {
            "between": "random directions",
            "mean": 0.0,
            "low": -1.96 * self.dimension**-0.5,
            "high": 1.96 * self.dimension**-0.5,
        }
        for limit in LIMITS:
            within = random_share(limit, self.dimension)
            chance |= {f"below {limit}": 0.5 + within / 2, f"|cos| below {limit}": within}
        return pd.DataFrame([*rows, chance])

    def _pairs(self) -> dict[str, Tensor]:
        one = torch.tensor([[a == b for b in self.prompts] for a in self.prompts])
        return {"samples of one prompt": one.triu(1), "prompts": (~one).triu(1)}

    def _totals(self, between: str) -> tuple[Tensor, Tensor]:
        """Sums and numbers of the finite cosines of each pair of samples, (B, B); between timesteps a sample is paired with itself."""
        if between not in BETWEEN:
            raise ValueError(f"between must be one of {BETWEEN}, got {between!r}")
        add = lambda x, dims: (x.nansum(dims), x.isfinite().sum(dims).to(x))
        if between == "timesteps":
            rows, columns = torch.triu_indices(len(self.steps), len(self.steps), 1)
            return tuple(torch.diag(x) for x in add(self.timesteps[:, rows, columns], 1))
        return tuple(x * self._pairs()[between] for x in add(self.samples, 0))


def _over_units(
    sums: np.ndarray, counts: np.ndarray, units: np.ndarray, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """sum(sums) / sum(counts) over pairs of samples, (B, B), with the percentile-bootstrap interval over units of samples, (B,).

    A pair within a unit counts as often as the unit was drawn, one of two units as often as both were, together. Raises ValueError
    where there are no pairs.
    """
    if not counts.any():
        raise ValueError(
            "there is no pair of directions of this kind to compare: start more samples or prompts, or take more steps"
        )
    mean, number = float(sums.sum() / counts.sum()), units.max() + 1
    member = np.eye(number)[units]
    sums, counts = (member.T @ (x + x.T) @ member / 2 for x in (sums, counts))
    if number < (2 if np.diag(counts).any() else 3):  # every draw would give the same
        return Interval(mean, float("nan"), float("nan"))
    drawn = (
        np.random.default_rng(seed)
        .multinomial(number, np.full(number, 1 / number), size=resamples)
        .astype(float)
    )
    total = lambda x: drawn @ np.diag(x) + ((drawn @ (x - np.diag(np.diag(x)))) * drawn).sum(1)
    top, bottom = total(sums), total(counts)
    return Interval(
        mean, *map(float, np.quantile(top[bottom > 0] / bottom[bottom > 0], (0.025, 0.975)))
    )


def directions(runs: Run | Sequence[Run]) -> Directions:
    """Cosines of eps_hat between the steps of each sample, and between the samples at each step.

    runs: a run whose method recorded gradients (dk.DATE), or several with the same steps, whose samples are put together; samples of
    one prompt are told by equal prompts. Memory: the directions once more in float64, 8 T B L D bytes, freed on return.
    Raises ValueError where no step recorded a gradient, where the steps differ, with fewer than two directions, or for a method that
    moves the pooled vector, as the directions are those of the sequence.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    for run in runs:
        sequence_only(run.sampler.method)
    found = [[info for info in run.history if info.grad is not None] for run in runs]
    steps = [tuple(info.i for info in infos) for infos in found]
    if not runs or not all(steps):
        raise ValueError(
            "this run recorded no gradients, so there is no direction to compare: sample it with dk.DATE(reward), whose updates "
            "record them. To record gradients and move nothing, use dk.DATE(reward, rho=0.0)"
        )
    if len(set(steps)) > 1:
        raise ValueError(
            f"these runs recorded gradients at different steps: {', '.join(map(str, dict.fromkeys(steps)))}"
        )
    eps = torch.cat(
        [
            torch.stack([info.direction.flatten(1).cpu().double() for info in infos])
            for infos in found
        ],
        dim=1,
    )
    prompts, seeds = (
        tuple(x for run in runs for x in getattr(run, name)) for name in ("prompts", "seeds")
    )
    if eps.shape[0] * eps.shape[1] < 2:
        raise ValueError(
            "one direction alone has nothing to agree with: take another step, or start more samples"
        )
    eps = eps / eps.norm(dim=2, keepdim=True)  # a zero direction becomes NaN: it has no cosine
    masks = [run.state.cond_org.mask for run in runs]
    length, width = runs[0].state.c.shape[1:]
    free = length if masks[0] is None else int(masks[0].sum(1).max())
    return Directions(
        steps=steps[0],
        prompts=prompts,
        seeds=seeds,
        dimension=free * width,
        timesteps=torch.einsum("sbn,tbn->bst", eps, eps),
        samples=torch.einsum("tan,tbn->tab", eps, eps),
    )


def random_share(limit: float, dimension: int) -> float:
    """P(|cos| < limit) for two independent uniform directions: cos^2 is Beta(1/2, (n - 1)/2) distributed."""
    from scipy.special import betainc

    return float(betainc(0.5, (dimension - 1) / 2, limit**2))
