"""DATE: at chosen steps the text embedding moves by rho along the gradient of a reward of x0bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import finite, has_numbers, unknown, whole
from ..registry import option
from ..rewards.decoders import through
from ..schedules import Schedule, as_schedule, every
from ..tensors import per_sample, unit
from ..types import Conditioning, RewardGradient, State
from .base import Conditioned, Method, check_reward
from .rho_rules import LineSearch, add_along, ask

ANCHORS = ("original", "running", "reset")
BETWEEN = ("hold", "revert")
UPDATES = ("sequence", "pooled", "both")
SEEN = ("x0bar", "xt")


@dataclass(frozen=True)
class DATE(Method):
    """Diffusion Adaptive Text Embedding (arXiv 2510.23974), Eq. 14.

        c_hat = c_org + rho g / ||g||,   g = grad_c h(x0bar(xt, c_org))

    reward: h, a function (images (B, 3, H, W), prompts) -> (B,).
    rho: the radius, in units of the embedding, per sample and over all positions together; or a
    rule of `datekit.methods.rho_rules` that chooses it at each update (then
    `StepInfo.extras["rho"]` tells it). when: which steps update. between: steps without an update
    "hold" the last c or "revert" to c_org. anchor: where the gradient is taken and what is moved.
    "original": both c_org, Eq. 14; "running": both the running c, so that displacements add up, as
    the authors' code does by default; "reset": the gradient at the running c, and c_org is moved,
    which is the authors' `init_org`. inner_steps: how often a step repeats its update; with anchor
    "original" a repetition would find the same gradient, so one is done. update: what moves, the
    "sequence" (B, L, D), the "pooled" vector (B, P), or "both" along their joint gradient, where
    rho bounds the joint norm. seen: what h judges, "x0bar" or, as an ablation, the noisy "xt" that
    the step leads to. decoder: a cheaper decoder that the reward sees through
    (`datekit.rewards.decoders`), None for the backbone's own; an approximation.
    """

    reward: Any = option(help="What the embedding climbs.", label="reward")
    rho: float | Callable[[LineSearch], Any] = option(
        0.5, help="How far the embedding moves, in units of the embedding.", range=(0.0, 4.0)
    )
    when: Schedule = option(factory=every, help="Which steps update.")
    anchor: str = option(
        "original", help="Where the gradient is taken and what is moved.", choices=ANCHORS
    )
    between: str = option("hold", help="What steps without an update feed.", choices=BETWEEN)
    inner_steps: int = option(1, help="How often a step repeats its update.", range=(1, 10))
    update: str = option("sequence", help="Which text vectors move.", choices=UPDATES)
    seen: str = option("x0bar", help="What the reward judges.", choices=SEEN)
    decoder: Any = option(None, help="A cheaper decoder for the reward alone.")

    def __post_init__(self) -> None:
        check_reward(self.reward)
        for name, choices in (
            ("anchor", ANCHORS),
            ("between", BETWEEN),
            ("update", UPDATES),
            ("seen", SEEN),
        ):
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices)
        if not callable(self.rho):
            object.__setattr__(self, "rho", finite("rho", self.rho))
        object.__setattr__(self, "inner_steps", whole("inner_steps", self.inner_steps, 1))
        object.__setattr__(self, "when", as_schedule(self.when))
        if self.decoder is not None:
            object.__setattr__(self, "reward", through(self.reward, self.decoder))

    def check(self, sampler) -> None:
        """Raise ValueError for a schedule, a pooled update or a decoder that does not fit."""
        super().check(sampler)
        if self.update != "sequence" and not sampler.backbone.pooled:
            raise ValueError(
                f"{sampler.backbone.name} has no pooled text vector to move; use update='sequence'"
            )
        if self.decoder is not None:
            self.reward.check(sampler.backbone)

    def gradient_point(self, state: State) -> Conditioning:
        """c_org for anchor "original", else the running embedding."""
        return state.cond_org if self.anchor == "original" else state.cond

    def condition(self, denoiser, state: State) -> Conditioned:
        """The embedding of this step: moved if the schedule says so, else held or reverted."""
        cond = state.cond if self.between == "hold" else state.cond_org
        if not self.when(state.i, denoiser.num_steps):
            return Conditioned(cond)
        at, moved = self.gradient_point(state), False
        for _ in range(1 if self.anchor == "original" else self.inner_steps):
            gradient = denoiser.value_and_grad(self.reward, at, wrt=self.update, seen=self.seen)
            directions = self.directions(gradient)
            rho = self._radius(denoiser, at, gradient, directions)
            base = at if self.anchor == "running" else state.cond_org
            at = cond = _move(base, cond, rho, directions)
            moves = ~_still(directions) & (rho > 0)
            moved = moved or not has_numbers(moves) or bool(moves.any())
        return Conditioned(cond, gradient, moved)

    def directions(self, gradient: RewardGradient) -> dict[str, Tensor]:
        """eps_hat by what moves, of unit norm over everything that moves together."""
        if self.update == "sequence":
            return {"sequence": gradient.direction}
        if self.update == "pooled":
            return {"pooled": unit(gradient.grad_pooled)}
        sequence, pooled = gradient.grad, gradient.grad_pooled
        joint = unit(torch.cat([sequence.flatten(1), pooled], 1))
        sizes = [sequence[0].numel(), pooled.shape[1]]
        first, second = joint.split(sizes, 1)
        return {"sequence": first.reshape(sequence.shape), "pooled": second}

    def _radius(self, denoiser, at, gradient, directions) -> Tensor:
        """rho per sample, (B,)."""
        if not callable(self.rho):
            return torch.full_like(gradient.grad_norm, self.rho)
        line = LineSearch(denoiser, self.reward, at, gradient, directions, self.seen)
        denoiser.extras["rho"] = rho = ask(self.rho, line)
        return rho


def _still(directions: dict[str, Tensor]) -> Tensor:
    """Which samples have no direction to move in, (B,) bool."""
    return ~torch.stack([d.flatten(1).any(1) for d in directions.values()]).any(0)


def _move(base: Conditioning, kept: Conditioning, rho: Tensor, directions) -> Conditioning:
    """base + rho eps_hat; a sample without a direction keeps what it had."""
    still, parts = _still(directions), {}
    for name, direction in directions.items():
        moved, before = add_along(getattr(base, name), rho, direction), getattr(kept, name)
        parts[name] = torch.where(per_sample(still, moved), before, moved)
    return base.replace(**parts)
