"""The first order against what happens: one paused step at several radii."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..run import Run
from ..tensors import add_along
from ..types import RewardGradient
from .base import StepResult, lengths, level, reward_of, rounding
from .guidance import expansion

_ABOVE_ROUNDING = 1e3  # errors count in the fit where they are so many times what rounding can make


@dataclass(frozen=True, eq=False, repr=False)
class TaylorError(StepResult):
    """The errors of both expansions over a sweep of rho; float64, on the CPU."""

    kind: str  # the reading of the score's expansion
    rhos: Tensor  # (R,)
    reward_error: Tensor  # (R, B), what rho ||g|| leaves of the change of h_t
    score_error: Tensor  # (R, B), norms of the residual of Theorem 2
    reward_slope: Tensor  # (B,), the power of rho in the reward's error
    score_slope: Tensor  # (B,), the power of rho in the score's error; Theorem 2 says 2
    decades: Tensor  # (B,), how many decades of rho the fit of the score's error spans

    def rows(self) -> list[dict]:
        """One row a sample: both slopes, and the decades of rho in the fit of the score's."""
        columns = {
            "slope of the score's error": self.score_slope,
            "slope of the reward's error": self.reward_slope,
            "decades of rho": self.decades,
        }
        return self.rows_of(columns)


def taylor_error(
    run: Run,
    rhos: Sequence[float] | None = None,
    *,
    kind: str = "sampler",
    reward: Callable | None = None,
) -> TaylorError:
    """The errors of h_t(c + rho eps_hat) = h_t(c) + rho ||g|| + O(rho^2) and of Theorem 2.

    Both expansions stand where the method takes its gradient. rhos: above 0, by default as many
    decades of them as the network's precision has room for; kind: of `guidance_term`. This costs a
    gradient, and two forward passes and a decoding a radius.
    """
    reward = reward_of(run, reward)
    seen = run.peek(reward)
    rhos = _default_rhos(seen.c, run.sampler.backbone.dtype) if rhos is None else sorted(rhos)
    if not rhos or not 0 < rhos[0] <= rhos[-1] < float("inf"):
        raise ValueError(f"a sweep needs finite radii above 0, as it is fitted in log rho: {rhos}")
    slope, score_at, _ = expansion(run, seen, seen.c, kind, reward)
    here, reward_errors, score_errors = score_at(0.0), [], []
    for rho in rhos:
        _, h = _at_radius(run, seen, reward, rho)
        reward_errors.append((h - seen.h - rho * seen.grad_norm).abs())
        score_errors.append(lengths(score_at(rho) - here - rho * slope))
    rhos = torch.tensor(rhos, dtype=torch.float64)
    reward_error, score_error = torch.stack(reward_errors).cpu(), torch.stack(score_errors).cpu()
    eps, sigma = rounding(run, seen.c), level(run)[1]
    reward_slope, _ = fit(rhos, reward_error, eps * seen.h.abs().double().cpu())
    score_slope, decades = fit(rhos, score_error, eps * (lengths(run.state.xt) / sigma**2).cpu())
    slopes = {"reward_slope": reward_slope, "score_slope": score_slope, "decades": decades}
    errors = {"rhos": rhos, "reward_error": reward_error, "score_error": score_error}
    return TaylorError.of(seen, kind=kind, **errors, **slopes)


def fit(rhos: Tensor, errors: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares slopes of log errors (R, B) in log rho, and the decades of rho they span, (B,).

    Points count well above floor, (B,), which rounding alone can make. A slope is NaN where fewer
    than three points are.
    """
    slopes, decades = [], []
    for column, least in zip(errors.T, floor, strict=True):
        used = column > _ABOVE_ROUNDING * least
        x, y = rhos[used].log(), column[used].log()
        slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
        slopes.append(slope if used.sum() >= 3 else torch.tensor(torch.nan))
        decades.append((rhos[used].max() / rhos[used].min()).log10() if used.any() else x.sum())
    return torch.stack(slopes), torch.stack(decades)


def _default_rhos(c: Tensor, network: torch.dtype) -> list[float]:
    """Four decades below 1 % of ||c|| in float64, 1.5 below 10 % in float32, one below ||c||."""
    top, decades = {torch.float64: (1e-2, 4.0), torch.float32: (1e-1, 1.5)}.get(network, (1.0, 1.0))
    powers = torch.logspace(-decades, 0, 13, dtype=torch.float64)
    return (lengths(c).mean().item() * top * powers).tolist()


@dataclass(frozen=True, eq=False, repr=False)
class RhoSweep(StepResult):
    """x0bar(xt, c + rho eps_hat) at R radii; float64, on the CPU."""

    rhos: Tensor  # (R,)
    images: Tensor  # (R, B, 3, H, W), x0bar decoded
    h: Tensor  # (R, B), its reward
    predicted: Tensor  # (R, B), to first order, h + rho ||grad_c h||
    h0: Tensor  # (B,), without an update

    def rows(self) -> list[dict]:
        """One row a radius and sample."""
        rows = []
        for rho, h, first in zip(self.rhos.tolist(), self.h, self.predicted, strict=True):
            for row in self.rows_of({"h": h, "first order": first}):
                rows.append({"rho": rho} | row)
        return rows


def rho_sweep(
    run: Run, rhos: Sequence[float] | None = None, *, reward: Callable | None = None
) -> RhoSweep:
    """h and x0bar at c + rho eps_hat for each radius, with c where the method takes its gradient.

    rhos: from 0 up, by default three octaves to both sides of the method's own. This costs a
    gradient, and a forward pass and two decodings a radius.
    """
    reward = reward_of(run, reward)
    if rhos is None:
        rho = getattr(run.sampler.method, "rho", None)
        middle = rho if rho and not callable(rho) else 1.0
        rhos = [middle * 2.0**octave for octave in range(-3, 4)]
    rhos = sorted(rhos)
    if not rhos or not 0 <= rhos[0] <= rhos[-1] < float("inf"):
        raise ValueError(f"a sweep needs finite radii from 0 up, got {rhos}")
    seen, images, values = run.peek(reward), [], []
    for rho in rhos:
        x0bar, h = _at_radius(run, seen, reward, rho)
        images.append(run.sampler.decode(x0bar).float().cpu())
        values.append(h.cpu())
    radii, h0 = torch.tensor(rhos, dtype=torch.float64), seen.h.double().cpu()
    return RhoSweep.of(
        seen,
        rhos=radii,
        images=torch.stack(images),
        h=torch.stack(values),
        predicted=h0 + radii[:, None] * seen.grad_norm.double().cpu(),
        h0=h0,
    )


@torch.no_grad()
def _at_radius(
    run: Run, seen: RewardGradient, reward: Callable, rho: float
) -> tuple[Tensor, Tensor]:
    """x0bar at c + rho eps_hat, (B, C, H, W), and its reward, (B,)."""
    x0bar = run.sampler.predict(run.state, add_along(seen.c, rho, seen.direction)).x0bar
    h = run.sampler.denoiser(run.state).reward_of(reward, x0bar, f" at rho = {rho:g}")
    return x0bar, h.double()
