"""How much of grad_c h belongs to the picture under way, and how much to this one draw of noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import noise
from ..errors import whole
from ..run import Run
from ..sampler import Sampler
from ..statistics import Interval, bootstrap
from ..types import State
from .base import Result, check_sequence_only, level, look, reward_of, states_of


@dataclass(frozen=True, eq=False, repr=False)
class SignalToNoise(Result):
    """Stable shares of gradients, as `signal_to_noise` defines them; float64, on the CPU."""

    rewards: tuple[str, ...]  # K names
    steps: tuple[int, ...]  # T steps
    ts: tuple[float, ...]
    strength: float
    draws: int
    parts: Tensor  # (K, T, B, N), draw by draw

    @property
    def stable(self) -> Tensor:
        """The stable share of each sample's gradient, the mean over draws, (K, T, B)."""
        return self.parts.mean(3)

    def interval(self, reward: int | str = 0, row: int = 0) -> Interval:
        """The mean stable share and its 95 % bootstrap interval over samples.

        It is over draws where there is one sample. reward: a name or its number. row: the number of
        the step among `steps`.
        """
        k = self.rewards.index(reward) if isinstance(reward, str) else reward
        values = self.stable[k, row] if self.stable.shape[2] > 1 else self.parts[k, row, 0]
        return bootstrap(values.tolist())

    def to_frame(self):
        """One row a reward and step: the stable share, its interval, and share / (1 - share)."""
        import pandas as pd

        rows = []
        for k, name in enumerate(self.rewards):
            for row, (i, t) in enumerate(zip(self.steps, self.ts, strict=True)):
                share = self.interval(k, row)
                ratio = share.mean / (1 - share.mean) if share.mean < 1 else float("inf")
                rows.append((name, i, t, *share, ratio))
        columns = ["reward", "step", "t", "stable share", "low", "high", "signal / noise"]
        return pd.DataFrame(rows, columns=columns)


def signal_to_noise(
    run: Run | State,
    *,
    steps: Sequence[int] | None = None,
    rewards: Callable | Sequence[Callable] | None = None,
    draws: int = 8,
    strength: float = 0.2,
    sampler: Sampler | None = None,
) -> SignalToNoise:
    """The share of grad_c h that stays when xt is re-noised a little at the same t.

    xt is written as alpha x0bar + sigma eps. Draw n takes eps_n = sqrt(1 - s^2) eps + s z_n with
    z_n standard normal and s = strength, and gives g_n = grad_c h at (xt_n, c). The stable share is
    ||E g||^2 / E||g||^2, its numerator estimated without bias as the mean of g_m . g_n over pairs m
    != n. It is 1 for a gradient that no noise changes, 0 for one that is all noise.

    rewards: one or several, the method's own by default. steps: of a run's past (`run.states`), the
    paused one by default. This costs N gradients a reward and step. Raises ValueError for fewer
    than 2 draws, strength outside (0, 1] or steps not taken yet, NonFiniteError as `run.peek` does.
    """
    draws = whole("draws", draws, 2)
    if not 0 < strength <= 1:
        raise ValueError(f"strength is a share of the noise, above 0 and up to 1, got {strength!r}")
    states, sampler = states_of(run, steps, sampler)
    check_sequence_only(sampler.method)
    asked = list(rewards) if isinstance(rewards, (list, tuple)) else [reward_of(sampler, rewards)]
    by_reward = []
    for reward in asked:
        rows = [_gradients(sampler, state, reward, draws, strength) for state in states]
        by_reward.append(torch.stack([stable_shares(grads) for grads in rows]))
    return SignalToNoise(
        rewards=tuple(getattr(h, "name", getattr(h, "__name__", "h")) for h in asked),
        steps=tuple(state.i for state in states),
        ts=tuple(state.t for state in states),
        strength=strength,
        draws=draws,
        parts=torch.stack(by_reward),
    )


def _gradients(
    sampler: Sampler, state: State, reward: Callable, draws: int, strength: float
) -> Tensor:
    """grad_c h at re-noised xt, (N, B, L, D)."""
    alpha, sigma = level(sampler, state)
    with torch.no_grad():
        prediction = sampler.predict(state, sampler.method.gradient_point(state))
    grads = []
    for n in range(draws):
        purpose = f"renoise 0 {n}"
        z = noise.normal(state.seeds, state.i, state.xt.shape[1:], torch.float64, purpose=purpose)
        eps = (1 - strength**2) ** 0.5 * prediction.eps + strength * z.to(prediction.eps)
        renoised = (alpha * prediction.x0bar + sigma * eps).to(state.xt.dtype)
        grads.append(look(sampler, state.replace(xt=renoised), reward).grad.double().cpu())
    return torch.stack(grads)


def stable_shares(grads: Tensor) -> Tensor:
    """(N, B, L, D) to g_n . mean_{m != n} g_m / mean ||g||^2, (B, N), whose mean is the share."""
    g = grads.flatten(2)
    others = (g.sum(0) - g) / (len(g) - 1)
    energy = g.square().sum(2).mean(0)
    energy = energy.where(energy > 0, 1)  # of no gradient at all nothing is stable
    return ((g * others).sum(2) / energy).T
