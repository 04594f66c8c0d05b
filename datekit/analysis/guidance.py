"""What an update of c does in the space of x: the guidance term of Theorem 2, in both readings, its
error, and the exact change by any method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods import Method
from ..run import Run
from ..tensors import add_along, per_sample
from ..types import Conditioning, RewardGradient
from .base import (
    ByStep,
    StepResult,
    along,
    cosines,
    embedder,
    inner,
    lengths,
    level,
    reward_of,
    rho_of,
    rounding,
)

_ABOVE_ROUNDING = 1e3  # errors count in the fit where they are so many times what rounding can make


@dataclass(frozen=True, eq=False, repr=False)
class GuidanceTerm(StepResult):
    """The change of the score by an update of c, to first order and exactly."""

    kind: str  # "sampler" or "total"
    how: str  # how the derivative was taken
    rho: float
    term: Tensor  # (B, C, H, W), the first order, in units of the score
    exact: Tensor  # (B, C, H, W), the change itself
    x0bar: Tensor  # (B, C, H, W), before the update
    shift: Tensor  # (B, C, H, W), the first-order change of x0bar, sigma^2 / alpha times term
    decode: Callable[[Tensor], Tensor]  # the backbone's, for pictures

    def rows(self) -> list[dict]:
        """One row a sample: norms of term, exact change and residual, and how near they are."""
        term, exact, rest = (lengths(x) for x in (self.term, self.exact, self.exact - self.term))
        tiny = torch.finfo(torch.float64).tiny
        columns = {
            "||term||": term,
            "||exact||": exact,
            "||residual||": rest,
            "residual / exact": rest / exact,
            "cosine": inner(self.term, self.exact) / (term * exact).clamp_min(tiny),
        }
        return self.rows_of(columns)


def guidance_term(
    run: Run, *, kind: str = "sampler", rho: float | None = None, reward: Callable | None = None
) -> GuidanceTerm:
    """The change of the score by one DATE update, Theorem 2: s(xt, c_hat) - s(xt, c_org).

    kind "sampler" is what the sampler does, with c_hat fed to the network as a constant: rho
    (ds/dc) eps_hat. kind "total" is the theorem's braces, rho grad_x {eps_hat(xt)^T grad_c log p(xt
    | c_org)}, with eps_hat differentiated too; it needs a backbone with `log_prob`. The gradient is
    taken where the method takes it, and the expansion stands at the embedding that it displaces.
    """
    reward, rho = reward_of(run, reward), rho_of(run, rho)
    seen, base = run.peek(reward), base_of(run)
    slope, score_at, how = expansion(run, seen, base.sequence, kind, reward)
    term, (alpha, sigma) = rho * slope, level(run)
    with torch.no_grad():
        x0bar = run.sampler.predict(run.state, base).x0bar
    return GuidanceTerm.of(
        seen,
        kind=kind,
        how=how,
        rho=rho,
        term=term,
        exact=score_at(rho) - score_at(0.0),
        x0bar=x0bar,
        shift=sigma**2 / alpha * term,
        decode=run.sampler.backbone.decode,
    )


def expansion(
    run: Run, seen: RewardGradient, start: Tensor, kind: str, reward: Callable
) -> tuple[Tensor, Callable[[float], Tensor], str]:
    """The score as a function of rho, with its derivative at rho = 0 before it, and words for how
    that was taken after it.

    seen: the gradient, along whose direction the embedding moves from start, (B, L, D).
    """
    alpha, sigma = level(run)
    if alpha == 0:
        where = f"step {run.state.i} starts from pure noise"
        raise ValueError(f"{where}, whose score no model changes; look at a later step")
    if kind == "total":
        return _total_reading(run, seen, start, reward)
    if kind != "sampler":
        raise ValueError(f"kind must be 'sampler' or 'total', got {kind!r}")

    def score(c: Tensor) -> Tensor:
        return -run.sampler.predict(run.state, c).eps / sigma

    @torch.no_grad()
    def score_at(rho: float) -> Tensor:
        return score(add_along(start, rho, seen.direction))

    slope, how = along(run, score, start, seen.direction)
    return slope, score_at, how


def _total_reading(
    run: Run, seen: RewardGradient, start: Tensor, reward: Callable
) -> tuple[Tensor, Callable[[float], Tensor], str]:
    sampler, state = run.sampler, run.state
    if not hasattr(sampler.backbone, "log_prob"):
        name = sampler.backbone.name
        raise ValueError(f"kind='total' needs log p(xt | c), and {name!r} has none: use 'sampler'")
    # the guided density is p_u^(1 - w) p_c^w
    w = sampler.guidance_scale if sampler.denoiser(state).guided else 1.0

    def log_p(x: Tensor, c: Tensor) -> Tensor:
        return sampler.backbone.log_prob(x, state.t, state.cond.replace(sequence=c)).sum()

    @torch.enable_grad()
    def score_at(rho: float | None) -> Tensor:
        """grad_x log p(x | start + rho eps_hat(x)); for None its derivative in rho at 0."""
        x, at, c = (v.detach().clone().requires_grad_() for v in (state.xt, seen.c, start))
        h = reward(sampler.backbone.decode(sampler.predict(state, at, x).x0bar), state.prompts)
        (g,) = torch.autograd.grad(h.sum(), at, create_graph=True)
        length = g.flatten(1).norm(dim=1)
        direction = g / per_sample(length + (length == 0), g)
        if rho is None:
            grad_c = torch.autograd.grad(log_p(x, c), c, create_graph=True)[0]
            value = (direction * grad_c).sum()
        else:
            value = log_p(x, add_along(c, rho, direction))
        return w * torch.autograd.grad(value, x)[0]

    return score_at(None), score_at, "automatic differentiation, twice"


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
    seen, denoiser = run.peek(reward), run.sampler.denoiser(run.state)
    rhos = _default_rhos(seen.c, run.sampler.backbone.dtype) if rhos is None else sorted(rhos)
    if not rhos or not 0 < rhos[0] <= rhos[-1] < float("inf"):
        raise ValueError(f"a sweep needs finite radii above 0, as it is fitted in log rho: {rhos}")
    slope, score_at, _ = expansion(run, seen, seen.c, kind, reward)
    here, reward_errors, score_errors = score_at(0.0), [], []
    for rho in rhos:
        with torch.no_grad():
            moved = run.sampler.predict(run.state, add_along(seen.c, rho, seen.direction)).x0bar
        h = denoiser.reward_of(reward, moved, f" at rho = {rho:g}").cpu().double()
        reward_errors.append((h - seen.h.cpu() - rho * seen.grad_norm.cpu()).abs())
        score_errors.append(lengths(score_at(rho) - here - rho * slope))
    rhos = torch.tensor(rhos, dtype=torch.float64)
    reward_error, score_error = torch.stack(reward_errors).cpu(), torch.stack(score_errors).cpu()
    eps, sigma = rounding(run, seen.c), level(run)[1]
    reward_slope, _ = fit(rhos, reward_error, eps * seen.h.abs().cpu().double())
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


def guidance_cosine(
    run: Run, one: Method, other: Method, *, steps: Sequence[int] | None = None
) -> ByStep:
    """cos(change of the score by one method, change by another) at the same xt.

    Each change is exact, see `score_change`: for DATE it is s(xt, c_hat) - s(xt, c), for Universal
    Guidance scale grad_xt h + (alpha / sigma^2) Delta. It is NaN where one of them changes nothing.
    steps: of the run's past, the paused one by default.
    """

    def cosine(paused: Run) -> Tensor:
        return cosines(*(score_change(paused.fork(method)) for method in (one, other)))

    return ByStep.of(run, steps, "cosine", cosine)


def base_of(run: Run) -> Conditioning:
    """The embedding that the method displaces: the running one for anchor "running", else c_org.

    The gradient is taken there too, except for anchor "reset": it takes the gradient at the running
    embedding and displaces c_org.
    """
    running = getattr(embedder(run.sampler.method), "anchor", None) == "running"
    return run.state.cond if running else run.state.cond_org


def score_change(run: Run) -> Tensor:
    """The score with which a run's method steps now, minus the plain one, (B, C, H, W).

    The plain one is at the embedding from which the method starts.
    """
    method, state = run.sampler.method, run.state
    with torch.no_grad():
        plain = run.sampler.denoiser(state).predict(base_of(run))
        with run.sampler.pause(state) as denoiser:
            changed = method.predict(denoiser, method.condition(denoiser, state).cond)
    return (plain.eps - changed.eps) / level(run)[1]
