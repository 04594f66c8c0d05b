"""A random direction of DATE's length: what moving the embedding does when nobody looked where."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .. import noise
from ..schedules import Schedule, as_schedule, every
from ..types import unit
from .base import Method, Conditioned, check_rho


@dataclass(frozen=True)
class RandomDirection(Method):
    """c = c_org + rho u with u uniform on the unit sphere, drawn per seed and step; held between updates.

    rho: radius, in units of the embedding; when: which steps draw anew.
    """

    rho: float = 0.5
    when: Schedule = field(default_factory=every)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rho", check_rho(self.rho))
        object.__setattr__(self, "when", as_schedule(self.when))

    def check(self, sampler) -> None:
        """Raise ValueError if the schedule does not fit the run."""
        self.when.indices(sampler.num_steps)

    def condition(self, denoiser, state) -> Conditioned:
        """The embedding for this step."""
        if not self.when(state.i, denoiser.num_steps):
            return Conditioned(state.cond)
        c_org = state.c_org
        u = noise.normal(state.seeds, state.i, c_org.shape[1:], torch.float64, purpose="direction")
        if state.cond_org.mask is not None:
            u = u * state.cond_org.mask[..., None].cpu()
        return Conditioned(
            state.cond_org.replace(sequence=c_org + self.rho * unit(u).to(c_org)),
            moved=self.rho > 0,
        )
