"""What a method does in the space of x: for an update of c the guidance term of Theorem 2, in its two readings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..methods import Composition, Method
from ..run import Run
from ..sampler import Sampler
from ..schedules import every
from ..types import Conditioning, RewardGradient, State, unit
from .base import Result, along, base_of, lengths, paused, precision, reward_of, rho_of, score

KINDS = ("sampler", "total")


@dataclass(frozen=True, eq=False, repr=False)
class GuidanceTerm(Result):
    """The change of the score by a method, for an update of the embedding to first order and exactly.

    kind: "sampler" or "total"; how: the way the derivative was taken; i, t: the step; rho: the radius, None for a method that moves no
    embedding, where term and exact are the same; term, exact, residual = exact - term: (B, C, H, W), in units of the score;
    x0bar: (B, C, H, W), before the update; shift: (B, C, H, W), the first-order change of x0bar, sigma^2 / alpha times term;
    prompts, seeds: one a sample; decode: the backbone's, for pictures.
    """

    kind: str
    how: str
    i: int
    t: float
    rho: float | None
    term: Tensor
    exact: Tensor
    x0bar: Tensor
    shift: Tensor
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    decode: Callable[[Tensor], Tensor]

    @property
    def residual(self) -> Tensor:
        """exact - term, (B, C, H, W): what the first order leaves out, O(rho^2)."""
        return self.exact - self.term

    @property
    def title(self) -> str:
        """Which reading, where, and by which derivative."""
        return f"{self.kind} reading, step {self.i}, t = {self.t:g}{'' if self.rho is None else f', rho = {self.rho:.4g}'}; {self.how}"

    def to_frame(self):
        """One row a sample: norms of term, exact change and residual, their ratio, and the cosine of term and exact change."""
        import pandas as pd

        term, exact, rest = (lengths(x).cpu() for x in (self.term, self.exact, self.residual))
        inner = (self.term.double() * self.exact).flatten(1).sum(1).cpu()
        cosine = inner / (term * exact).clamp_min(torch.finfo(torch.float64).tiny)
        return pd.DataFrame(
            {
                "prompt": self.prompts,
                "seed": self.seeds,
                "||term||": term,
                "||exact||": exact,
                "||residual||": rest,
                "residual / exact": rest / exact,
                "cosine": cosine,
            }
        )


def guidance_term(
    run: Run | State,
    *,
    kind: str = "sampler",
    rho: float | None = None,
    reward: Callable | None = None,
    method: Method | None = None,
    sampler: Sampler | None = None,
    derivative: str = "auto",
) -> GuidanceTerm:
    """The change that one DATE update makes in the score, grad_x log p(xt | c_hat) - grad_x log p(xt | c_org), Theorem 2.

    kind "sampler" is what the sampler does, c_hat fed to the network as a constant: rho (ds/dc) eps_hat, on any backbone. kind
    "total" is the theorem's braces, rho grad_x {eps_hat(xt)^T grad_c log p(xt | c_org)}, eps_hat differentiated too; it needs
    a backbone with `log_prob`. rho, reward: the method's own by default; the gradient stands where the method looks, the expansion
    at the embedding that it displaces: both c_org for anchor "original", both the running c for "running", the running c and c_org
    for "reset"; with guidance both readings are of the guided score; with a network in half precision both carry its rounding;
    derivative: see `analysis.base.along`. method: another one than the run's. One that moves no embedding, such as Universal
    Guidance, changes the score by -(eps'' - eps) / sigma, which is exact: it is both term and exact, unless rho asks for the
    term of an update instead; schedules are not asked. Of a composition such as DATE + Universal Guidance it is the embedding's part
    alone (`score_change` has the whole). The direction is always the reward's: `RandomDirection` given a reward has DATE's term.
    At rho = 0 term and exact change are exactly zero. Raises ValueError for an unknown kind, rho < 0, no reward, "total" without
    log_prob, or a step from pure noise; NonFiniteError as `run.peek`.
    """
    state, sampler = paused(run, sampler)
    sampler = sampler if method is None else sampler.replace(method=method)
    alpha, sigma = sampler.solver_for(state.xt.shape).level(state.i)
    if alpha == 0:
        raise ValueError(
            f"step {state.i} starts from pure noise: its score is -xt / sigma^2 whatever the model says; look at a later step"
        )
    if rho is None and sampler.method.stages and "condition" not in sampler.method.stages:
        return _whole(sampler, state, kind, sigma**2 / alpha)
    reward, rho = reward_of(sampler, reward), rho_of(sampler, rho)
    look = sampler.look(state, reward)
    base = base_of(sampler.method, state)
    slope, exact, how = expansion(sampler, state, look, kind, reward, derivative, base)
    with torch.no_grad():
        x0bar = (
            look.x0bar if torch.equal(base.sequence, look.c) else sampler.predict(state, base).x0bar
        )
    return GuidanceTerm(
        kind=kind,
        how=how,
        i=state.i,
        t=state.t,
        rho=rho,
        term=rho * slope,
        exact=exact(rho),
        x0bar=x0bar,
        shift=sigma**2 / alpha * rho * slope,
        prompts=state.prompts,
        seeds=state.seeds,
        decode=look.decode,
    )


def expansion(
    sampler: Sampler,
    state: State,
    look: RewardGradient,
    kind: str,
    reward: Callable,
    derivative: str = "auto",
    base: Conditioning | None = None,
) -> tuple[Tensor, Callable[[float], Tensor], str]:
    """The derivative of the score's change in rho at rho = 0, the exact change as a function of rho, and how the first was taken.

    base: the embedding that moves along the look's direction, where the look was taken by default.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    start = look.c if base is None else base.sequence
    if kind == "total":
        return _total_reading(sampler, state, look, reward, start)
    at = lambda c: score(sampler, state, c)
    slope, how = along(at, start, look.direction, derivative, precision(sampler))
    with torch.no_grad():
        here = at(start)

    def exact(rho: float) -> Tensor:
        with torch.no_grad():
            return at(start + rho * look.direction) - here

    return slope, exact, how


def _total_reading(
    sampler: Sampler, state: State, look: RewardGradient, reward: Callable, start: Tensor
) -> tuple[Tensor, Callable[[float], Tensor], str]:
    backbone = sampler.backbone
    if not hasattr(backbone, "log_prob"):
        raise ValueError(
            f"kind='total' differentiates eps_hat(xt)^T grad_c log p(xt | c), and {backbone.name!r} has no log p(xt | c): a "
            "denoiser knows its gradient in x only. Use kind='sampler', or dk.load('gaussian'), where log_prob is a formula"
        )
    w = (
        sampler.guidance_scale if sampler.denoiser(state).guided else 1.0
    )  # the guided density is p_u^(1 - w) p_c^w

    def gradient(rho: float | None) -> Tensor:
        """grad_x log p(x | start + rho eps_hat(x)), or of its derivative in rho at 0, {eps_hat(x)^T grad_c log p(x | start)}."""
        with torch.enable_grad():
            x, seen, c = (v.detach().clone().requires_grad_() for v in (state.xt, look.c, start))
            h = reward(backbone.decode(sampler.predict(state, seen, x).x0bar), state.prompts)
            direction = _direction(torch.autograd.grad(h.sum(), seen, create_graph=True)[0])
            value = backbone.log_prob(
                x, state.t, state.cond.replace(sequence=c if rho is None else c + rho * direction)
            )
            if rho is None:
                value = direction * torch.autograd.grad(value.sum(), c, create_graph=True)[0]
            return w * torch.autograd.grad(value.sum(), x)[0]

    here = gradient(0.0)
    return gradient(None), lambda rho: gradient(rho) - here, "automatic differentiation, twice"


def _whole(sampler: Sampler, state: State, kind: str, factor: float) -> GuidanceTerm:
    """What a method that moves no embedding does to the score; factor: sigma^2 / alpha, from the score to x0bar."""
    name = type(sampler.method).__name__
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    if kind == "total":
        raise ValueError(
            f"kind='total' reads an update of the embedding (Theorem 2), and {name} makes none; use kind='sampler'"
        )
    change, x0bar = score_change(sampler, state)
    return GuidanceTerm(
        kind=kind,
        how=f"{name}, exact",
        i=state.i,
        t=state.t,
        rho=None,
        term=change,
        exact=change,
        x0bar=x0bar,
        shift=factor * change,
        prompts=state.prompts,
        seeds=state.seeds,
        decode=sampler.backbone.decode,
    )


def score_change(sampler: Sampler, state: State) -> tuple[Tensor, Tensor]:
    """What the sampler's method does to the score of a step, whatever its schedule says, and x0bar without it; both (B, C, H, W).

    The score with which the method would step, minus the plain one at the embedding from which the method starts.
    """
    method, sigma = _always(sampler.method), sampler.solver_for(state.xt.shape).level(state.i)[1]
    with torch.no_grad():
        plain = sampler.denoiser(state).predict(base_of(method, state))
        denoiser = sampler.denoiser(state)
        with method.patch(denoiser):
            changed = method.predict(denoiser, method.condition(denoiser, state).cond)
        return (plain.eps - changed.eps) / sigma, plain.x0bar


def _always(method: Method) -> Method:
    if isinstance(method, Composition):
        return Composition(tuple(_always(part) for part in method.parts))
    return replace(method, when=every()) if hasattr(method, "when") else method


def _direction(grad: Tensor) -> Tensor:
    """eps_hat with its derivative. `types.unit` is not used, as the largest entry by which it scales has no derivative in a tie."""
    length = grad.flatten(1).norm(dim=1)
    if not length.all():
        return unit(grad)  # a sample without a gradient has no direction, and none depends on x
    return grad / length.view(-1, 1, 1)
