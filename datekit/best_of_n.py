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
        return Candidates(self, runs)


class Candidates:
    """A best-of-N in progress; `finish` goes on where an interrupt left it.

    runs: the N runs. One that has been judged stands at its start again, so that memory does not
    grow with N; stepping it gives the same bits. Results raise RuntimeError before `finish`.
    """

    def __init__(self, best: BestOf, runs: list[Run]) -> None:
        self.best, self.runs, self.prompts = best, runs, runs[0].prompts
        self._judged: list[tuple[Tensor, Tensor]] = []

    def finish(self, *, progress: bool = True) -> Candidates:
        """Draw and judge the candidates that are left, and return this object itself."""
        for number, run in list(enumerate(self.runs))[len(self._judged) :]:
            pixels = run.finish(progress=progress).pixels
            with torch.no_grad():
                shown = pixels.clone()  # a reward may change its input
                h = score(self.best.reward, shown, self.prompts, f" of candidate {number}")
            self._judged.append((pixels, h.detach()))
            run.rewind()
        return self

    def _results(self, which: int) -> Tensor:
        if len(self._judged) < len(self.runs):
            raise RuntimeError(f"{self!r}: call finish() first")
        return torch.stack([judged[which] for judged in self._judged])

    @property
    def rewards(self) -> Tensor:
        """The reward of every candidate, (N, B)."""
        return self._results(1)

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
        pixels = self._results(0)
        return pixels[self.index, torch.arange(len(self.prompts), device=pixels.device)]

    @property
    def images(self) -> list:
        """The best pictures as PIL images."""
        return to_pil(self.pixels)

    def __repr__(self) -> str:
        drawn, method = len(self._judged), self.best.sampler.method
        return f"<Best of {len(self.runs)} for {len(self.prompts)}: {drawn} drawn; {method!r}>"


def best_of(sampler: Sampler, n: int, reward: Callable | None = None) -> BestOf:
    """Best-of-N by a reward: `dk.best_of(sampler, 4, reward).start(prompts).finish().images`.

    reward: h, which judges the final pictures and needs no gradient; by default the method's own.
    """
    if not isinstance(sampler, Sampler):
        raise TypeError(f"best_of takes a dk.Sampler, got {sampler!r}")
    reward = sampler.method.reward if reward is None else reward
    as_reward(reward)  # raises TypeError for what is none
    return BestOf(sampler, whole("n", n, 1), reward)
