"""What the instruments share: where they look, the score, the derivative along a direction, how results show themselves."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..methods import Composition, Method
from ..methods.base import check_rho
from ..run import Run
from ..sampler import Sampler
from ..types import Conditioning, Record, State

if TYPE_CHECKING:
    from pandas import DataFrame


class Result(Record):
    """What an instrument found; subclasses are frozen dataclasses with a `title` and `to_frame()`."""

    @property
    def title(self) -> str:
        """One line that says what this is."""
        raise NotImplementedError

    def to_frame(self) -> DataFrame:
        """The numbers as a pandas table."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.title}>"

    def _repr_html_(self) -> str:
        table = self._table().to_html(index=False, border=0, float_format=readable)
        return f"<div><b>{html.escape(type(self).__name__)}</b>: {html.escape(self.title)}{self._pictures()}{table}</div>"

    def _table(self) -> DataFrame:
        return self.to_frame()

    def _pictures(self) -> str:
        return ""


def readable(value: float) -> str:
    """A number in four digits or so, always with a decimal point."""
    return f"{value:.4f}" if value == 0 or 1e-2 <= abs(value) < 1e4 else f"{value:.2e}"


def paused(run: Run | State, sampler: Sampler | None = None) -> tuple[State, Sampler]:
    """The state and sampler of a run, or of a state that comes with its sampler.

    Raises TypeError for anything else, RuntimeError where no step is left to look at.
    """
    if isinstance(run, Run):
        state, sampler = run.state, sampler or run.sampler
    elif isinstance(run, State) and sampler is not None:
        state = run
    else:
        raise TypeError(
            f"give a Run, or a State with its sampler: f(state, sampler=...); got {type(run).__name__}"
        )
    sampler.denoiser(state)
    sequence_only(sampler.method)
    return state, sampler


def sequence_only(method: Method) -> None:
    """Raise ValueError for a method that moves the pooled text vector."""
    for part in _parts(method):
        if getattr(part, "update", None) in ("pooled", "both"):
            raise ValueError(
                f"{part!r} moves the pooled text vector; the instruments follow the sequence only: use update='sequence'"
            )


def reward_of(sampler: Sampler, reward: Callable | None) -> Callable:
    """The reward asked for, the method's own by default; ValueError where there is none."""
    reward = sampler.method.reward if reward is None else reward
    if reward is None:
        raise ValueError(f"{sampler.method!r} has no reward of its own; say which: reward=...")
    return reward


def rho_of(sampler: Sampler, rho: float | None) -> float:
    """The radius asked for, the method's own by default. Raises ValueError below 0, or where there is none."""
    rho = getattr(sampler.method, "rho", None) if rho is None else rho
    if rho is None:
        raise ValueError(f"{sampler.method!r} has no radius of its own; say which: rho=...")
    if callable(rho):
        raise ValueError(
            f"{rho!r} chooses a radius at each update; say which one to look at: rho=..."
        )
    return float(check_rho(rho))


def score(
    sampler: Sampler, state: State, c: Tensor | Conditioning | None = None, xt: Tensor | None = None
) -> Tensor:
    """s(xt, c) = -eps / sigma, guided as the sampler guides, (B, C, H, W); carries gradient to both."""
    return -sampler.predict(state, c, xt).eps / sampler.solver_for(state.xt.shape).level(state.i)[1]


def base_of(method: Method, state: State) -> Conditioning:
    """The embedding from which a method displaces: the running one for DATE's anchor "running", else c_org.

    It is where the method looks, too, but for anchor "reset", which looks at the running embedding and moves c_org.
    """
    return (
        state.cond
        if any(getattr(part, "anchor", None) == "running" for part in _parts(method))
        else state.cond_org
    )


def _parts(method: Method) -> tuple[Method, ...]:
    return method.parts if isinstance(method, Composition) else (method,)


def precision(sampler: Sampler) -> torch.dtype:
    """The coarsest precision that an answer of the network has been through: its own, whatever c is kept in."""
    return sampler.backbone.dtype


def along(
    f: Callable[[Tensor], Tensor],
    at: Tensor,
    direction: Tensor,
    derivative: str = "auto",
    rounded_to: torch.dtype | None = None,
) -> tuple[Tensor, str]:
    """The derivative of f at a point along a direction, and how it was taken.

    derivative: "forward" (forward-mode automatic differentiation), "central" (central differences), or "auto":
    forward where the network supports it; rounded_to: the precision in which f computes, that of `at` by default, from which the step
    of central differences follows: in half precision it is long (0.5 in float16, 1 in bfloat16), and differences are then good to
    about 5 % and 20 %, where forward mode is good to 1 %. Raises ValueError for another word.
    """
    if derivative not in ("auto", "forward", "central"):
        raise ValueError(f"derivative must be 'auto', 'forward' or 'central', got {derivative!r}")
    if derivative != "central":
        from torch.nn.attention import SDPBackend, sdpa_kernel

        try:
            with (
                torch.no_grad(),
                sdpa_kernel(SDPBackend.MATH),
            ):  # the fused kernels have no forward-mode derivative
                return torch.func.jvp(f, (at,), (direction,))[1].detach(), "forward mode"
        except (NotImplementedError, RuntimeError) as error:
            if derivative == "forward" or isinstance(error, torch.OutOfMemoryError):
                raise
    # truncation and rounding in balance where entries of c are near 1 and the direction is spread over hundreds of them
    step = 5 * max(torch.finfo(dtype).eps for dtype in (at.dtype, rounded_to or at.dtype)) ** (
        1 / 3
    )
    with torch.no_grad():
        return (f(at + step * direction) - f(at - step * direction)) / (
            2 * step
        ), f"central differences, step {step:.1e}"


def lengths(x: Tensor) -> Tensor:
    """Euclidean norm per sample in double precision, (B, ...) -> (B,); carries gradient."""
    return x.double().flatten(1).norm(dim=1)
