"""What an update of c does in the space of x: the guidance term of Theorem 2, in both readings, and
the exact change by any method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..methods import Composition, Method
from ..run import Run
from ..schedules import every
from ..tensors import add_along, per_sample
from ..types import Conditioning, RewardGradient
from .base import Result, StepResult, along, embedder, inner, lengths, level, reward_of, rho_of


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
        raise ValueError(
            f"step {run.state.i} starts from pure noise: its score is -xt / sigma^2 whatever the "
            "model says; look at a later step"
        )
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
        raise ValueError(
            f"kind='total' needs log p(xt | c), and {sampler.backbone.name!r} has none: a denoiser "
            "knows its gradient in x only. Use kind='sampler', or dk.load('gaussian')"
        )
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
class GuidanceCosine(Result):
    """The cosine of what two methods do to the score, step by step."""

    steps: tuple[int, ...]
    cosine: Tensor  # (T, B), NaN where one of them does nothing
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def rows(self) -> list[dict]:
        """One row a step and sample."""
        rows = []
        for i, row in zip(self.steps, self.cosine.tolist(), strict=True):
            for prompt, seed, cosine in zip(self.prompts, self.seeds, row, strict=True):
                rows.append({"step": i, "prompt": prompt, "seed": seed, "cosine": cosine})
        return rows


def guidance_cosine(
    run: Run, one: Method, other: Method, *, steps: Sequence[int] | None = None
) -> GuidanceCosine:
    """cos(change of the score by one method, change by another) at the same xt, (T, B).

    Each change is exact, see `score_change`: for DATE it is s(xt, c_hat) - s(xt, c), for Universal
    Guidance scale grad_xt h + (alpha / sigma^2) Delta. The schedules of the methods are not asked.
    steps: of the run's past, the paused one by default.
    """
    steps, cosines = [run.state.i] if steps is None else steps, []
    for i in steps:
        a, b = (score_change(run.fork(method, at=i)) for method in (one, other))
        both = lengths(a) * lengths(b)
        cosines.append(torch.where(both > 0, inner(a, b) / both, torch.nan).cpu())
    return GuidanceCosine(tuple(steps), torch.stack(cosines), run.prompts, run.seeds)


def base_of(run: Run) -> Conditioning:
    """The embedding that the method displaces: the running one for anchor "running", else c_org.

    The gradient is taken there too, except for anchor "reset": it takes the gradient at the running
    embedding and displaces c_org.
    """
    running = getattr(embedder(run.sampler.method), "anchor", None) == "running"
    return run.state.cond if running else run.state.cond_org


def score_change(run: Run) -> Tensor:
    """The score with which a run's method would step, minus the plain one, (B, C, H, W).

    The plain one is at the embedding from which the method starts. It is the change of an updating
    step, whatever the method's schedule says.
    """
    method, state = _always(run.sampler.method), run.state
    with torch.no_grad():
        plain = run.sampler.denoiser(state).predict(base_of(run))
        with run.sampler.replace(method=method).paused(state) as denoiser:
            changed = method.predict(denoiser, method.condition(denoiser, state).cond)
    return (plain.eps - changed.eps) / level(run)[1]


def _always(method: Method) -> Method:
    """The method with updates at every step."""
    if isinstance(method, Composition):
        return Composition(tuple(_always(part) for part in method.parts))
    return replace(method, when=every()) if hasattr(method, "when") else method
