"""How much of grad_c h is a property of the picture under way, and how much of this one draw of noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import noise
from ..errors import is_whole
from ..statistics import Interval, bootstrap
from ..run import Run
from ..sampler import Sampler
from ..types import State
from .base import Result, paused, reward_of, sequence_only


@dataclass(frozen=True, eq=False, repr=False)
class SignalToNoise(Result):
    """Stable shares of gradients, see `signal_to_noise` for the definition.

    rewards: K names; steps, ts: the T steps and their timesteps; strength, draws: of the re-noising; stable: (K, T, B), the stable share
    of each sample's gradient; parts: (K, T, B, N), draw by draw, their mean over N; grads: (K, T, N, B, L, D) or None; float64, CPU.
    """

    rewards: tuple[str, ...]
    steps: tuple[int, ...]
    ts: tuple[float, ...]
    strength: float
    draws: int
    stable: Tensor
    parts: Tensor
    grads: Tensor | None = None

    def interval(self, reward: int | str = 0, step: int = 0) -> Interval:
        """The mean stable share and its 95 % bootstrap interval, over samples (over draws where there is one sample).

        reward: a name or its number; step: the number of the row, not of the step.
        """
        k = self.rewards.index(reward) if isinstance(reward, str) else reward
        values = self.stable[k, step] if self.stable.shape[2] > 1 else self.parts[k, step, 0]
        return bootstrap(values.tolist())

    @property
    def title(self) -> str:
        """How it was measured."""
        over = "samples" if self.stable.shape[2] > 1 else "draws"
        return f"re-noised by {self.strength:.2f} sigma, {self.draws} draws; intervals over {over}"

    def to_frame(self):
        """One row a reward and step: the stable share with its interval, and as a ratio signal / noise = share / (1 - share)."""
        import pandas as pd

        rows = []
        for k, name in enumerate(self.rewards):
            for row, (i, t) in enumerate(zip(self.steps, self.ts, strict=True)):
                share = self.interval(k, row)
                ratio = share.mean / (1 - share.mean) if share.mean < 1 else float("inf")
                rows.append((name, i, t, *share, ratio))
        return pd.DataFrame(
            rows, columns=["reward", "step", "t", "stable share", "low", "high", "signal / noise"]
        )


def signal_to_noise(
    run: Run | State,
    *,
    steps: Sequence[int] | None = None,
    rewards: Callable | Sequence[Callable] | None = None,
    draws: int = 8,
    strength: float = 0.2,
    seed: int = 0,
    keep: bool = False,
    sampler: Sampler | None = None,
) -> SignalToNoise:
    """The share of grad_c h that stays when xt is re-noised a little at the same t.

    xt is written as alpha x0bar + sigma eps; draw n takes eps_n = sqrt(1 - s^2) eps + s z_n with z_n standard normal and s = strength,
    and gives g_n = grad_c h at (xt_n, c). The stable share is ||E g||^2 / E||g||^2, estimated without bias in its numerator
    as the mean over pairs of g_m . g_n, m != n; 1 is a gradient that no noise changes, 0 one that is all noise.
    rewards: one or several, the method's own by default; steps: of a run's past (`run.states`), the paused one by default;
    keep: keep the gradients too, 8 K T N B L D bytes. Costs N gradients a reward and step. Raises ValueError for fewer than 2
    draws, strength outside (0, 1], steps not taken yet; NonFiniteError as `run.peek`.
    """
    if not is_whole(draws) or draws < 2:
        raise ValueError(
            f"draws must be a whole number from 2 up, as one gradient has nothing to differ from; got {draws!r}"
        )
    if not 0 < strength <= 1:
        raise ValueError(f"strength is a share of the noise, above 0 and up to 1, got {strength!r}")
    states, sampler = states_of(run, steps, sampler)
    sequence_only(sampler.method)
    asked = list(rewards) if isinstance(rewards, (list, tuple)) else [reward_of(sampler, rewards)]
    grads = torch.stack(
        [
            torch.stack(
                [_gradients(sampler, state, reward, draws, strength, seed) for state in states]
            )
            for reward in asked
        ]
    )
    stable, parts = zip(*[_shares(g) for g in grads.flatten(0, 1)], strict=True)
    shape = grads.shape[:2]
    return SignalToNoise(
        rewards=tuple(
            getattr(reward, "name", getattr(reward, "__name__", "h")) for reward in asked
        ),
        steps=tuple(s.i for s in states),
        ts=tuple(s.t for s in states),
        strength=strength,
        draws=int(draws),
        stable=torch.stack(stable).unflatten(0, shape),
        parts=torch.stack(parts).unflatten(0, shape),
        grads=grads if keep else None,
    )


def states_of(
    run: Run | State, steps: Sequence[int] | None, sampler: Sampler | None
) -> tuple[list[State], Sampler]:
    """The states asked for and their sampler: a run's past at some steps, or the paused one. Raises ValueError for steps not taken yet."""
    if steps is None:
        state, sampler = paused(run, sampler)
        return [state], sampler
    if not isinstance(run, Run):
        raise TypeError(
            "steps are looked up in a run's past; give the Run, or a State without steps"
        )
    known = {state.i: state for state in run.states if state.i < run.sampler.num_steps}
    if missing := [i for i in steps if i not in known]:
        raise ValueError(
            f"this run has not come to step(s) {missing}; it has been at {min(known)} to {max(known)}"
        )
    return [known[i] for i in steps], sampler or run.sampler


def _gradients(
    sampler: Sampler, state: State, reward: Callable, draws: int, strength: float, seed: int
) -> Tensor:
    """grad_c h at re-noised xt, (N, B, L, D)."""
    alpha, sigma = sampler.solver_for(state.xt.shape).level(state.i)
    with torch.no_grad():
        seen = sampler.predict(state, sampler.method.gradient_point(state))
    found = []
    for n in range(draws):
        z = noise.normal(
            state.seeds, state.i, state.xt.shape[1:], torch.float64, purpose=f"renoise {seed} {n}"
        ).to(seen.eps)
        eps = (1 - strength**2) ** 0.5 * seen.eps + strength * z
        renoised = state.replace(xt=(alpha * seen.x0bar + sigma * eps).to(state.xt.dtype))
        found.append(sampler.look(renoised, reward).grad.double().cpu())
    return torch.stack(found)


def _shares(grads: Tensor) -> tuple[Tensor, Tensor]:
    """(N, B, L, D) to stable shares (B,) and their parts g_n . mean_{m != n} g_m / mean ||g||^2, (B, N)."""
    g = grads.flatten(2)
    others = (g.sum(0) - g) / (len(g) - 1)
    energy = (g**2).sum(2).mean(0)
    parts = (
        (g * others).sum(2) / energy.where(energy > 0, 1)
    ).T  # no gradient at all: nothing of it is stable
    return parts.mean(1), parts
