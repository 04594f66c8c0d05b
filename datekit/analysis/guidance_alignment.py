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
from .base import Result, lengths
from .guidance import score_change
from .gradient_snr import states_of


@dataclass(frozen=True, eq=False, repr=False)
class GuidanceCosine(Result):
    """The cosine of what two methods do to the score, step by step.

    names: of the two methods; steps, ts: T steps and their timesteps; cosine: (T, B), NaN where one of them does nothing;
    sizes: (2, T, B), how much each does, in units of the score; prompts, seeds: one a sample.
    """

    names: tuple[str, str]
    steps: tuple[int, ...]
    ts: tuple[float, ...]
    cosine: Tensor
    sizes: Tensor
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def title(self) -> str:
        """Which methods, over what."""
        return f"{self.names[0]} and {self.names[1]} in x-space, {len(self.steps)} steps, {len(self.seeds)} samples"

    def to_frame(self):
        """One row a step and sample: the cosine, and how much each method does."""
        import pandas as pd

        count = len(self.seeds)
        each = lambda values: [value for value in values for _ in range(count)]
        one, other = (size.flatten().tolist() for size in self.sizes)
        names = (
            self.names
            if self.names[0] != self.names[1]
            else [f"{name} {n}" for n, name in enumerate(self.names, 1)]
        )
        return pd.DataFrame(
            {
                "step": each(self.steps),
                "t": each(self.ts),
                "prompt": [*self.prompts] * len(self.steps),
                "seed": [*self.seeds] * len(self.steps),
                "cosine": self.cosine.flatten().tolist(),
                f"||{names[0]}||": one,
                f"||{names[1]}||": other,
            }
        )


def guidance_cosine(
    run: Run | State,
    one: Method,
    other: Method,
    *,
    steps: Sequence[int] | None = None,
    sampler: Sampler | None = None,
) -> GuidanceCosine:
    """cos(change of the score by one method, change by another), both at the same xt, (T, B); schedules are not asked.

    Each change is exact, `analysis.score_change`: for DATE score(xt, c_hat) - score(xt, c) at the embedding it starts from, for
    Universal Guidance scale grad_xt h + (alpha / sigma^2) Delta. So the cosine of the two says whether moving the embedding is a
    detour to the same push. steps: of the run's past (`run.states`), the paused one by default. Costs a step of each method
    a row. Raises TypeError for what is no method, ValueError for steps not taken yet, and what the methods raise.
    """
    for method in (one, other):
        if not isinstance(method, Method):
            raise TypeError(
                f"give two methods, such as dk.DATE(reward) and dk.UniversalGuidance(reward, 5.0); got {method!r}"
            )
    states, sampler = states_of(run, steps, sampler)
    samplers = [sampler.replace(method=method) for method in (one, other)]
    cosines, sizes = [], []
    for state in states:
        a, b = (score_change(s, state)[0] for s in samplers)
        size = torch.stack([lengths(a), lengths(b)])
        inner = (a.double() * b.double()).flatten(1).sum(1)
        cosines.append(torch.where(size.prod(0) > 0, inner / size.prod(0), torch.nan).cpu())
        sizes.append(size.cpu())
    return GuidanceCosine(
        names=(type(one).__name__, type(other).__name__),
        steps=tuple(s.i for s in states),
        ts=tuple(s.t for s in states),
        cosine=torch.stack(cosines),
        sizes=torch.stack(sizes, 1),
        prompts=states[0].prompts,
        seeds=states[0].seeds,
    )
