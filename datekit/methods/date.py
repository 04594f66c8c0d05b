"""DATE: at chosen steps the text embedding moves by rho along the normalised gradient of a reward of x0bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..rewards.decoders import through
from ..errors import unknown
from .rho_rules import LineSearch, ask, looked, stepped
from ..schedules import Schedule, as_schedule, every
from ..types import Conditioning, unit
from .base import Method, Conditioned, check_rho, whole

ANCHORS = ("original", "running", "reset")
BETWEEN = ("hold", "revert")
UPDATES = ("sequence", "pooled", "both")
SEEN = ("x0bar", "xt")


@dataclass(frozen=True)
class DATE(Method):
    """Diffusion Adaptive Text Embedding (arXiv 2510.23974), Eq. 14: c = c_org + rho g / ||g||, g = grad_c h_t(xt, c_org).

    reward: h, (images (B, 3, H, W), prompts) -> (B,); rho: radius, in units of the embedding, per sample and over all
    positions together, or a rule that chooses it at each update (`datekit.methods.rho_rules`; `StepInfo.notes["rho"]` has what it chose, the
    last where a step repeats its update); when: which steps update; anchor: where the gradient is taken and what is moved,
    "original" (both c_org, Eq. 14), "running" (both the running c: displacements add up, the authors' default),
    "reset" (gradient at the running c, c_org is moved: the authors' `init_org`); between: steps without an update
    "hold" the last c or "revert" to c_org (a running c then starts from c_org again); inner_steps: how often
    one step repeats its update (with anchor "original" a repetition finds the same gradient, so one is done); update: what moves,
    the "sequence" (B, L, D), the "pooled" vector (B, P) of the families that have one, or "both" along their joint gradient, so
    that rho bounds the joint norm, sqrt(||sequence||^2 + ||pooled||^2); seen: what h judges, "x0bar" or, as an ablation, the noisy
    "xt" that the step leads to (`rho_rules.judged`). `Run.peek` shows x0bar in either case;
    keep_graph: whether the network's graph waits in memory for the reward's gradient, which saves a forward pass and changes no
    bit; None decides at each update by free memory; decoder: a cheaper decoder that the reward sees through
    (`datekit.rewards.decoders`: "resized", "linear", "tiny", a module), None for the backbone's own; an approximation.
    """

    reward: Any
    rho: float | Callable[[LineSearch], Any] = 0.5
    when: Schedule = field(default_factory=every)
    anchor: str = "original"
    between: str = "hold"
    inner_steps: int = 1
    update: str = "sequence"
    seen: str = "x0bar"
    keep_graph: bool | None = None
    decoder: Any = None

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise TypeError(
                f"reward must be callable as (images, prompts) -> (B,), got {type(self.reward).__name__}"
            )
        if not callable(self.rho):
            object.__setattr__(self, "rho", check_rho(self.rho))
        if self.seen not in SEEN:
            raise unknown("view of the reward", self.seen, SEEN)
        if self.anchor not in ANCHORS:
            raise unknown("anchor", self.anchor, ANCHORS)
        if self.between not in BETWEEN:
            raise unknown("between", self.between, BETWEEN)
        if self.update not in UPDATES:
            raise unknown("update", self.update, UPDATES)
        object.__setattr__(self, "inner_steps", whole("inner_steps", self.inner_steps, 1))
        object.__setattr__(self, "when", as_schedule(self.when))
        if self.keep_graph not in (None, True, False):
            raise ValueError(
                f"keep_graph must be True, False or None (by free memory), got {self.keep_graph!r}"
            )
        if self.decoder is not None:
            object.__setattr__(self, "reward", through(self.reward, self.decoder))

    def check(self, sampler) -> None:
        """Raise ValueError if the schedule does not fit the run, the backbone has no pooled vector to move, or the decoder does not fit."""
        self.when.indices(sampler.num_steps)
        if self.update != "sequence" and not sampler.backbone.pooled:
            raise ValueError(
                f"{sampler.backbone.name} has no pooled text vector to move; use update='sequence'"
            )
        if self.decoder is not None:
            self.reward.check(sampler.backbone)

    def gradient_point(self, state) -> Conditioning:
        """c_org for anchor "original", else the running embedding."""
        return state.cond_org if self.anchor == "original" else state.cond

    def condition(self, denoiser, state) -> Conditioned:
        """The embedding for this step: moved if the schedule says so, else held or reverted."""
        kept = state.cond if self.between == "hold" else state.cond_org
        if not self.when(state.i, denoiser.num_steps):
            return Conditioned(kept)
        at, notes = self.gradient_point(state), {}
        for _ in range(1 if self.anchor == "original" else self.inner_steps):
            look = looked(
                denoiser,
                self.reward,
                at,
                pooled=self.update != "sequence",
                seen=self.seen,
                keep_graph=self.keep_graph,
            )
            base = at if self.anchor == "running" else state.cond_org
            directions = self._directions(look)
            still = ~torch.stack([d.flatten(1).any(1) for d in directions.values()]).any(
                0
            )  # no direction to move in: no update
            rho = self.rho
            if callable(rho):
                notes["rho"] = rho = ask(
                    rho, LineSearch(denoiser, self.reward, at, look, directions, self.seen)
                )
            moved = {
                part: stepped(getattr(base, part), rho, direction)
                for part, direction in directions.items()
            }
            at = kept = base.replace(
                **{part: _unless(still, getattr(kept, part), x) for part, x in moved.items()}
            )
        moves = ~still & (torch.as_tensor(rho, device=still.device) > 0)
        return Conditioned(kept, look, moved=bool(moves.any()), notes=notes)

    def _directions(self, look) -> dict[str, torch.Tensor]:
        """eps_hat, of unit norm over everything that moves together."""
        if self.update == "sequence":
            return {"sequence": look.direction}
        if self.update == "pooled":
            return {"pooled": unit(look.grad_pooled)}
        joint = unit(torch.cat([look.grad.flatten(1), look.grad_pooled], 1))
        sequence, pooled = joint.split(
            [joint.shape[1] - look.grad_pooled.shape[1], look.grad_pooled.shape[1]], 1
        )
        return {"sequence": sequence.reshape(look.grad.shape), "pooled": pooled}


def _unless(still: torch.Tensor, kept: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    return torch.where(still.view(-1, *[1] * (moved.ndim - 1)), kept, moved)
