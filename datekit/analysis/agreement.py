"""Do the updates agree, between timesteps, samples and prompts, and under a little noise?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import noise
from ..errors import unknown, whole
from ..run import Run
from ..statistics import Interval, bootstrap_pairs
from .base import ByStep, Result, check_sequence, level, reward_of

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

        Prompts are drawn anew with all that belongs to them, as they are the independent unit; of
        one prompt, its samples are. The ends are NaN where there is too little to draw from.
        """
        values, one, other = self._pairs(between)
        sums, counts = np.zeros((2, len(self.seeds), len(self.seeds)))
        sums[one, other] = values.nan_to_num(0).sum(1)
        counts[one, other] = values.isfinite().sum(1)
        prompts = list(dict.fromkeys(self.prompts))
        units = np.array([prompts.index(prompt) for prompt in self.prompts])
        return bootstrap_pairs(sums, counts, units if len(prompts) > 1 else np.arange(len(units)))

    def rows(self) -> list[dict]:
        """One row a kind of pair, with the shares below each limit; the last is of random ones."""
        rows = []
        for between in BETWEEN:
            cosines = self.cosines(between)
            if len(cosines):
                row = {"between": between} | self.mean(between)._asdict()
                for limit in LIMITS:
                    row[f"below {limit}"] = (cosines < limit).double().mean().item()
                rows.append(row)
        end = 1.96 * self.dimension**-0.5
        chance = {"between": "random directions", "mean": 0.0, "low": -end, "high": end}
        for limit in LIMITS:
            chance[f"below {limit}"] = 0.5 + random_share(limit, self.dimension) / 2
        return [*rows, chance]

    def _pairs(self, between: str) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """The cosines by pair of samples, (P, N), and the numbers of both samples of each, (P,)."""
        if between not in BETWEEN:
            raise unknown("kind of pair", between, BETWEEN)
        if between == "timesteps":  # a sample is paired with itself
            rows, columns = np.triu_indices(len(self.steps), 1)
            each = np.arange(len(self.seeds))
            return self.timesteps[:, rows, columns], each, each
        prompts = np.array(self.prompts)
        same = prompts[:, None] == prompts
        one, other = np.triu(same if between == "samples of one prompt" else ~same, 1).nonzero()
        return self.samples[:, one, other].T, one, other


def directions(run: Run) -> Directions:
    """Cosines of eps_hat in the steps of a run whose method recorded gradients, as dk.DATE does.

    Samples of one prompt are known by equal prompts. Raises ValueError where no step recorded one.
    """
    check_sequence(run)
    eps = run.history.stack("direction").flatten(2).cpu().double()
    eps = eps / eps.norm(dim=2, keepdim=True)  # a zero direction becomes NaN: it has no cosine
    mask, (length, width) = run.state.cond_org.mask, run.state.c.shape[1:]
    free = length if mask is None else int(mask.sum(1).max())
    return Directions(
        steps=tuple(info.i for info in run.history if info.grad is not None),
        prompts=run.prompts,
        seeds=run.seeds,
        dimension=free * width,
        timesteps=torch.einsum("sbn,tbn->bst", eps, eps),
        samples=torch.einsum("tan,tbn->tab", eps, eps),
    )


def random_share(limit: float, dimension: int) -> float:
    """P(|cos| < limit) of two independent uniform directions: cos^2 is Beta(1/2, (n - 1)/2)."""
    from scipy.special import betainc

    return float(betainc(0.5, (dimension - 1) / 2, limit**2))


def signal_to_noise(
    run: Run,
    *,
    steps: Sequence[int] | None = None,
    reward: Callable | None = None,
    draws: int = 8,
    strength: float = 0.2,
) -> ByStep:
    """The share of grad_c h that stays when xt is re-noised a little at the same t.

    xt is written as alpha x0bar + sigma eps. Draw n takes eps_n = sqrt(1 - s^2) eps + s z_n with
    z_n standard normal and s = strength, and gives g_n = grad_c h at (xt_n, c). The stable share is
    ||E g||^2 / E||g||^2, its numerator estimated without bias as the mean of g_m . g_n over m != n.
    It is 1 for a gradient that no noise changes, 0 for one that is all noise. steps: of the run's
    past, the paused one by default.
    """
    draws, reward = whole("draws", draws, 2), reward_of(run, reward)

    def share(paused: Run) -> Tensor:
        return stable_shares(renoised_gradients(paused, reward, draws, strength))

    return ByStep.of(run, steps, "stable share", share)


def renoised_gradients(run: Run, reward: Callable, draws: int, strength: float) -> Tensor:
    """grad_c h at re-noised xt, (N, B, L, D). ValueError for a strength outside of (0, 1]."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength is a share of the noise, above 0 and up to 1, got {strength!r}")
    state, (alpha, sigma) = run.state, level(run)
    with torch.no_grad():
        prediction = run.sampler.predict(state, run.sampler.method.gradient_point(state))
    grads = []
    for n in range(draws):
        purpose = f"renoise 0 {n}"
        z = noise.normal(state.seeds, state.i, state.xt.shape[1:], torch.float64, purpose=purpose)
        eps = (1 - strength**2) ** 0.5 * prediction.eps + strength * z.to(prediction.eps)
        xt = (alpha * prediction.x0bar + sigma * eps).to(state.xt.dtype)
        grads.append(Run(run.sampler, state.replace(xt=xt)).peek(reward).grad.cpu().double())
    return torch.stack(grads)


def stable_shares(grads: Tensor) -> Tensor:
    """(N, B, L, D) to the mean over n of g_n . mean_{m != n} g_m / mean ||g||^2, (B,)."""
    g = grads.flatten(2)
    others = (g.sum(0) - g) / (len(g) - 1)
    energy = g.square().sum(2).mean(0)
    energy = energy.where(energy > 0, 1)  # of no gradient at all nothing is stable
    return ((g * others).sum(2) / energy).mean(0)
