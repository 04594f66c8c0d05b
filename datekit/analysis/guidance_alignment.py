"""Two methods side by side in the space of x: do they push the same step the same way?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods import Method
from ..run import Run
from ..sampler import Sampler
from ..types import State
from .base import Result, states_of
from .derivatives import inner, lengths
from .guidance import score_change


@dataclass(frozen=True, eq=False, repr=False)
class GuidanceCosine(Result):
    """The cosine of what two methods do to the score, step by step."""

    names: tuple[str, str]
    steps: tuple[int, ...]
    ts: tuple[float, ...]
    cosine: Tensor  # (T, B), NaN where one of them does nothing
    sizes: Tensor  # (2, T, B), how much each does, in units of the score
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def to_frame(self):
        """One row a step and sample: the cosine, and how much each method does."""
        import pandas as pd

        rows = []
        for row, (i, t) in enumerate(zip(self.steps, self.ts, strict=True)):
            for b, (prompt, seed) in enumerate(zip(self.prompts, self.seeds, strict=True)):
                sizes = self.sizes[:, row, b].tolist()
                rows.append((i, t, prompt, seed, self.cosine[row, b].item(), *sizes))
        columns = ["step", "t", "prompt", "seed", "cosine", "size 1", "size 2"]
        return pd.DataFrame(rows, columns=columns)


def guidance_cosine(
    run: Run | State,
    one: Method,
    other: Method,
    *,
    steps: Sequence[int] | None = None,
    sampler: Sampler | None = None,
) -> GuidanceCosine:
    """cos(change of the score by one method, change by another) at the same xt, (T, B).

    Each change is exact, see `analysis.score_change`: for DATE it is score(xt, c_hat) - score(xt,
    c) at the embedding from which it starts, for Universal Guidance scale grad_xt h + (alpha /
    sigma^2) Delta. So the cosine says whether moving the embedding is a detour to the same push.
    The schedules of the methods are not asked. steps: of the run's past (`run.states`), the paused
    one by default. This costs a step of each method a row. Raises TypeError for what is no method,
    ValueError for steps not taken yet, and what the methods raise.
    """
    for method in (one, other):
        if not isinstance(method, Method):
            raise TypeError(f"give two methods, such as dk.DATE(reward); got {method!r}")
    states, sampler = states_of(run, steps, sampler)
    cosines, sizes = [], []
    for state in states:
        a, b = (score_change(sampler.replace(method=m), state)[0] for m in (one, other))
        size = torch.stack([lengths(a), lengths(b)])
        both = size.prod(0)
        cosines.append(torch.where(both > 0, inner(a, b) / both, torch.nan).cpu())
        sizes.append(size.cpu())
    return GuidanceCosine(
        names=(type(one).__name__, type(other).__name__),
        steps=tuple(state.i for state in states),
        ts=tuple(state.t for state in states),
        cosine=torch.stack(cosines),
        sizes=torch.stack(sizes, 1),
        prompts=states[0].prompts,
        seeds=states[0].seeds,
    )
