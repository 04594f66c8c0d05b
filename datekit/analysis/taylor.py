"""How good the first-order expansions are: their error against rho, and the power of its fall."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..run import Run
from ..sampler import Sampler
from ..types import State
from .base import StepResult, level, look, paused, reward_of, step_fields
from .derivatives import lengths, rounding
from .guidance import check_text_counts, expansion

_ABOVE_ROUNDING = 1e3  # errors count in the fit where they are so many times what rounding can make


@dataclass(frozen=True, eq=False, repr=False)
class TaylorError(StepResult):
    """The errors of both expansions over a sweep of rho; float64, on the CPU."""

    kind: str  # the reading of the score's expansion
    rhos: Tensor  # (R,)
    reward_error: Tensor  # (R, B), what rho ||g|| leaves of the change of h_t
    score_error: Tensor  # (R, B), norms of the residual of Theorem 2
    reward_floor: Tensor  # (B,), what rounding alone can make
    score_floor: Tensor  # (B,)

    @property
    def reward_slope(self) -> Tensor:
        """The power of rho in the reward's error, (B,); NaN of under 3 points above rounding."""
        return slopes(self.rhos, self.reward_error, self.reward_floor)

    @property
    def score_slope(self) -> Tensor:
        """The power of rho in the score's error, (B,); Theorem 2 says 2."""
        return slopes(self.rhos, self.score_error, self.score_floor)

    @property
    def decades(self) -> Tensor:
        """How many decades of rho the fit of the score's error spans, (B,)."""
        spans = []
        for error, floor in zip(self.score_error.T, self.score_floor, strict=True):
            rhos = self.rhos[error > _ABOVE_ROUNDING * floor]
            spans.append((rhos.max() / rhos.min()).log10() if len(rhos) else torch.zeros(()))
        return torch.stack(spans)

    def to_frame(self):
        """One row a sample: both slopes, and the decades of rho in the fit of the score's."""
        columns = {
            "slope of the score's error": self.score_slope,
            "slope of the reward's error": self.reward_slope,
            "decades of rho": self.decades,
        }
        return self.frame_of(columns)


def taylor_error(
    run: Run | State,
    rhos: Sequence[float] | None = None,
    *,
    kind: str = "sampler",
    reward: Callable | None = None,
    sampler: Sampler | None = None,
) -> TaylorError:
    """The errors of h_t(c + rho eps_hat) = h_t(c) + rho ||g|| + O(rho^2) and of Theorem 2.

    Both expansions stand where the method takes its gradient. rhos: radii above 0, by default four
    decades below 1 % of ||c|| in float64, one and a half below 10 % in float32, and one below ||c||
    where the network is in half precision, whose rounding may leave nothing to fit. kind: reading
    of the score's expansion, see `guidance_term`. This costs a gradient, and two forward passes and
    a decoding a radius. Raises ValueError for a radius that is not above 0, and as `guidance_term`
    does.
    """
    state, sampler = paused(run, sampler)
    reward = reward_of(sampler, reward)
    alpha, sigma = level(sampler, state)
    check_text_counts(state, alpha)
    seen = look(sampler, state, reward)
    rhos = _default_rhos(seen.c, sampler.backbone.dtype) if rhos is None else _checked_rhos(rhos)
    slope, exact, _ = expansion(sampler, state, seen, seen.c, kind, reward)
    reward_errors, score_errors = [], []
    for rho in rhos:
        with torch.no_grad():
            x0bar = sampler.predict(state, seen.c + rho * seen.direction).x0bar
            h = sampler.denoiser(state).reward_of(reward, x0bar, f" at rho = {rho:g}")
        reward_errors.append((h.double() - seen.h - rho * seen.grad_norm).abs())
        score_errors.append(lengths(exact(rho) - rho * slope))
    eps = rounding(sampler, seen.c)
    return TaylorError(
        **step_fields(state),
        kind=kind,
        rhos=torch.tensor(rhos, dtype=torch.float64),
        reward_error=torch.stack(reward_errors).double().cpu(),
        score_error=torch.stack(score_errors).cpu(),
        reward_floor=eps * seen.h.abs().double().cpu(),
        score_floor=eps * (lengths(state.xt) / sigma**2).cpu(),
    )


def slopes(rhos: Tensor, errors: Tensor, floor: Tensor) -> Tensor:
    """Least-squares slopes of log errors (R, B) in log rho, over the points well above floor (B,).

    A slope is NaN where fewer than three points are.
    """
    fits = []
    for column, least in zip(errors.T, floor, strict=True):
        used = column > _ABOVE_ROUNDING * least
        x, y = rhos[used].log(), column[used].log()
        fit = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
        fits.append(fit if used.sum() >= 3 else torch.tensor(torch.nan))
    return torch.stack(fits)


def _default_rhos(c: Tensor, network: torch.dtype) -> list[float]:
    spans = {torch.float64: (1e-2, 4.0), torch.float32: (1e-1, 1.5)}
    top, decades = spans.get(network, (1.0, 1.0))
    powers = torch.logspace(-decades, 0, 13, dtype=torch.float64)
    return (lengths(c).mean().item() * top * powers).tolist()


def _checked_rhos(rhos: Sequence[float]) -> list[float]:
    rhos = sorted(float(rho) for rho in rhos)
    if not rhos or not 0 < rhos[0] <= rhos[-1] < float("inf"):
        raise ValueError(
            "a sweep needs finite radii above 0, as the error is fitted against log rho; "
            f"got {rhos}"
        )
    return rhos
