"""What methods share that push the prediction: where they can, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import check_finite
from ..types import Prediction

if TYPE_CHECKING:
    from ..denoiser import Denoiser

PURE_NOISE = 1e-3  # the alpha / sigma below which xt says nothing of x0: nothing to guide


def says_something(denoiser: Denoiser) -> bool:
    """Whether xt is more than pure noise, so that there is something to guide."""
    alpha, sigma = denoiser.solver.level(denoiser.state.i)
    return alpha > PURE_NOISE * sigma


def push(denoiser: Denoiser, prediction: Prediction, *changes: Tensor) -> Prediction:
    """A prediction with these added to its eps; NonFiniteError where it is too large."""
    solver, i, eps = denoiser.solver, denoiser.state.i, prediction.eps
    for change in changes:
        eps = eps + change
    xt = denoiser.state.xt.to(eps.dtype)
    out = solver.out(eps, xt, i)
    x0bar = solver.x0bar(out, xt, i)
    out = out.to(prediction.out.dtype)
    # beyond that, the norms inside the network and the decoder overflow
    squares = x0bar.detach().to(denoiser.backbone.dtype).square()
    for values in (out, squares):
        check_finite(values, "the guided prediction is too large", denoiser.where)
    return prediction.replace(x0bar=x0bar, out=out, eps=eps)
