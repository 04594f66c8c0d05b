"""Best-of-N: several pictures of each prompt, and the one that a reward likes best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import noise
from .errors import whole
from .rewards.base import as_reward, score
from .run import Run
from .sampler import Sampler
from .tensors import to_pil


@dataclass(frozen=True)
class BestOf:
    """N candidates of each sample from one sampler, and the best of them; made by `best_of`."""

    sampler: Sampler
    n: int
    reward: Callable

    def start(self, prompts, *, seeds=None, **kwargs) -> Candidates:
        """N runs paused before their first step; arguments as for `Sampler.init`, save `latents`.

        Candidate 0 of a sample has its seed s, so it is what the sampler alone gives; candidate j
        has the seed `noise.derived(s, j, "best-of")`. So the candidates of a prompt do not depend
        on its batch, and more of them only add to fewer.
        """
        if "latents" in kwargs:
            raise ValueError("candidates differ by the noise of their seeds, so give no latents")
        runs = [self.sampler.start(prompts, seeds=seeds, **kwargs)]
        for j in range(1, self.n):
            others = [noise.derived(seed, j, "best-of") for seed in runs[0].seeds]
            runs.append(self.sampler.start(runs[0].prompts, seeds=others, **kwargs))
        return Candidates(runs, self.reward)


class Candidates:
    """A best-of-N in progress. Its results raise RuntimeError before `finish` has drawn them all.

    runs: the N runs; drawn: the pictures, (B, 3, H, W) in [0, 1], and the rewards, (B,), of each
    run that was judged. Such a run stands at its start again, so that memory does not grow with N.
    """

    def __init__(self, runs: list[Run], reward: Callable) -> None:
        self.runs, self.reward, self.sampler = runs, reward, runs[0].sampler
        self.drawn: list[tuple[Tensor, Tensor]] = []

    def finish(self, *, progress: bool = True) -> Candidates:
        """Draw and judge the candidates that are left, and return this object itself."""
        for run in self.runs[len(self.drawn) :]:
            pixels, where = run.finish(progress=progress).pixels, f" of candidate {len(self.drawn)}"
            with torch.no_grad():
                h = score(self.reward, pixels, run.prompts, where)
            self.drawn.append((pixels, h.detach()))
            run.rewind()
        return self

    def __repr__(self) -> str:
        return f"<Candidates: {len(self.drawn)} of {len(self.runs)} are drawn, {self.sampler!r}>"

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts, one a sample."""
        return self.runs[0].prompts

    @property
    def rewards(self) -> Tensor:
        """The reward of every candidate, (N, B)."""
        if len(self.drawn) < len(self.runs):
            raise RuntimeError(f"{len(self.drawn)} of {len(self.runs)} are drawn: call finish()")
        return torch.stack([h for _, h in self.drawn])

    @property
    def index(self) -> Tensor:
        """Which candidate is the best, (B,); the earliest of equals."""
        return self.rewards.argmax(0)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of the best candidate of each sample, with which the sampler draws it again."""
        return tuple(self.runs[j].seeds[n] for n, j in enumerate(self.index.tolist()))

    @property
    def pixels(self) -> Tensor:
        """The best pictures, (B, 3, H, W) in [0, 1]."""
        return torch.stack([self.drawn[j][0][n] for n, j in enumerate(self.index.tolist())])

    @property
    def images(self) -> list:
        """The best pictures as PIL images."""
        return to_pil(self.pixels)


def best_of(sampler: Sampler, n: int, reward: Callable | None = None) -> BestOf:
    """Best-of-N by a reward: `dk.best_of(sampler, 4, reward).start(prompts).finish().images`.

    reward: h, which judges the final pictures and needs no gradient; by default the method's own.
    """
    if not isinstance(sampler, Sampler):
        raise TypeError(f"best_of takes a dk.Sampler, got {type(sampler).__name__}")
    reward = sampler.method.reward if reward is None else reward
    as_reward(reward)  # raises TypeError for what is none
    return BestOf(sampler, whole("n", n, 1), reward)
