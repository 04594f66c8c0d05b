"""What goes into a step and what comes out of it, as frozen dataclasses.

Shapes: B samples, L text positions, D embedding width, C x H x W latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .display import gradient_html, state_html, summary
from .tensors import norm, to_pil, unit


class Record:
    """A frozen dataclass with `replace`, compared by identity, as tensors have no truth value."""

    def replace(self, **changes):
        """A copy with some fields changed."""
        return replace(self, **changes)

    def __repr__(self) -> str:
        return summary(self)


@dataclass(frozen=True, eq=False, repr=False)
class Conditioning(Record):
    """What a text encoder says of B prompts.

    sequence: (B, L, D), the paper's c;
    pooled: (B, P), for the families that have one;
    mask: (B, L) bool, True where a position may move, None for everywhere;
    tokens: B tuples of L words, as the encoder saw them;
    extras: tensors (B, ...) that a family needs beside them.
    """

    sequence: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    tokens: tuple[tuple[str, ...], ...] = ()
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.sequence.shape[0]

    def same(self, other: Conditioning) -> bool:
        """Whether both have equal numbers in all that a method moves."""
        if not torch.equal(self.sequence, other.sequence):
            return False
        return self.pooled is None or torch.equal(self.pooled, other.pooled)

    def __getitem__(self, rows: slice) -> Conditioning:
        """Some of the samples."""
        return Conditioning(
            sequence=self.sequence[rows],
            pooled=None if self.pooled is None else self.pooled[rows],
            mask=None if self.mask is None else self.mask[rows],
            tokens=self.tokens[rows],
            extras={name: value[rows] for name, value in self.extras.items()},
        )

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """Several as one batch."""
        first = parts[0]
        return Conditioning(
            sequence=torch.cat([part.sequence for part in parts]),
            pooled=None if first.pooled is None else torch.cat([part.pooled for part in parts]),
            mask=None if first.mask is None else torch.cat([part.mask for part in parts]),
            tokens=sum((part.tokens for part in parts), ()),
            extras={name: torch.cat([p.extras[name] for p in parts]) for name in first.extras},
        )


@dataclass(frozen=True, eq=False, repr=False)
class State(Record):
    """Sampling paused before step i: all that the rest of the run depends on, and nothing else.

    xt: (B, C, H, W), the noisy latent;
    i: the step to come;
    t: its timestep, 0 once finished;
    cond: the running embedding;
    cond_org: the text encoder's output;
    uncond: the negative branch, if any;
    prompts, seeds: one a sample;
    solver_state: what a multistep solver keeps of its past;
    noise: (T, B, C, H, W), step noise instead of the seeds' own;
    extras: what a method carries along, tensors (B, ...) or a `Conditioning`.
    """

    xt: Tensor
    i: int
    t: float
    cond: Conditioning
    cond_org: Conditioning
    uncond: Conditioning | None
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    solver_state: dict[str, Any] = field(default_factory=dict)
    noise: Tensor | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def c(self) -> Tensor:
        """The running text embedding, (B, L, D)."""
        return self.cond.sequence

    @property
    def c_org(self) -> Tensor:
        """The text encoder's output, (B, L, D)."""
        return self.cond_org.sequence

    def __len__(self) -> int:
        return self.xt.shape[0]

    def __getitem__(self, rows: slice) -> State:
        """Some of the samples, to look at and not to step: the solver's state is of all."""
        return self.replace(
            xt=self.xt[rows],
            cond=self.cond[rows],
            cond_org=self.cond_org[rows],
            uncond=None if self.uncond is None else self.uncond[rows],
            prompts=self.prompts[rows],
            seeds=self.seeds[rows],
            noise=None if self.noise is None else self.noise[:, rows],
            extras={name: value[rows] for name, value in self.extras.items()},
        )

    def _repr_html_(self) -> str:
        return state_html(self)


@dataclass(frozen=True, eq=False, repr=False)
class RewardGradient(Record):
    """x0bar at (xt, c), its reward h, and how h depends on c. Everything is detached.

    i, t: the step and its timestep;
    prompts, seeds: one a sample;
    c: (B, L, D), where it was taken;
    x0bar: (B, C, H, W), the mean prediction, Eq. 11;
    h: (B,), the reward; without a reward it and all gradients are None;
    grad_x0bar: (B, C, H, W), the first half of the chain rule;
    grad: (B, L, D), grad_c h;
    grad_pooled: (B, P), the same of the pooled vector;
    decode: the backbone's, for pictures.
    """

    i: int
    t: float
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    c: Tensor
    x0bar: Tensor
    h: Tensor | None = None
    grad_x0bar: Tensor | None = None
    grad: Tensor | None = None
    grad_pooled: Tensor | None = None
    decode: Callable[[Tensor], Tensor] | None = None

    @property
    def grad_norm(self) -> Tensor | None:
        """||grad_c h|| per sample, (B,)."""
        return None if self.grad is None else norm(self.grad)

    @property
    def direction(self) -> Tensor | None:
        """eps_hat = grad / ||grad|| per sample, (B, L, D); zero where the gradient is zero."""
        return None if self.grad is None else unit(self.grad)

    @property
    def images(self) -> list:
        """x0bar as PIL images."""
        return to_pil(self.decode(self.x0bar))

    def __repr__(self) -> str:
        values = None if self.h is None else [float(f"{value:.4g}") for value in self.h.tolist()]
        updated = f", updated={self.updated}" if isinstance(self, StepInfo) else ""
        where = f"i={self.i}, t={self.t:g}, samples={len(self.prompts)}"
        return f"{type(self).__name__}({where}, h={values}{updated})"

    def _repr_html_(self) -> str:
        return gradient_html(self)


@dataclass(frozen=True, eq=False, repr=False)
class StepInfo(RewardGradient):
    """What happened in one step.

    `x0bar, h, grad_x0bar, grad, direction` belong together: they were taken at the embedding `at`,
    before the update (c_org for anchor="original").

    at: (B, L, D);
    c: (B, L, D), what the network was then fed;
    xt: (B, C, H, W), before the step, or before its last repetition where a method repeats steps;
    x0bar_hat: (B, C, H, W), x0bar(xt, c) as the solver used it, equal to x0bar where nothing moved;
    updated: whether the embedding of any sample moved in this step;
    distance: (B,), ||c - c_org||;
    eps_u, eps_c: (B, C, H, W), the two branches as noise;
    extras: what the method recorded of the step, tensors (B, ...).
    """

    at: Tensor | None = None
    xt: Tensor | None = None
    x0bar_hat: Tensor | None = None
    updated: bool = False
    distance: Tensor | None = None
    eps_u: Tensor | None = None
    eps_c: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Prediction(Record):
    """The network's answer at (xt, c); all tensors are (B, C, H, W).

    x0bar: the guided mean prediction, Eq. 11;
    out: the guided output in the model's own parametrisation, which the solver takes;
    eps: the same as noise;
    eps_c, eps_u: its two branches as noise, eps_u None without guidance;
    gradient: what a method looked at to change them.
    """

    x0bar: Tensor
    out: Tensor
    eps: Tensor
    eps_c: Tensor
    eps_u: Tensor | None = None
    gradient: RewardGradient | None = None
