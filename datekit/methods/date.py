"""DATE: at chosen steps the text embedding moves by rho along the normalised gradient of a reward of x0bar."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import unknown
from ..schedules import Schedule, as_schedule, every
from ..types import Conditioning
from .base import Method, Update, check_rho

ANCHORS = ("original", "running", "reset")
BETWEEN = ("hold", "revert")


@dataclass(frozen=True)
class DATE(Method):
    """Diffusion Adaptive Text Embedding (arXiv 2510.23974), Eq. 14: c = c_org + rho g / ||g||, g = grad_c h_t(xt, c_org).

    reward: h, (images (B, 3, H, W), prompts) -> (B,); rho: radius, in units of the embedding, per sample and over all
    positions together; when: which steps update; anchor: where the gradient is taken and what is moved,
    "original" (both c_org, Eq. 14), "running" (both the running c: displacements add up, the authors' default),
    "reset" (gradient at the running c, c_org is moved: the authors' `init_org`); between: steps without an update
    "hold" the last c or "revert" to c_org (a running c then starts from c_org again); inner_steps: how often
    one step repeats its update (with anchor "original" a repetition finds the same gradient, so one is done).
    """

    reward: Any
    rho: float = 0.5
    when: Schedule = field(default_factory=every)
    anchor: str = "original"
    between: str = "hold"
    inner_steps: int = 1

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise TypeError(f"reward must be callable as (images, prompts) -> (B,), got {type(self.reward).__name__}")
        check_rho(self.rho)
        if self.anchor not in ANCHORS:
            raise unknown("anchor", self.anchor, ANCHORS)
        if self.between not in BETWEEN:
            raise unknown("between", self.between, BETWEEN)
        if isinstance(self.inner_steps, bool) or not isinstance(self.inner_steps, int) or self.inner_steps < 1:
            raise ValueError(f"inner_steps must be a whole number from 1 up, got {self.inner_steps!r}")
        object.__setattr__(self, "when", as_schedule(self.when))

    def check(self, sampler) -> None:
        """Raise ValueError if the schedule does not fit the run."""
        self.when.indices(sampler.num_steps)

    def vantage(self, state) -> Conditioning:
        """c_org for anchor "original", else the running embedding."""
        return state.cond_org if self.anchor == "original" else state.cond

    def condition(self, probe, state) -> Update:
        """The embedding for this step: moved if the schedule says so, else held or reverted."""
        kept = state.cond if self.between == "hold" else state.cond_org
        if not self.when(state.i, probe.num_steps):
            return Update(kept)
        at = self.vantage(state)
        for _ in range(1 if self.anchor == "original" else self.inner_steps):
            look = probe.look(self.reward, at)
            base = at if self.anchor == "running" else state.cond_org
            moved = base.sequence + self.rho * look.direction
            still = look.zero_gradient[:, None, None]  # no direction to move in: no update
            at = kept = base.replace(sequence=torch.where(still, kept.sequence, moved))
        return Update(kept, look, moved=self.rho > 0 and not bool(look.zero_gradient.all()))
