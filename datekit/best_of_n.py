"""Best-of-N: several pictures of each prompt, and the one that a reward likes best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import noise
from .methods.base import whole
from .rewards.base import score
from .run import Run
from .sampler import Sampler
from .types import to_pil


@dataclass(frozen=True)
class BestOf:
    """N candidates of each sample from one sampler, the best of them by a reward; made by `best_of`.

    sampler: what draws them, with any method; n: how many; reward: h, which judges the final pictures and needs no gradient.
    """

    sampler: Sampler
    n: int
    reward: Callable

    def start(
        self, prompts: Sequence[str] | str, *, seeds: Sequence[int] | int | None = None, **kwargs
    ) -> Candidates:
        """N runs paused before their first step; arguments as for `Sampler.init`, without `latents`, as candidates differ by their noise.

        Candidate 0 of a sample has its own seed s, so it is what the sampler alone gives; candidate j has
        `noise.derived(s, j, "best-of")`. So a prompt's candidates do not depend on its batch, and more of them only add to fewer.
        """
        if kwargs.get("latents") is not None:
            raise ValueError(
                "the candidates of a best-of-N differ by their seeds, so it takes no latents"
            )
        first = self.sampler.start(prompts, seeds=seeds, **kwargs)
        others = [
            [noise.derived(seed, j, "best-of") for seed in first.seeds] for j in range(1, self.n)
        ]
        return Candidates(
            self,
            [first, *(self.sampler.start(first.prompts, seeds=row, **kwargs) for row in others)],
        )


class Candidates:
    """A best-of-N in progress; `finish` goes on where an interrupt left it.

    `runs` are the N runs. One that has been judged stands at its start again, so that memory does not grow with N; stepping it gives
    the same bits.
    """

    def __init__(self, best: BestOf, runs: list[Run]) -> None:
        self.best, self.runs = best, runs
        self._judged: list[
            tuple[Tensor, Tensor]
        ] = []  # pixels and rewards of each run that is finished

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts, one a sample."""
        return self.runs[0].prompts

    @property
    def done(self) -> bool:
        """Whether all candidates are drawn and judged."""
        return len(self._judged) == len(self.runs)

    def finish(self, *, progress: bool = True) -> Candidates:
        """Draw and judge the candidates that are left, one batch after the other, and return this object itself.

        Raises NonFiniteError (candidate and sample named) for a reward that is not finite, RewardError for one of another shape.
        """
        for number, run in list(enumerate(self.runs))[len(self._judged) :]:
            pixels = run.finish(progress=progress).pixels
            with torch.no_grad():
                h = score(self.best.reward, pixels, self.prompts, f" of candidate {number}")
            self._judged.append((pixels, h.detach()))
            run.rewind()
        return self

    @property
    def rewards(self) -> Tensor:
        """The reward of every candidate, (N, B)."""
        return torch.stack([h for _, h in self._finished()])

    @property
    def index(self) -> Tensor:
        """Which candidate is the best, (B,); the earliest of equals."""
        return self.rewards.argmax(0)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of the best candidate of each sample: `sampler.start(prompts, seeds=...)` draws it again."""
        return tuple(self.runs[j].seeds[n] for n, j in enumerate(self.index.tolist()))

    @property
    def pixels(self) -> Tensor:
        """The best pictures, (B, 3, H, W) in [0, 1]."""
        images = torch.stack([pixels for pixels, _ in self._finished()])
        return images[self.index, torch.arange(len(self.prompts), device=images.device)]

    @property
    def images(self) -> list:
        """The best pictures as PIL images."""
        return to_pil(self.pixels)

    def _finished(self) -> list[tuple[Tensor, Tensor]]:
        if not self.done:
            raise RuntimeError(
                f"{len(self._judged)} of {len(self.runs)} candidates are drawn; call finish() first"
            )
        return self._judged

    def __repr__(self) -> str:
        return f"<Best of {len(self.runs)} for {len(self.prompts)}: {len(self._judged)} drawn; {self.best.sampler.method!r}>"


def best_of(sampler: Sampler, n: int, reward: Callable | None = None) -> BestOf:
    """Best-of-N by a reward: `dk.best_of(sampler, 4, reward).start(prompts, seeds=seeds).finish().images`.

    It costs n runs and n scorings; `equal_time` gives the n that costs what another sampler costs. reward: the method's own by
    default. Raises TypeError or ValueError for an n or a reward that cannot be.
    """
    if not isinstance(sampler, Sampler):
        raise TypeError(f"best_of takes a dk.Sampler, got {type(sampler).__name__}")
    whole("n", n, 1)
    reward = sampler.method.reward if reward is None else reward
    if not callable(reward):
        raise TypeError(
            f"best_of needs a reward, (images, prompts) -> (B,), got {type(reward).__name__}"
        )
    return BestOf(sampler, n, reward)


def equal_time(
    sampler: Sampler,
    reward: Callable,
    other: Sampler,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    repeats: int = 3,
) -> int:
    """The n for which `best_of(sampler, n, reward)` takes the wall time of one run of `other`, rounded, 1 at least.

    Both are timed here on the given prompts and seeds, in turn, `repeats` times after one that warms up; the medians count.
    Raises ValueError unless `repeats` is a whole number from 1 up.
    """
    repeats = whole("repeats", repeats, 1)
    runs = {
        "one": lambda: (
            best_of(sampler, 1, reward).start(prompts, seeds=seeds).finish(progress=False)
        ),
        "other": lambda: other.start(prompts, seeds=seeds).finish(progress=False).pixels,
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - began)
    one, another = (
        torch.tensor(spent[1:], dtype=torch.float64).median().item() for spent in times.values()
    )
    return max(1, round(another / one))
