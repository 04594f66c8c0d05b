"""DATE: at chosen steps the text embedding moves by rho along the gradient of a reward of x0bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import finite, has_numbers, unknown, whole
from ..registry import option, options
from ..rewards.base import as_reward
from ..rewards.decoders import through
from ..schedules import Schedule, as_schedule, every
from ..tensors import add_along, per_sample, unit
from ..types import Conditioning, RewardGradient, State
from .base import Method, MethodUpdate
from .rho_rules import LineSearch, ask

MOVING = {"sequence": ("sequence",), "pooled": ("pooled",), "both": ("sequence", "pooled")}


@dataclass(frozen=True)
class DATE(Method):
    """Diffusion Adaptive Text Embedding (arXiv 2510.23974), Eq. 14.

        c_hat = c_org + rho g / ||g||,   g = grad_c h(x0bar(xt, c_org))

    anchor       the gradient is taken at   and added to
    "original"   c_org                      c_org, Eq. 14
    "running"    the running c              the running c: steps add up, the authors' default
    "reset"      the running c              c_org, the authors' `init_org`

    reward: h, a function (images (B, 3, H, W), prompts) -> (B,). rho: the radius, in units of the
    embedding, per sample and over all positions together; or a rule of `datekit.methods.rho_rules`
    that chooses it at each update (then `StepInfo.extras["rho"]` tells it). when: which steps
    update; between: the others "hold" the last c or "revert" to c_org. inner_steps: how often a
    step repeats its update; with anchor "original" it would find the same gradient, so one is done.
    update: what moves, the "sequence" (B, L, D), the "pooled" vector (B, P), or "both" along their
    joint gradient, where rho bounds the joint norm. decoder: a cheaper decoder that the reward sees
    through (`datekit.rewards.decoders`), None for the backbone's own.
    """

    reward: Any = option(help="What the embedding climbs.", label="reward")
    rho: float | Callable[[LineSearch], Any] = option(
        0.5, help="How far the embedding moves, in units of the embedding.", range=(0.0, 4.0)
    )
    when: Schedule = option(factory=every, help="Which steps update.")
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
        as_reward(self.reward)  # raises TypeError for what is none
        for name, field in options(type(self)).items():
            choices, value = field.metadata["choices"], getattr(self, name)
            if choices and value not in choices:
                raise unknown(name, value, choices)
        if not callable(self.rho):
            object.__setattr__(self, "rho", finite("rho", self.rho))
        object.__setattr__(self, "inner_steps", whole("inner_steps", self.inner_steps, 1))
        object.__setattr__(self, "when", as_schedule(self.when))
        if self.decoder is not None:
            object.__setattr__(self, "reward", through(self.reward, self.decoder))

    def check(self, sampler) -> None:
        """Raise ValueError for a schedule or a pooled update that does not fit."""
        super().check(sampler)
        if self.update != "sequence" and not sampler.backbone.pooled:
            name = sampler.backbone.name
            raise ValueError(f"{name} has no pooled text vector to move; use update='sequence'")

    def gradient_point(self, state: State) -> Conditioning:
        """c_org for anchor "original", else the running embedding."""
        return state.cond_org if self.anchor == "original" else state.cond

    def condition(self, denoiser, state: State) -> MethodUpdate:
        """The embedding of this step: moved if the schedule says so, else held or reverted."""
        cond = state.cond if self.between == "hold" else state.cond_org
        if not self.when(state.i, denoiser.num_steps):
            return MethodUpdate(cond)
        at, moved = self.gradient_point(state), False
        for _ in range(1 if self.anchor == "original" else self.inner_steps):
            gradient = denoiser.value_and_grad(self.reward, at, pooled=self.update != "sequence")
            directions = self._directions(gradient)
            rho = self._radius(denoiser, at, gradient, directions)
            base = at if self.anchor == "running" else state.cond_org
            can_move = torch.cat([d.flatten(1) for d in directions.values()], 1).any(1)
            at = cond = _move(base, rho, directions, can_move, cond)
            moves = can_move & (rho > 0)
            moved = moved or not has_numbers(moves) or bool(moves.any())
        return MethodUpdate(cond, gradient, moved)

    def _directions(self, gradient: RewardGradient) -> dict[str, Tensor]:
        """eps_hat by what moves, of unit norm over everything that moves together."""
        of = {"sequence": gradient.grad, "pooled": gradient.grad_pooled}
        grads = {name: of[name] for name in MOVING[self.update]}
        joint = unit(torch.cat([grad.flatten(1) for grad in grads.values()], 1))
        parts = joint.split([grad[0].numel() for grad in grads.values()], 1)
        return {name: part.reshape(of[name].shape) for name, part in zip(grads, parts, strict=True)}

    def _radius(self, denoiser, at, gradient, directions) -> Tensor:
        """rho per sample, (B,)."""
        if not callable(self.rho):
            return torch.full_like(gradient.h, self.rho, dtype=gradient.grad.dtype)
        line = LineSearch(denoiser, self.reward, at, gradient, directions)
        denoiser.extras["rho"] = rho = ask(self.rho, line)
        return rho


def _move(
    base: Conditioning, rho: Tensor, directions: dict, can_move: Tensor, kept: Conditioning
) -> Conditioning:
    """base + rho eps_hat, Eq. 14; a sample without a direction keeps the embedding it had."""
    parts = {}
    for name, direction in directions.items():
        moved = add_along(getattr(base, name), rho, direction)
        parts[name] = torch.where(per_sample(can_move, moved), moved, getattr(kept, name))
    return base.replace(**parts)
