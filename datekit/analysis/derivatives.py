"""Derivatives along a direction, in forward mode or by differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..sampler import Sampler


def along(
    f: Callable[[Tensor], Tensor],
    at: Tensor,
    direction: Tensor,
    eps: float,
    derivative: str = "auto",
) -> tuple[Tensor, str]:
    """The derivative of f at a point along a direction, and words for how it was taken.

    derivative: "forward" for forward-mode automatic differentiation, "central" for central
    differences, "auto" for forward mode where the network supports it. eps: the relative rounding
    of f, see `rounding`, from which the step of central differences follows. That step is long in
    half precision (0.5 in float16, 1 in bfloat16), and differences are then good to about 5 % and
    20 %, where forward mode is good to 1 %. Raises ValueError for another word.
    """
    if derivative not in ("auto", "forward", "central"):
        raise ValueError(f"derivative must be 'auto', 'forward' or 'central', got {derivative!r}")
    if derivative != "central":
        try:
            return _forward(f, at, direction), "forward mode"
        except (NotImplementedError, RuntimeError) as error:
            if derivative == "forward" or isinstance(error, torch.OutOfMemoryError):
                raise
    # truncation and rounding balance where entries are near 1 and directions spread over hundreds
    step = 5 * eps ** (1 / 3)
    with torch.no_grad():
        slope = (f(at + step * direction) - f(at - step * direction)) / (2 * step)
    return slope, f"central differences, step {step:.1e}"


def _forward(f: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused kernels have no forward derivative
        return torch.func.jvp(f, (at,), (direction,))[1].detach()


def rounding(sampler: Sampler, x: Tensor) -> float:
    """The relative rounding of what the network says of x: the coarser of its precision and x's."""
    return max(torch.finfo(dtype).eps for dtype in (x.dtype, sampler.backbone.dtype))


def lengths(x: Tensor) -> Tensor:
    """Euclidean norm per sample in double precision, (B, ...) -> (B,); carries gradient."""
    return x.double().flatten(1).norm(dim=1)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample in double precision, (B, ...) twice -> (B,)."""
    return (a.double() * b.double()).flatten(1).sum(1)
