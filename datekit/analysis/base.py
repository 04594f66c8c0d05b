"""What the instruments share: the step they look at, derivatives there, and how results show."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ..errors import finite
from ..lazy import needs
from ..methods import Composition, Method
from ..run import Run
from ..statistics import Interval, bootstrap
from ..types import Record, RewardGradient

if TYPE_CHECKING:
    import pandas as pd


class Result(Record):
    """What an instrument measured: a frozen dataclass with `rows()`, dicts by name of column."""

    def to_frame(self) -> pd.DataFrame:
        """The rows as a pandas table."""
        return needs("pandas", "tables", "a table").DataFrame(self.rows())

    def __repr__(self) -> str:
        facts = []
        for name, value in vars(self).items():
            if isinstance(value, float):
                value = f"{value:.4g}"
            if isinstance(value, (int, str)):
                facts.append(f"{name} = {value}")
        return f"<{type(self).__name__}: {', '.join(facts)}>"

    def _repr_html_(self) -> str:
        try:
            table = self.to_frame().to_html(index=False, border=0, float_format="{:.4g}".format)
        except ImportError as error:
            table = html.escape(f" {error}")
        return f"<div>{html.escape(repr(self))}{table}</div>"


@dataclass(frozen=True, eq=False, repr=False)
class StepResult(Result):
    """A result of one paused step i at timestep t, with one prompt and one seed a sample."""

    i: int
    t: float
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, seen: RewardGradient, **measured: Any) -> Self:
        """A result of the step of a gradient."""
        return cls(seen.i, seen.t, seen.prompts, seen.seeds, **measured)

    def rows_of(self, columns: dict[str, Tensor]) -> list[dict]:
        """One row a sample: its prompt, its seed, and these columns, (B,) each."""
        rows = []
        for b, (prompt, seed) in enumerate(zip(self.prompts, self.seeds, strict=True)):
            numbers = {name: values[b].item() for name, values in columns.items()}
            rows.append({"prompt": prompt, "seed": seed} | numbers)
        return rows


@dataclass(frozen=True, eq=False, repr=False)
class ByStep(Result):
    """One number a step and sample; float64, on the CPU."""

    what: str  # was measured
    steps: tuple[int, ...]  # T steps
    values: Tensor  # (T, B), NaN where there is no such number

    @classmethod
    def of(
        cls, run: Run, steps: Sequence[int] | None, what: str, measure: Callable[[Run], Tensor]
    ) -> ByStep:
        """What `measure` says, (B,), of a run that is paused at each of these steps of its past.

        For None it is asked once, where the run is paused.
        """
        steps = (run.state.i,) if steps is None else tuple(steps)
        values = [measure(run.fork(at=i)).cpu().double() for i in steps]
        return cls(what, steps, torch.stack(values))

    def interval(self, row: int = 0) -> Interval:
        """The mean at `steps[row]` and its 95 % interval over the samples that have a number.

        The ends are NaN for fewer than two.
        """
        values = self.values[row]
        known = values[values.isfinite()]
        if len(known) < 2:
            return Interval(known.mean().item(), float("nan"), float("nan"))
        return bootstrap(known.tolist())

    def rows(self) -> list[dict]:
        """One row a step: the mean over samples and its interval."""
        rows = []
        for row, i in enumerate(self.steps):
            mean, low, high = self.interval(row)
            rows.append({"step": i, self.what: mean, "low": low, "high": high})
        return rows


def embedder(method: Method) -> Method:
    """The part of a method that chooses the embedding."""
    return method.part("condition") if isinstance(method, Composition) else method


def check_sequence(run: Run) -> None:
    """Raise ValueError for a method that moves the pooled text vector, which is not followed."""
    if getattr(embedder(run.sampler.method), "update", None) in ("pooled", "both"):
        rule = "the instruments follow the sequence only: use update='sequence'"
        raise ValueError(f"{run.sampler.method!r} moves the pooled text vector; {rule}")


def reward_of(run: Run, reward: Callable | None) -> Callable:
    """The reward asked for, by default the method's own. Raises ValueError where there is none."""
    check_sequence(run)
    reward = run.sampler.method.reward if reward is None else reward
    if reward is None:
        raise ValueError(f"{run.sampler.method!r} has no reward of its own; say which: reward=...")
    return reward


def rho_of(run: Run, rho: float | None) -> float:
    """The radius asked for, by default the method's own. ValueError where it has no single one."""
    return finite("rho", getattr(run.sampler.method, "rho", None) if rho is None else rho)


def level(run: Run) -> tuple[float, float]:
    """alpha and sigma of the step at which a run is paused."""
    return run.sampler.solver_for(run.state.xt.shape).level(run.state.i)


def along(run: Run, f: Callable, at: Tensor, direction: Tensor) -> tuple[Tensor, str]:
    """The derivative of f at a point along a direction, and words for how it was taken.

    It is taken in forward mode, or by central differences where the network of the run has none.
    Differences in half precision are good to 5 % (float16) or 20 %.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.no_grad():
        try:
            with sdpa_kernel(SDPBackend.MATH):  # fused kernels have no forward derivative
                return torch.func.jvp(f, (at,), (direction,))[1].detach(), "forward mode"
        except RuntimeError:
            # truncation and rounding balance where entries are near 1 and directions spread wide
            step = 5 * rounding(run, at) ** (1 / 3)
            slope = (f(at + step * direction) - f(at - step * direction)) / (2 * step)
            return slope, f"central differences, step {step:.1e}"


def rounding(run: Run, x: Tensor) -> float:
    """The relative rounding of what the network says of x: the coarser of its precision and x's."""
    return max(torch.finfo(dtype).eps for dtype in (x.dtype, run.sampler.backbone.dtype))


def lengths(x: Tensor) -> Tensor:
    """Euclidean norm per sample in double precision, (B, ...) -> (B,); carries gradient."""
    return x.cpu().double().flatten(1).norm(dim=1)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample in double precision, (B, ...) twice -> (B,)."""
    return (a.cpu().double() * b.cpu().double()).flatten(1).sum(1)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine per sample in double precision, (B, ...) twice -> (B,); NaN where one is zero."""
    both = lengths(a) * lengths(b)
    return torch.where(both > 0, inner(a, b) / both, torch.nan)
