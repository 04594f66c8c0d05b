"""One paused step at several rho_rules: what a longer update does to the expected picture, and what the first order says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..analysis.base import Result, paused, reward_of
from ..rewards.base import score
from ..run import Run
from ..sampler import Sampler
from ..types import RewardGradient, State

OCTAVES = (-3, -2, -1, 0, 1, 2, 3)  # seven rho_rules, each twice the one before


@dataclass(frozen=True, eq=False, repr=False)
class RhoSweep(Result):
    """x0bar(xt, c + rho eps_hat) at R rho_rules.

    i, t: the step; rhos: (R,); images: (R, B, 3, H, W), x0bar decoded; h: (R, B), its reward; predicted: (R, B), to first order,
    h + rho ||grad_c h||; h0: (B,), without an update; prompts, seeds: one a sample. Numbers in float64 on the CPU.
    """

    i: int
    t: float
    rhos: Tensor
    images: Tensor
    h: Tensor
    predicted: Tensor
    h0: Tensor
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def title(self) -> str:
        """Where, and over which rho_rules."""
        return f"step {self.i}, t = {self.t:g}, rho from {self.rhos.min():.3g} to {self.rhos.max():.3g}"

    def to_frame(self):
        """One row a sample and rho."""
        import pandas as pd

        rows = [
            (prompt, seed, rho.item(), self.h[r, b].item(), self.predicted[r, b].item())
            for b, (prompt, seed) in enumerate(zip(self.prompts, self.seeds, strict=True))
            for r, rho in enumerate(self.rhos)
        ]
        return pd.DataFrame(rows, columns=["prompt", "seed", "rho", "h", "first order"])


def rho_sweep(
    run: Run | State,
    rhos: Sequence[float] | None = None,
    *,
    reward: Callable | None = None,
    sampler: Sampler | None = None,
) -> RhoSweep:
    """h and x0bar at c + rho eps_hat for each radius, c where the method looks and eps_hat its gradient's direction there; nothing advances.

    rhos: rho_rules from 0 up, by default seven, each twice the one before, around the method's own (or 1); reward: the method's own by
    default. Costs a gradient, and a forward pass and a decoding a radius. Raises ValueError for a radius that is negative or not
    finite, or without a reward; NonFiniteError as `run.peek`.
    """
    state, sampler = paused(run, sampler)
    reward = reward_of(sampler, reward)
    rhos = (
        rho_rules(getattr(sampler.method, "rho", None))
        if rhos is None
        else sorted(float(rho) for rho in rhos)
    )
    if not rhos or not 0 <= rhos[0] <= rhos[-1] < float("inf"):
        raise ValueError(f"a sweep needs finite rho_rules from 0 up, got {rhos}")
    look = sampler.look(state, reward)
    return gathered(look, rhos, [at_radius(sampler, state, look, reward, rho) for rho in rhos])


def rho_rules(rho: float | None) -> list[float]:
    """Seven rho_rules around one, each twice the one before."""
    return [(rho or 1.0) * 2.0**octave for octave in OCTAVES]


@torch.no_grad()
def at_radius(
    sampler: Sampler, state: State, look: RewardGradient, reward: Callable, rho: float
) -> tuple[Tensor, Tensor]:
    """x0bar(xt, c + rho eps_hat) decoded, (B, 3, H, W), and its reward, (B,)."""
    images = sampler.backbone.decode(sampler.predict(state, look.c + rho * look.direction).x0bar)
    return images, score(reward, images, state.prompts, f" at rho = {rho:g}")


def gathered(look: RewardGradient, rhos: Sequence[float], found: Sequence[tuple[Tensor, Tensor]]) -> RhoSweep:
    """What `at_radius` found at each radius, beside the first order."""
    radii_, h0 = torch.tensor(rhos, dtype=torch.float64), look.h.double().cpu()
    images, h = (torch.stack([pair[n].cpu() for pair in found]) for n in (0, 1))
    return RhoSweep(
        i=look.i,
        t=look.t,
        rhos=radii_,
        images=images.float(),
        h=h.double(),
        h0=h0,
        predicted=h0 + radii_[:, None] * look.grad_norm.double().cpu(),
        prompts=look.prompts,
        seeds=look.seeds,
    )
