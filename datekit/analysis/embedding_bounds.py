"""The performance guarantee, computed: unconstrained >= constrained >= fixed embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..methods import DATE, Method
from ..rewards.base import score
from ..run import Run
from ..statistics import bootstrap
from ..tensors import norm, unit
from ..types import State
from .base import Result, reward_of, rho_of


@dataclass(frozen=True, eq=False, repr=False)
class Guarantee(Result):
    """Final rewards h(x0) of B samples under four ways to choose the embeddings that are left."""

    rho: float  # the radius of the constraint
    values: dict[str, Tensor]  # (B,) for "fixed", "DATE", "constrained" and "unconstrained"
    far: dict[str, Tensor]  # the largest ||c_t - c_org|| used, (B,) for each

    def rows(self) -> list[dict]:
        """One row a way: mean of h, mean gain over fixed with its 95 % interval, longest way."""
        rows, fixed = [], self.values["fixed"].tolist()
        for name, values in self.values.items():
            gain, low, high = bootstrap(values.tolist(), minus=fixed)
            row = {"embeddings": name, "h(x0)": values.mean().item(), "gain over fixed": gain}
            far = {"max ||c - c_org||": self.far[name].max().item()}
            rows.append(row | {"low": low, "high": high} | far)
        return rows


def guarantee(
    run: Run, *, rho: float | None = None, reward: Callable | None = None, rounds: int = 60
) -> Guarantee:
    """The optima of the performance guarantee for the steps that are left, each sample on its own.

    "fixed" is c_org throughout; "DATE" Eq. 14 at each step; "constrained" the best c_T .. c_1
    together for h(x0), each within rho of c_org; "unconstrained" the same without the radius. The
    optima are found by ascent from every result before them, so they are lower bounds. This is
    meant for few steps and a small model: an ascent step differentiates through all steps.
    """
    reward, rho, centre = reward_of(run, reward), rho_of(run, rho), run.state.c_org
    if run.sampler.method.stages not in ((), ("condition",)):
        raise ValueError("the guarantee is about the embedding alone; give run.fork(dk.DATE(...))")

    def value(cs: Tensor) -> Tensor:
        """h(x0), (B,), of stepping on under embeddings (T', B, L, D); carries gradient to them."""
        state = run.state
        sampler = run.sampler.replace(method=_Given(cs, state.i))
        for _ in cs:
            state, _ = sampler.step(state)
        return score(reward, run.sampler.backbone.decode(state.xt), run.prompts)

    date = run.fork(DATE(reward, rho=rho)).finish(progress=False).history.stack("c")
    date = date[run.state.i - run.sampler.num_steps :]
    chosen = {"fixed": centre.expand_as(date).clone(), "DATE": date}
    for name, radius in (("constrained", rho), ("unconstrained", None)):
        chosen[name] = _ascend(value, list(chosen.values()), centre, radius, rounds)
    values, far = {}, {}
    for name, cs in chosen.items():
        with torch.no_grad():
            values[name] = value(cs).cpu()
        far[name] = (cs - centre).flatten(2).norm(dim=2).amax(0).cpu()
    return Guarantee(rho, values, far)


@dataclass(frozen=True)
class _Given(Method):
    """Embeddings (T', B, L, D) from step `first` on."""

    cs: Tensor
    first: int

    def condition(self, denoiser, state: State):
        cond = state.cond_org.replace(sequence=self.cs[state.i - self.first])
        return replace(super().condition(denoiser, state), cond=cond)


def _ascend(
    value: Callable, starts: Sequence[Tensor], centre: Tensor, rho: float | None, rounds: int
) -> Tensor:
    """The best embeddings of each sample, (T', B, L, D), by projected gradient ascent.

    Each c_t moves along its own normalised gradient, as those of different steps differ by orders
    of magnitude; the length shrinks over the rounds.
    """
    length = 0.3 * (norm(centre).mean().item() if rho is None else rho)
    best, top = starts[0], torch.full((len(centre),), -torch.inf).to(centre)
    for here in starts:
        speed = torch.zeros_like(here)
        for n in range(rounds + 1):
            leaf = here.detach().requires_grad_()
            h = value(leaf)
            (grad,) = torch.autograd.grad(h.sum(), leaf)
            better = h.detach() > top
            top = torch.where(better, h.detach().to(top), top)
            best = torch.where(better.view(1, -1, 1, 1), here, best)
            speed = 0.7 * speed + 0.3 * unit(grad.flatten(0, 1)).view_as(grad)
            here = here + length * (1 - n / (rounds + 1)) * speed
            if rho is not None:
                away = here - centre
                size = away.flatten(2).norm(dim=2)[..., None, None]
                here = centre + away * (rho / size.clamp_min(rho))
    return best
