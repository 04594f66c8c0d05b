"""Rules for rho: how far an update goes, chosen at each step and for each sample.

A rule is any function of a `LineSearch`, the reward along the direction of the update, such as
`lambda line: 0.2 + 0.6 * line.i / line.num_steps`. It gives one radius for all samples or (B,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import noise
from ..errors import check_finite, is_finite
from ..registry import Registered, option
from ..tensors import add_along, norm
from ..types import Conditioning, RewardGradient


@dataclass(frozen=True, eq=False)
class LineSearch:
    """h(c + rho eps_hat) at a paused step: what a rule may ask. Nothing here advances the step.

    denoiser: the paused step, number i of num_steps; reward: h; cond: c, the embedding where the
    gradient was taken; gradient: that gradient and what belongs to it; directions: eps_hat by what
    moves, "sequence" or "pooled" or both, which is g / ||g|| for the gradient g in all that moves.
    """

    denoiser: Any
    reward: Callable
    cond: Conditioning
    gradient: RewardGradient
    directions: dict[str, Tensor]

    @property
    def i(self) -> int:
        return self.denoiser.state.i

    @property
    def num_steps(self) -> int:
        return self.denoiser.num_steps

    @property
    def slope(self) -> Tensor:
        """The derivative of h in rho at 0, (B,): ||g||, as the direction is g / ||g||."""
        return norm(self._moving(self.gradient))

    @torch.no_grad()
    def h(self, rho: float | Tensor) -> Tensor:
        """h at c + rho eps_hat, (B,), for a conditional forward pass, a decoding and a scoring."""
        moved = {}
        for name, direction in self.directions.items():
            moved[name] = add_along(getattr(self.cond, name), rho, direction)
        x0bar = self.denoiser.predict(self.cond.replace(**moved)).x0bar
        where = f" at step {self.i}, where the rule for rho measured it"
        return self.denoiser.reward_of(self.reward, x0bar, where).to(self.slope)

    def stable_share(self, strength: float = 0.5) -> Tensor:
        """The share of the gradient that stays when xt is drawn again, (B,), from -1 to 1.

        sqrt(1 - s^2) eps + s z takes the place of the eps in xt = alpha x0bar + sigma eps, with s
        the strength and z standard normal. With g and g' the gradients before and after, the share
        is 2 g . g' / (||g||^2 + ||g'||^2). It costs one gradient.
        """
        state, x0bar = self.denoiser.state, self.gradient.x0bar
        alpha, sigma = self.denoiser.solver.level(state.i)
        eps, shape = (state.xt.to(x0bar) - alpha * x0bar) / sigma, state.xt.shape[1:]
        z = noise.normal(state.seeds, state.i, shape, torch.float64, purpose="radius 0").to(eps)
        xt = alpha * x0bar + sigma * ((1 - strength**2) ** 0.5 * eps + strength * z)
        there = self.denoiser.at(xt.to(state.xt.dtype))
        pooled = "pooled" in self.directions
        again = there.value_and_grad(self.reward, self.cond, pooled=pooled)
        grads = torch.stack([self._moving(self.gradient), self._moving(again)])
        largest = grads.abs().amax((0, 2)).clamp_min(torch.finfo(grads.dtype).tiny)
        grads = grads / largest[:, None]  # so that squares neither vanish nor overflow
        together, energy = grads.sum(0).square().sum(1), grads.square().sum((0, 2))
        return (together - energy) / 2 / (energy / 2).where(energy > 0, 1)

    def _moving(self, gradient: RewardGradient) -> Tensor:
        """The gradient in all that moves, one row a sample."""
        of = {"sequence": gradient.grad, "pooled": gradient.grad_pooled}
        return torch.cat([of[name].flatten(1) for name in self.directions], 1)


class RhoRule(Registered):
    """A rule that can be saved and shown: a dataclass of numbers above 0, `rule(line) -> (B,)`."""

    kind = "rho rule"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not is_finite(value) or value <= 0:
                raise ValueError(f"{name} must be a finite number above 0, got {value!r}")

    def __call__(self, line: LineSearch) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Taylor(RhoRule):
    """The radius at which the first order is wrong by a given share of what it promises.

    One measurement, with r = trial, gives |h(c + r eps_hat) - h(c) - r ||g||| / (r ||g||). To
    second order this share grows as rho, so that it is `tolerance` at rho = r tolerance / share.
    Where the share or the gradient is 0, rho is `most`.
    """

    tolerance: float = option(
        0.5, range=(0.05, 2.0), help="The share by which the first order may be wrong."
    )
    trial: float = option(0.5, range=(0.05, 2.0), help="The radius at which h is measured.")
    most: float = option(2.0, label="most ρ", range=(0.05, 4.0), help="The largest radius.")

    def __call__(self, line: LineSearch) -> Tensor:
        promise = self.trial * line.slope
        wrong = (line.h(self.trial) - line.gradient.h.to(promise) - promise).abs()
        allowed = self.trial * self.tolerance * promise
        rho = allowed / wrong.where(wrong > 0, 1)
        return rho.where(allowed < self.most * wrong, self.most)


@dataclass(frozen=True)
class SignalToNoise(RhoRule):
    """rho = most * max(0, share of the gradient that is not due to this draw of the noise).

    The share is `LineSearch.stable_share()`; a Wiener filter scales a noisy gradient so.
    """

    label = "signal to noise"
    most: float = option(1.0, label="most ρ", range=(0.05, 4.0), help="The largest radius.")

    def __call__(self, line: LineSearch) -> Tensor:
        return self.most * line.stable_share().clamp(0, 1)


def ask(rule: Callable[[LineSearch], float | Tensor], line: LineSearch) -> Tensor:
    """What a rule answers, one radius a sample, (B,). NonFiniteError for NaN or below 0."""
    slope = line.slope
    answer = torch.as_tensor(rule(line)).detach().to(slope).expand(len(slope))
    message = f"{rule!r} gave a radius that is no finite number from 0 up"
    check_finite(answer.where(answer >= 0, torch.nan), message, f" at step {line.i}")
    return answer
