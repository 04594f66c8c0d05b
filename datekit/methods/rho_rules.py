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

from ..errors import check_finite, finite
from ..registry import Registered, option
from ..tensors import add_along
from ..types import Conditioning, RewardGradient


@dataclass(frozen=True, eq=False)
class LineSearch:
    """h(c + rho eps_hat) at a paused step: what a rule may ask. Nothing here advances the step.

    denoiser: the paused step, number i of num_steps; reward: h; cond: c, the embedding where the
    gradient was taken; gradient: that gradient and what belongs to it; directions: eps_hat by what
    moves, "sequence" or "pooled" or both, which is g / ||g|| for the gradient g in all that moves;
    slope: (B,), the derivative of h in rho at 0, which is ||g||.
    """

    denoiser: Any
    reward: Callable
    cond: Conditioning
    gradient: RewardGradient
    directions: dict[str, Tensor]
    slope: Tensor

    @property
    def i(self) -> int:
        return self.denoiser.state.i

    @property
    def num_steps(self) -> int:
        return self.denoiser.num_steps

    @torch.no_grad()
    def h(self, rho: float | Tensor) -> Tensor:
        """h at c + rho eps_hat, (B,), for a conditional forward pass, a decoding and a scoring."""
        moved = {}
        for name, direction in self.directions.items():
            moved[name] = add_along(getattr(self.cond, name), rho, direction)
        x0bar = self.denoiser.predict(self.cond.replace(**moved)).x0bar
        where = f" at step {self.i}, where the rule for rho measured it"
        return self.denoiser.reward_of(self.reward, x0bar, where).to(self.slope)


class RhoRule(Registered):
    """A rule that can be saved and shown: a dataclass of numbers above 0, `rule(line) -> (B,)`."""

    kind = "rho rule"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not finite(name, value):
                raise ValueError(f"{name} must be above 0, got 0")


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


def ask(rule: Callable[[LineSearch], float | Tensor], line: LineSearch) -> Tensor:
    """What a rule answers, one radius a sample, (B,). NonFiniteError for NaN or below 0."""
    answer = torch.as_tensor(rule(line)).detach().to(line.slope).expand(len(line.slope))
    message = f"{rule!r} gave a radius that is no finite number from 0 up"
    check_finite(answer.where(answer >= 0, torch.nan), message, f" at step {line.i}")
    return answer
