"""A random direction of DATE's length: what moving the embedding does when nobody looked where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .. import noise
from ..registry import option
from ..schedules import Schedule, every
from ..tensors import add_along, unit
from ..types import State
from .base import Method, MethodUpdate

if TYPE_CHECKING:
    from ..denoiser import Denoiser


@dataclass(frozen=True)
class RandomDirection(Method):
    """c = c_org + rho u, where u is uniform on the unit sphere and drawn for each seed and step.

    The last c is held between the steps that draw anew.
    """

    label = "random direction"
    rho: float = option(0.5, label="ρ", range=(0.0, 2.0), help="How far the embedding moves.")
    when: Schedule = option(every(), help="Which steps draw a new direction.")

    def condition(self, denoiser: Denoiser, state: State) -> MethodUpdate:
        if not self.when(state.i, denoiser.num_steps):
            return MethodUpdate(state.cond)
        c_org, mask = state.c_org, state.cond_org.mask
        u = noise.normal(state.seeds, state.i, c_org.shape[1:], torch.float64, purpose="direction")
        if mask is not None:
            u = u * mask[..., None].cpu()
        c = add_along(c_org, self.rho, unit(u).to(c_org))
        return MethodUpdate(state.cond_org.replace(sequence=c), moved=self.rho > 0)
