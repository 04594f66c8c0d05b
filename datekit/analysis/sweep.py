"""One paused step at several radii: what a longer update does, and what the first order says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rewards.base import score
from ..run import Run
from ..sampler import Sampler
from ..types import RewardGradient, State
from .base import Result, look, paused, reward_of


@dataclass(frozen=True, eq=False, repr=False)
class RhoSweep(Result):
    """x0bar(xt, c + rho eps_hat) at R radii; float64, on the CPU."""

    i: int
    t: float
    rhos: Tensor  # (R,)
    images: Tensor  # (R, B, 3, H, W), x0bar decoded
    h: Tensor  # (R, B), its reward
    predicted: Tensor  # (R, B), to first order, h + rho ||grad_c h||
    h0: Tensor  # (B,), without an update
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def to_frame(self):
        """One row a sample and radius."""
        import pandas as pd

        rows = []
        for b, (prompt, seed) in enumerate(zip(self.prompts, self.seeds, strict=True)):
            for r, rho in enumerate(self.rhos.tolist()):
                rows.append((prompt, seed, rho, self.h[r, b].item(), self.predicted[r, b].item()))
        return pd.DataFrame(rows, columns=["prompt", "seed", "rho", "h", "first order"])


def rho_sweep(
    run: Run | State,
    rhos: Sequence[float] | None = None,
    *,
    reward: Callable | None = None,
    sampler: Sampler | None = None,
) -> RhoSweep:
    """h and x0bar at c + rho eps_hat for each radius, with c where the method takes its gradient.

    rhos: from 0 up, by default those of `octaves` around the method's own. Costs a gradient, and a
    forward pass and a decoding a radius.
    """
    state, sampler = paused(run, sampler)
    reward = reward_of(sampler, reward)
    if rhos is None:
        rhos = octaves(getattr(sampler.method, "rho", None))
    rhos = sorted(float(rho) for rho in rhos)
    if not rhos or not 0 <= rhos[0] <= rhos[-1] < float("inf"):
        raise ValueError(f"a sweep needs finite radii from 0 up, got {rhos}")
    seen = look(sampler, state, reward)
    return gather(seen, rhos, [at_radius(sampler, state, seen, reward, rho) for rho in rhos])


def octaves(rho: float | None) -> list[float]:
    """Seven radii around rho, or around 1 where there is none, each twice the one before."""
    middle = rho if rho and not callable(rho) else 1.0
    return [middle * 2.0**octave for octave in range(-3, 4)]


@torch.no_grad()
def at_radius(
    sampler: Sampler, state: State, seen: RewardGradient, reward: Callable, rho: float
) -> tuple[Tensor, Tensor]:
    """x0bar(xt, c + rho eps_hat) decoded, (B, 3, H, W), and its reward, (B,)."""
    x0bar = sampler.predict(state, seen.c + rho * seen.direction).x0bar
    images = sampler.decode(x0bar)
    return images, score(reward, images, state.prompts, f" at rho = {rho:g}")


def gather(
    seen: RewardGradient, rhos: Sequence[float], answers: Sequence[tuple[Tensor, Tensor]]
) -> RhoSweep:
    """The answers of `at_radius` for each radius, beside the first order."""
    radii, h0 = torch.tensor(rhos, dtype=torch.float64), seen.h.double().cpu()
    return RhoSweep(
        i=seen.i,
        t=seen.t,
        rhos=radii,
        images=torch.stack([images.float().cpu() for images, _ in answers]),
        h=torch.stack([h.double().cpu() for _, h in answers]),
        predicted=h0 + radii[:, None] * seen.grad_norm.double().cpu(),
        h0=h0,
        prompts=seen.prompts,
        seeds=seen.seeds,
    )
