"""How good the first-order expansions are: their error against rho, and the power with which it falls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rewards.base import score as checked
from ..run import Run
from ..sampler import Sampler
from ..types import State
from .base import Result, lengths, paused, precision, reward_of
from .guidance import expansion

_ABOVE_ROUNDING = (
    1e3  # residuals count in the fit where they are this many times what rounding can make
)


@dataclass(frozen=True, eq=False, repr=False)
class TaylorError(Result):
    """The errors of both expansions over a sweep of rho.

    kind: the reading of the score's expansion; i, t: the step; rhos: (R,); reward_change, reward_error: (R, B), the change of h_t and
    what rho ||g|| leaves of it; score_change, score_error: (R, B), norms of the change of the score and of the residual of
    Theorem 2; reward_floor, score_floor: (B,), what rounding alone can make; prompts: one a sample. All on the CPU, float64.
    """

    kind: str
    i: int
    t: float
    rhos: Tensor
    reward_change: Tensor
    reward_error: Tensor
    score_change: Tensor
    score_error: Tensor
    reward_floor: Tensor
    score_floor: Tensor
    prompts: tuple[str, ...]

    @property
    def reward_slope(self) -> Tensor:
        """Fitted power of the reward's error in rho, (B,); NaN where rounding leaves fewer than three points."""
        return slopes(self.rhos, self.reward_error, self.reward_floor)

    @property
    def score_slope(self) -> Tensor:
        """Fitted power of the score's error in rho, (B,); 2 is what Theorem 2 says."""
        return slopes(self.rhos, self.score_error, self.score_floor)

    @property
    def decades(self) -> Tensor:
        """How many decades of rho the fit of the score's error spans above rounding, (B,)."""
        return torch.stack(
            [
                _span(self.rhos[error > _ABOVE_ROUNDING * floor])
                for error, floor in zip(self.score_error.T, self.score_floor, strict=True)
            ]
        )

    @property
    def title(self) -> str:
        """Where, and how rho was varied."""
        return f"{self.kind} reading, step {self.i}, t = {self.t:g}, rho from {self.rhos.min():.2e} to {self.rhos.max():.2e}"

    def to_frame(self):
        """One row a sample and rho."""
        import pandas as pd

        rows = [
            (
                prompt,
                rho.item(),
                *(
                    x[r, b].item()
                    for x in (
                        self.reward_change,
                        self.reward_error,
                        self.score_change,
                        self.score_error,
                    )
                ),
            )
            for b, prompt in enumerate(self.prompts)
            for r, rho in enumerate(self.rhos)
        ]
        return pd.DataFrame(
            rows,
            columns=[
                "prompt",
                "rho",
                "reward change",
                "reward error",
                "score change",
                "score error",
            ],
        )

    def _table(self):
        import pandas as pd

        return pd.DataFrame(
            {
                "prompt": self.prompts,
                "slope of the reward's error": self.reward_slope,
                "slope of the score's error": self.score_slope,
                "decades of rho": self.decades,
            }
        )


def taylor_error(
    run: Run | State,
    rhos: Sequence[float] | None = None,
    *,
    kind: str = "sampler",
    reward: Callable | None = None,
    sampler: Sampler | None = None,
) -> TaylorError:
    """The error of h_t(c + rho eps_hat) = h_t(c) + rho ||g|| + O(rho^2), and of Theorem 2, at the paused step.

    rhos: rho_rules above 0, by default four decades below 1 % of ||c|| in float64, one and a half below 10 % in float32, one below ||c|| itself
    where the network is in half precision (whose rounding may leave nothing to fit: the slopes are then NaN); kind: reading of the score's
    expansion, see `guidance_term`; both expansions stand where the method looks. Costs a gradient, and two forward passes and a
    decoding a radius. Raises ValueError for a radius that is not above 0, and as `guidance_term`.
    """
    state, sampler = paused(run, sampler)
    reward = reward_of(sampler, reward)
    if not sampler.solver_for(state.xt.shape).level(state.i)[0]:
        raise ValueError(
            f"step {state.i} starts from pure noise, where the score does not depend on the text; take a later step"
        )
    look = sampler.look(state, reward)
    rhos = _default_rhos(look.c, precision(sampler)) if rhos is None else _checked_rhos(rhos)
    slope, exact, _ = expansion(sampler, state, look, kind, reward)
    columns = {
        name: [] for name in ("reward_change", "reward_error", "score_change", "score_error")
    }
    for rho in rhos:
        with torch.no_grad():
            x0bar = sampler.predict(state, look.c + rho * look.direction).x0bar
            change = (
                checked(
                    reward, sampler.backbone.decode(x0bar), state.prompts, f" at rho = {rho:g}"
                ).double()
                - look.h
            )
        moved = exact(rho)
        columns["reward_change"].append(change)
        columns["reward_error"].append((change - rho * look.grad_norm).abs())
        columns["score_change"].append(lengths(moved))
        columns["score_error"].append(lengths(moved - rho * slope))
    eps = max(torch.finfo(dtype).eps for dtype in (look.c.dtype, precision(sampler)))
    sizes = lengths(state.xt) / sampler.solver_for(state.xt.shape).level(state.i)[1] ** 2
    return TaylorError(
        kind=kind,
        i=state.i,
        t=state.t,
        rhos=torch.tensor(rhos, dtype=torch.float64),
        prompts=state.prompts,
        reward_floor=eps * look.h.abs().double().cpu(),
        score_floor=eps * sizes.cpu(),
        **{name: torch.stack(rows).double().cpu() for name, rows in columns.items()},
    )


def slopes(rhos: Tensor, errors: Tensor, floor: Tensor) -> Tensor:
    """Least-squares slopes of log errors (R, B) in log rho, over the points well above floor (B,); NaN below three points."""
    found = []
    for column, least in zip(errors.T, floor, strict=True):
        used = column > _ABOVE_ROUNDING * least
        x, y = rhos[used].log(), column[used].log()
        fit = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
        found.append(fit if used.sum() >= 3 else torch.tensor(torch.nan))
    return torch.stack(found)


def _span(rhos: Tensor) -> Tensor:
    return (rhos.max() / rhos.min()).log10() if len(rhos) else torch.zeros(())


def _default_rhos(c: Tensor, network: torch.dtype) -> list[float]:
    top, decades = {torch.float64: (1e-2, 4.0), torch.float32: (1e-1, 1.5)}.get(network, (1.0, 1.0))
    return (
        lengths(c).mean().item() * top * torch.logspace(-decades, 0, 13, dtype=torch.float64)
    ).tolist()


def _checked_rhos(rhos: Sequence[float]) -> list[float]:
    rhos = sorted(float(rho) for rho in rhos)
    if not rhos or not 0 < rhos[0] <= rhos[-1] < float("inf"):
        raise ValueError(
            f"a sweep needs finite rho_rules above 0, as the error is fitted against log rho; got {rhos}"
        )
    return rhos
