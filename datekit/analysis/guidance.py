"""What an update of c does in the space of x: the guidance term of Theorem 2, in both readings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..methods import Composition, Method
from ..run import Run
from ..sampler import Sampler
from ..schedules import every
from ..tensors import unit
from ..types import RewardGradient, State
from .base import StepResult, base_of, level, look, paused, reward_of, rho_of, score, step_fields
from .derivatives import along, inner, lengths, rounding

KINDS = ("sampler", "total")


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

    @property
    def residual(self) -> Tensor:
        """exact - term, (B, C, H, W): what the first order leaves out, O(rho^2)."""
        return self.exact - self.term

    def to_frame(self):
        """One row a sample: norms of term, exact change and residual, and how near they are."""
        term, exact, rest = (lengths(x) for x in (self.term, self.exact, self.residual))
        tiny = torch.finfo(torch.float64).tiny
        columns = {
            "||term||": term,
            "||exact||": exact,
            "||residual||": rest,
            "residual / exact": rest / exact,
            "cosine": inner(self.term, self.exact) / (term * exact).clamp_min(tiny),
        }
        return self.frame_of(columns)


def guidance_term(
    run: Run | State,
    *,
    kind: str = "sampler",
    rho: float | None = None,
    reward: Callable | None = None,
    sampler: Sampler | None = None,
    derivative: str = "auto",
) -> GuidanceTerm:
    """The change of the score by one DATE update, Theorem 2: s(xt, c_hat) - s(xt, c_org).

    kind "sampler" is what the sampler does, with c_hat fed to the network as a constant: rho
    (ds/dc) eps_hat, on any backbone. kind "total" is the theorem's braces, rho grad_x
    {eps_hat(xt)^T grad_c log p(xt | c_org)}, with eps_hat differentiated too; it needs a backbone
    with `log_prob`. With guidance both are of the guided score. At rho = 0 term and exact change
    are exactly zero.

    rho, reward: the method's own by default. The gradient is taken where the method takes it, and
    the expansion stands at the embedding that it displaces: both are c_org for anchor "original",
    the running c for "running", and the running c and c_org for "reset". derivative: see
    `analysis.derivatives.along`. Of a composition such as DATE + Universal Guidance this is the
    embedding's part alone; `analysis.score_change` has the whole, and that of any other method.

    Raises ValueError for an unknown kind, rho < 0, no radius or reward, "total" without log_prob,
    or a step from pure noise; NonFiniteError as `run.peek` does.
    """
    state, sampler = paused(run, sampler)
    alpha, sigma = level(sampler, state)
    check_text_counts(state, alpha)
    reward, rho = reward_of(sampler, reward), rho_of(sampler, rho)
    seen, base = look(sampler, state, reward), base_of(sampler.method, state)
    slope, exact, how = expansion(sampler, state, seen, base.sequence, kind, reward, derivative)
    term = rho * slope
    with torch.no_grad():
        x0bar = sampler.predict(state, base).x0bar
    return GuidanceTerm(
        **step_fields(state),
        kind=kind,
        how=how,
        rho=rho,
        term=term,
        exact=exact(rho),
        x0bar=x0bar,
        shift=sigma**2 / alpha * term,
        decode=sampler.backbone.decode,
    )


def check_text_counts(state: State, alpha: float) -> None:
    """Raise ValueError at a step from pure noise, whose score does not depend on the text."""
    if alpha == 0:
        raise ValueError(
            f"step {state.i} starts from pure noise: its score is -xt / sigma^2 whatever the model "
            "says; look at a later step"
        )


def expansion(
    sampler: Sampler,
    state: State,
    seen: RewardGradient,
    start: Tensor,
    kind: str,
    reward: Callable,
    derivative: str = "auto",
) -> tuple[Tensor, Callable[[float], Tensor], str]:
    """The score's derivative in rho at rho = 0, its exact change as a function of rho, and words.

    seen: the gradient, along whose direction the embedding moves from start, (B, L, D). The words
    say how the derivative was taken.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    if kind == "total":
        return _total_reading(sampler, state, seen, start, reward)

    def score_at(c: Tensor) -> Tensor:
        return score(sampler, state, c)

    slope, how = along(score_at, start, seen.direction, rounding(sampler, start), derivative)
    with torch.no_grad():
        here = score_at(start)

    def exact(rho: float) -> Tensor:
        with torch.no_grad():
            return score_at(start + rho * seen.direction) - here

    return slope, exact, how


def _total_reading(
    sampler: Sampler, state: State, seen: RewardGradient, start: Tensor, reward: Callable
) -> tuple[Tensor, Callable[[float], Tensor], str]:
    backbone = sampler.backbone
    if not hasattr(backbone, "log_prob"):
        raise ValueError(
            "kind='total' differentiates eps_hat(xt)^T grad_c log p(xt | c), and "
            f"{backbone.name!r} has no log p(xt | c): a denoiser knows its gradient in x only. "
            "Use kind='sampler', or dk.load('gaussian'), where log_prob is a formula"
        )
    # the guided density is p_u^(1 - w) p_c^w
    w = sampler.guidance_scale if sampler.denoiser(state).guided else 1.0

    def log_p(x: Tensor, c: Tensor) -> Tensor:
        return backbone.log_prob(x, state.t, state.cond.replace(sequence=c)).sum()

    def gradient(rho: float | None) -> Tensor:
        """grad_x log p(x | start + rho eps_hat(x)); for None its derivative in rho at 0."""
        with torch.enable_grad():
            x, at, c = (v.detach().clone().requires_grad_() for v in (state.xt, seen.c, start))
            h = reward(backbone.decode(sampler.predict(state, at, x).x0bar), state.prompts)
            direction = _direction(torch.autograd.grad(h.sum(), at, create_graph=True)[0])
            if rho is None:
                grad_c = torch.autograd.grad(log_p(x, c), c, create_graph=True)[0]
                value = (direction * grad_c).sum()
            else:
                value = log_p(x, c + rho * direction)
            return w * torch.autograd.grad(value, x)[0]

    here = gradient(0.0)

    def exact(rho: float) -> Tensor:
        return gradient(rho) - here

    return gradient(None), exact, "automatic differentiation, twice"


def _direction(grad: Tensor) -> Tensor:
    """eps_hat with its derivative; `unit` scales by an entry, which has none where two tie."""
    length = grad.flatten(1).norm(dim=1)
    if not length.all():
        return unit(grad)  # a sample without a gradient has no direction, and none depends on x
    return grad / length.view(-1, 1, 1)


def score_change(sampler: Sampler, state: State) -> tuple[Tensor, Tensor]:
    """The change of a step's score by any method, and x0bar without it, (B, C, H, W) each.

    This is the score with which the method would step, whatever its schedule says, minus the plain
    one at the embedding from which the method starts.
    """
    method = _always(sampler.method)
    with torch.no_grad():
        plain = sampler.denoiser(state).predict(base_of(method, state))
        with sampler.replace(method=method).paused(state) as denoiser:
            changed = method.predict(denoiser, method.condition(denoiser, state).cond)
    return (plain.eps - changed.eps) / level(sampler, state)[1], plain.x0bar


def _always(method: Method) -> Method:
    """The method with updates at every step."""
    if isinstance(method, Composition):
        return Composition(tuple(_always(part) for part in method.parts))
    return replace(method, when=every()) if hasattr(method, "when") else method
