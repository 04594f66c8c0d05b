"""The performance guarantee, computed: unconstrained >= constrained >= fixed embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rewards.base import score as checked_reward
from ..run import Run
from ..sampler import Sampler
from ..statistics import bootstrap
from ..tensors import norm, unit
from ..types import State
from .base import Result, look, paused, reward_of, rho_of

ORDER = ("fixed", "DATE", "sequential", "constrained", "unconstrained")


@dataclass(frozen=True, eq=False, repr=False)
class Guarantee(Result):
    """Final rewards h(x0) of B samples under five ways to choose the embeddings that are left."""

    rho: float  # the radius of the constraint
    steps: int  # how many embeddings were chosen
    rounds: int  # ascent steps of each search
    values: dict[str, Tensor]  # (B,) for each name of `ORDER`
    far: dict[str, Tensor]  # the largest ||c_t - c_org|| used, (B,) for each name
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def to_frame(self):
        """One row a way: mean of h, mean gain over fixed with its 95 % interval, longest way."""
        import pandas as pd

        rows, fixed = [], self.values["fixed"].tolist()
        for name in ORDER:
            values, far = self.values[name], self.far[name].max().item()
            gain = bootstrap(values.tolist(), minus=fixed)
            rows.append((name, values.mean().item(), *gain, far))
        columns = ["embeddings", "h(x0)", "gain over fixed", "low", "high", "max ||c - c_org||"]
        return pd.DataFrame(rows, columns=columns)


def guarantee(
    run: Run | State,
    *,
    rho: float | None = None,
    reward: Callable | None = None,
    rounds: int = 60,
    sampler: Sampler | None = None,
) -> Guarantee:
    """The optima of the performance guarantee for the steps that are left, each sample on its own.

    "fixed" is c_org throughout; "DATE" Eq. 14 at each step; "sequential" the best c_t within rho of
    c_org for h(x0) at each step, were it kept to the end; "constrained" the best c_T .. c_1
    together, each within rho; "unconstrained" the same without the radius. The optima are found by
    ascent, so they are lower bounds; each search starts from c_org and from every result before it,
    all of which are allowed to it. A stochastic solver takes the noise that the run itself would
    take, and the optima are for that noise. This is meant for few steps and a small model, as an
    ascent step differentiates through all steps that are left.

    Raises ValueError for rho not above 0, without a reward, or for a sampler that takes steps of
    its own (FlowEdit).
    """
    state, sampler = paused(run, sampler)
    reward, rho = reward_of(sampler, reward), rho_of(sampler, rho)
    if not rho:
        raise ValueError("rho = 0 leaves c_org alone, so there is nothing to optimise; give more")
    if type(sampler).step is not Sampler.step:
        raise ValueError(
            f"{type(sampler).__name__} takes steps of its own, which the search for the best "
            "embeddings does not follow; look at plain sampling or at an edit by inversion"
        )

    def value(cs: Tensor) -> Tensor:
        return _final_reward(sampler, state, reward, cs)

    count = sampler.num_steps - state.i
    chosen = {
        "fixed": state.c_org.expand(count, *state.c_org.shape).clone(),
        "DATE": _date(sampler, state, reward, rho),
        "sequential": _sequential(sampler, state, reward, rho, rounds),
    }
    for name, radius in (("constrained", rho), ("unconstrained", None)):
        starts = chosen.values()
        ends = [_ascend(value, start, state.c_org, radius, rounds) for start in starts]
        chosen[name] = _best(ends, value)
    with torch.no_grad():
        values = {name: value(cs).cpu() for name, cs in chosen.items()}
    far = {
        name: (cs - state.c_org).flatten(2).norm(dim=2).amax(0).cpu() for name, cs in chosen.items()
    }
    return Guarantee(
        rho=rho,
        steps=count,
        rounds=rounds,
        values=values,
        far=far,
        prompts=state.prompts,
        seeds=state.seeds,
    )


def _final_reward(sampler: Sampler, state: State, reward: Callable, cs: Tensor) -> Tensor:
    """h(x0), (B,), of stepping on under embeddings (T', B, L, D); carries gradient to them."""
    for c in cs:
        state = _advance(sampler, state, c)
    return checked_reward(reward, sampler.backbone.decode(state.xt), state.prompts)


def _advance(sampler: Sampler, state: State, c: Tensor) -> State:
    """The next state under c, by the sampler's own solving: its noise, and what an edit keeps."""
    xt, solver_state = sampler._solve(state, sampler.predict(state, c), 0)
    i = state.i + 1
    t = sampler.solver_for(state.xt.shape).timesteps[i] if i < sampler.num_steps else 0
    return state.replace(xt=xt, i=i, solver_state=solver_state, t=t)


def _date(sampler: Sampler, state: State, reward: Callable, rho: float) -> Tensor:
    chosen = []
    while state.i < sampler.num_steps:
        direction = look(sampler, state, reward, state.cond_org).direction
        chosen.append(state.c_org + rho * direction)
        with torch.no_grad():
            state = _advance(sampler, state, chosen[-1])
    return torch.stack(chosen)


def _sequential(
    sampler: Sampler, state: State, reward: Callable, rho: float, rounds: int
) -> Tensor:
    chosen, c = [], state.c_org[None]
    for left in range(sampler.num_steps - state.i, 0, -1):

        def value(cs: Tensor, state: State = state, left: int = left) -> Tensor:
            return _final_reward(sampler, state, reward, cs.expand(left, *cs.shape[1:]))

        c = _ascend(value, c, state.c_org, rho, rounds)  # from the last one, which stays allowed
        chosen.append(c[0])
        with torch.no_grad():
            state = _advance(sampler, state, c[0])
    return torch.stack(chosen)


def _ascend(
    value: Callable[[Tensor], Tensor], start: Tensor, centre: Tensor, rho: float | None, rounds: int
) -> Tensor:
    """Projected gradient ascent with momentum to the best embeddings of each sample, (T', B, L, D).

    Each c_t moves along its own normalised gradient, as those of different steps differ by orders
    of magnitude; the length shrinks over the rounds.
    """
    length = 0.3 * (norm(centre).mean().item() if rho is None else rho)
    here, best, top, speed = start, start, None, torch.zeros_like(start)
    for n in range(rounds + 1):
        leaf = here.detach().requires_grad_()
        h = value(leaf)
        (grad,) = torch.autograd.grad(h.sum(), leaf)
        h = h.detach()
        better = torch.ones_like(h, dtype=torch.bool) if top is None else h > top
        top = h if top is None else torch.where(better, h, top)
        best = torch.where(better.view(1, -1, 1, 1), here, best)
        speed = 0.7 * speed + 0.3 * unit(grad.flatten(0, 1)).view_as(grad)
        here = here + length * (1 - n / (rounds + 1)) * speed
        if rho is not None:
            here = _within(here, centre, rho)
    return best


def _within(cs: Tensor, centre: Tensor, rho: float) -> Tensor:
    away = cs - centre
    size = away.flatten(2).norm(dim=2)[..., None, None]
    return centre + away * (rho / size.clamp_min(rho))


def _best(choices: list[Tensor], value: Callable[[Tensor], Tensor]) -> Tensor:
    """For each sample the best of several choices, (T', B, L, D)."""
    with torch.no_grad():
        which = torch.stack([value(cs) for cs in choices]).argmax(0)
    return torch.stack(choices)[which, :, torch.arange(len(which))].transpose(0, 1)
