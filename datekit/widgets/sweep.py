"""One paused step at several radii: what a longer update does, and what the first order says."""

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


@dataclass(frozen=True, eq=False, repr=False)
class RhoSweep(Result):
    """x0bar(xt, c + rho eps_hat) at R radii, in float64 on the CPU.

    i, t: the step; rhos: (R,); images: (R, B, 3, H, W), x0bar decoded; h: (R, B), its reward;
    predicted: (R, B), to first order, h + rho ||grad_c h||; h0: (B,), without an update; prompts,
    seeds: one a sample.
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
        """Where, and over which radii."""
        least, most = self.rhos.min(), self.rhos.max()
        return f"step {self.i}, t = {self.t:g}, rho from {least:.3g} to {most:.3g}"

    def to_frame(self):
        """One row for each sample and radius."""
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
    """h and x0bar at c + rho eps_hat for each radius; nothing advances.

    c is where the method looks and eps_hat the direction of the gradient there. rhos: radii from 0
    up, by default those of `octaves` around the method's own; reward: the method's own by default;
    sampler: of a `State`. Costs a gradient, and for each radius a forward pass and a decoding.
    Raises ValueError for a radius that is negative or not finite, or without a reward, and
    NonFiniteError as `run.peek`.
    """
    state, sampler = paused(run, sampler)
    reward = reward_of(sampler, reward)
    rho = getattr(sampler.method, "rho", None)
    rhos = octaves(rho) if rhos is None else sorted(float(rho) for rho in rhos)
    if not rhos or not 0 <= rhos[0] <= rhos[-1] < float("inf"):
        raise ValueError(f"a sweep needs finite radii from 0 up, got {rhos}")
    with sampler.paused(state) as denoiser:
        look = denoiser.value_and_grad(reward, sampler.method.gradient_point(state))
    return gather(look, rhos, [at_radius(sampler, state, look, reward, rho) for rho in rhos])


def octaves(rho: float | None) -> list[float]:
    """Seven radii around rho, or around 1 where there is none, each twice the one before."""
    middle = rho if rho and not callable(rho) else 1.0
    return [middle * 2.0**octave for octave in range(-3, 4)]


@torch.no_grad()
def at_radius(
    sampler: Sampler, state: State, look: RewardGradient, reward: Callable, rho: float
) -> tuple[Tensor, Tensor]:
    """x0bar(xt, c + rho eps_hat) decoded, (B, 3, H, W), and its reward, (B,)."""
    x0bar = sampler.predict(state, look.c + rho * look.direction).x0bar
    images = sampler.decode(x0bar)
    return images, score(reward, images, state.prompts, f" at rho = {rho:g}")


def gather(
    look: RewardGradient, rhos: Sequence[float], answers: Sequence[tuple[Tensor, Tensor]]
) -> RhoSweep:
    """The answers of `at_radius` for each radius, beside the first order."""
    radii, h0 = torch.tensor(rhos, dtype=torch.float64), look.h.double().cpu()
    return RhoSweep(
        i=look.i,
        t=look.t,
        rhos=radii,
        images=torch.stack([images.float().cpu() for images, _ in answers]),
        h=torch.stack([h.double().cpu() for _, h in answers]),
        predicted=h0 + radii[:, None] * look.grad_norm.double().cpu(),
        h0=h0,
        prompts=look.prompts,
        seeds=look.seeds,
    )
