"""DATE: at chosen steps the text embedding moves by rho along the gradient of a reward of x0bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import finite, has_numbers
from ..registry import option
from ..rewards.decoders import through
from ..schedules import Schedule, every
from ..tensors import add_along, norm, per_sample, unit
from ..types import Conditioning, State
from .base import Method, MethodUpdate
from .rho_rules import LineSearch, ask

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..sampler import Sampler

MOVING = {"sequence": ("sequence",), "pooled": ("pooled",), "both": ("sequence", "pooled")}


@dataclass(frozen=True)
class DATE(Method):
    """Diffusion Adaptive Text Embedding (arXiv 2510.23974), Eq. 14.

        c_hat = c_org + rho g / ||g||,   g = grad_c h(x0bar(xt, c_org))

    anchor       the gradient is taken at   and added to
    "original"   c_org                      c_org, Eq. 14
    "running"    the running c              the running c: steps add up, the authors' default
    "reset"      the running c              c_org, the authors' `init_org`

    reward: h, a function (images (B, 3, H, W), prompts) -> (B,);
    rho: the radius, in units of the embedding, per sample and over all positions together; or a
        rule of `datekit.methods.rho_rules`, which `StepInfo.extras["rho"]` then tells;
    when: which steps update;
    between: the others "hold" the last c or "revert" to c_org;
    inner_steps: how often a step repeats its update; not with anchor "original", where each would
        find the same gradient and begin at c_org;
    update: what moves, the "sequence" (B, L, D), the "pooled" vector (B, P), or "both" along their
        joint gradient, where rho bounds the joint norm;
    decoder: a cheaper decoder that the reward sees through (`datekit.rewards.decoders`), None for
        the backbone's own.
    """

    reward: Any = option(help="What the embedding climbs.", label="reward")
    rho: float | Callable[[LineSearch], Any] = option(
        0.5, help="How far the embedding moves, in units of the embedding.", range=(0.0, 4.0)
    )
    when: Schedule = option(every(), help="Which steps update.")
    anchor: str = option(
        "original",
        help="Where the gradient is taken and what is moved.",
        choices=("original", "running", "reset"),
    )
    between: str = option(
        "hold", help="What steps without an update feed.", choices=("hold", "revert")
    )
    inner_steps: int = option(1, help="How often a step repeats its update.", range=(1, 10))
    update: str = option("sequence", help="Which text vectors move.", choices=tuple(MOVING))
    decoder: Any = option(None, help="A cheaper decoder for the reward alone.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.rho):
            object.__setattr__(self, "rho", finite("rho", self.rho))
        if self.inner_steps > 1 and self.anchor == "original":
            raise ValueError("inner_steps repeat an update: take anchor='running' or 'reset'")
        if self.decoder is not None:
            object.__setattr__(self, "reward", through(self.reward, self.decoder))

    def check(self, sampler: Sampler) -> None:
        """Raise ValueError for a schedule or a pooled update that does not fit."""
        super().check(sampler)
        if self.update != "sequence" and not sampler.backbone.pooled:
            name = sampler.backbone.name
            raise ValueError(f"{name} has no pooled text vector to move; use update='sequence'")

    def gradient_point(self, state: State) -> Conditioning:
        """c_org for anchor "original", else the running embedding."""
        return state.cond_org if self.anchor == "original" else state.cond

    def condition(self, denoiser: Denoiser, state: State) -> MethodUpdate:
        """The embedding of this step: moved if the schedule says so, else held or reverted."""
        cond = state.cond if self.between == "hold" else state.cond_org
        if not self.when(state.i, denoiser.num_steps):
            return MethodUpdate(cond)
        at, moved = self.gradient_point(state), False
        for _ in range(self.inner_steps):
            line = self._uphill(denoiser, at)
            rho = self._radius(line)
            base = at if self.anchor == "running" else state.cond_org
            at = cond = _move(base, rho, line, cond)
            moves = (line.slope > 0) & (rho > 0)
            moved = moved or not has_numbers(moves) or bool(moves.any())
        return MethodUpdate(cond, line.gradient, moved)

    def _uphill(self, denoiser, at: Conditioning) -> LineSearch:
        """From an embedding along eps_hat = g / ||g||, of unit norm over all that moves."""
        gradient = denoiser.value_and_grad(self.reward, at, pooled=self.update != "sequence")
        of = {"sequence": gradient.grad, "pooled": gradient.grad_pooled}
        grads = {name: of[name] for name in MOVING[self.update]}
        joint = torch.cat([grad.flatten(1) for grad in grads.values()], 1)
        parts = unit(joint).split([grad[0].numel() for grad in grads.values()], 1)
        eps_hat = {name: part.view_as(of[name]) for name, part in zip(grads, parts, strict=True)}
        return LineSearch(denoiser, self.reward, at, gradient, eps_hat, norm(joint))

    def _radius(self, line: LineSearch) -> Tensor:
        """rho per sample, (B,)."""
        if not callable(self.rho):
            return torch.full_like(line.slope, self.rho)
        line.denoiser.extras["rho"] = rho = ask(self.rho, line)
        return rho


def _move(base: Conditioning, rho: Tensor, line: LineSearch, kept: Conditioning) -> Conditioning:
    """base + rho eps_hat, Eq. 14; a sample without a direction keeps the embedding it had."""
    parts = {}
    for name, direction in line.directions.items():
        moved = add_along(getattr(base, name), rho, direction)
        can_move = per_sample(line.slope > 0, moved)
        parts[name] = torch.where(can_move, moved, getattr(kept, name))
    return base.replace(**parts)
