"""The first order against what happens: one paused step at several radii."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rewards.base import score
from ..run import Run
from ..sampler import Sampler
from ..tensors import add_along
from ..types import RewardGradient, State
from .base import StepResult, lengths, level, reward_of, rounding, step_fields
from .guidance import expansion

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
        used = self.score_error > _ABOVE_ROUNDING * self.score_floor
        spans = [self.rhos[column].log10() for column in used.T]
        return torch.stack([x.max() - x.min() if len(x) else x.sum() for x in spans])

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
    reward, state = reward_of(run, reward), run.state
    seen = run.peek(reward)
    rhos = _default_rhos(seen.c, run.sampler.backbone.dtype) if rhos is None else sorted(rhos)
    if not rhos or not 0 < rhos[0] <= rhos[-1] < float("inf"):
        raise ValueError(f"a sweep needs finite radii above 0, as it is fitted in log rho: {rhos}")
    slope, score_at, _ = expansion(run, seen, seen.c, kind, reward)
    here, reward_errors, score_errors = score_at(0.0), [], []
    for rho in rhos:
        with torch.no_grad():
            x0bar = run.sampler.predict(state, add_along(seen.c, rho, seen.direction)).x0bar
            h = run.sampler.denoiser(state).reward_of(reward, x0bar, f" at rho = {rho:g}")
        reward_errors.append((h.double() - seen.h - rho * seen.grad_norm).abs())
        score_errors.append(lengths(score_at(rho) - here - rho * slope))
    eps = rounding(run, seen.c)
    return TaylorError(
        **step_fields(seen),
        kind=kind,
        rhos=torch.tensor(rhos, dtype=torch.float64),
        reward_error=torch.stack(reward_errors).double().cpu(),
        score_error=torch.stack(score_errors).cpu(),
        reward_floor=eps * seen.h.abs().double().cpu(),
        score_floor=eps * (lengths(state.xt) / level(run)[1] ** 2).cpu(),
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

    rhos: from 0 up, by default those of `octaves` around the method's own. This costs a gradient,
    and a forward pass and a decoding a radius.
    """
    reward = reward_of(run, reward)
    rhos = octaves(getattr(run.sampler.method, "rho", None)) if rhos is None else sorted(rhos)
    if not rhos or not 0 <= rhos[0] <= rhos[-1] < float("inf"):
        raise ValueError(f"a sweep needs finite radii from 0 up, got {rhos}")
    seen = run.peek(reward)
    return gather(seen, rhos, [at_radius(run.sampler, run.state, seen, reward, r) for r in rhos])


def octaves(rho: float | None) -> list[float]:
    """Seven radii around rho, or around 1 where there is none, each twice the one before."""
    middle = rho if rho and not callable(rho) else 1.0
    return [middle * 2.0**octave for octave in range(-3, 4)]


@torch.no_grad()
def at_radius(
    sampler: Sampler, state: State, seen: RewardGradient, reward: Callable, rho: float
) -> tuple[Tensor, Tensor]:
    """x0bar(xt, c + rho eps_hat) decoded, (B, 3, H, W), and its reward, (B,)."""
    x0bar = sampler.predict(state, add_along(seen.c, rho, seen.direction)).x0bar
    images = sampler.decode(x0bar)
    return images, score(reward, images, state.prompts, f" at rho = {rho:g}")


def gather(
    seen: RewardGradient, rhos: Sequence[float], answers: Sequence[tuple[Tensor, Tensor]]
) -> RhoSweep:
    """The answers of `at_radius` for each radius, beside the first order."""
    radii, h0 = torch.tensor(rhos, dtype=torch.float64), seen.h.double().cpu()
    return RhoSweep(
        **step_fields(seen),
        rhos=radii,
        images=torch.stack([images.float().cpu() for images, _ in answers]),
        h=torch.stack([h.double().cpu() for _, h in answers]),
        predicted=h0 + radii[:, None] * seen.grad_norm.double().cpu(),
        h0=h0,
    )
