"""Rules for rho that the ablation compares, beside `dk.rho_rules.Taylor`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datekit import noise
from datekit.methods.rho_rules import LineSearch, RhoRule


@dataclass(frozen=True)
class Unnormalised(RhoRule):
    """rho = scale ||grad_c h||: plain gradient ascent, which Eq. 14 normalises."""

    scale: float

    def __call__(self, line: LineSearch) -> Tensor:
        return self.scale * line.slope


@dataclass(frozen=True)
class SignalToNoise(RhoRule):
    """rho = most * max(0, share of the gradient that stays when xt is drawn again).

    sqrt(1 - s^2) eps + s z takes the place of the eps in xt = alpha x0bar + sigma eps, with s the
    strength and z standard normal. With g and g' the gradients before and after, the share is
    2 g . g' / (||g||^2 + ||g'||^2); a Wiener filter scales a noisy gradient so.
    """

    most: float = 1.0
    strength: float = 0.5

    def __call__(self, line: LineSearch) -> Tensor:
        denoiser, x0bar = line.denoiser, line.gradient.x0bar
        state, (alpha, sigma) = denoiser.state, denoiser.solver.level(line.i)
        eps, shape = (state.xt.to(x0bar) - alpha * x0bar) / sigma, state.xt.shape[1:]
        z = noise.normal(state.seeds, line.i, shape, torch.float64, purpose="radius 0").to(eps)
        s = self.strength
        xt = alpha * x0bar + sigma * ((1 - s**2) ** 0.5 * eps + s * z)
        again = denoiser.at(xt.to(state.xt.dtype)).value_and_grad(line.reward, line.cond)
        grads = torch.stack([line.gradient.grad.flatten(1), again.grad.flatten(1)])
        largest = grads.abs().amax((0, 2)).clamp_min(torch.finfo(grads.dtype).tiny)
        grads = grads / largest[:, None]  # so that squares neither vanish nor overflow
        together, energy = grads.sum(0).square().sum(1), grads.square().sum((0, 2))
        share = (together - energy) / 2 / (energy / 2).where(energy > 0, 1)
        return self.most * share.clamp(0, 1)
