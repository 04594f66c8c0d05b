"""ReNO: the initial noise of a sampler of few steps, optimised for a reward of its pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import noise
from .errors import check_finite, check_gradient, finite, whole
from .files import load_tensors, save_tensors
from .registry import Registered, option
from .rewards.base import as_reward, decoder_of, score
from .run import Run
from .sampler import Sampler
from .serialize import describe, differences, pack, rebuild, unpack
from .tensors import norm, per_sample, to_pil
from .types import State

FORMAT = 1  # of saved files


@dataclass(frozen=True)
class ReNO(Registered, register=True):
    """Reward-based noise optimisation (arXiv 2406.04312) of a sampler of one or a few steps.

    The initial noise z of unit variance, d numbers a sample, goes down the gradient of

        loss(z) = -h(x0(z)) + regularization (||z||^2 / 2 - (d - 1) log ||z||),

    whose second part is the negative log-likelihood of the norm of d normal numbers, by stochastic
    gradient descent with Nesterov's momentum, the gradient clipped in each sample:
        g = min(1, clip / ||grad loss||) grad loss
        v <- momentum v + g,  z <- z - rate (g + momentum v)

    The gradient goes through all steps of the sampler, whose step noise stays that of the seeds,
    and to which a method's update of the embedding is a constant. The noise with the highest h is
    kept. The defaults are the authors': 50 iterations, of which their code takes the last without a
    step, rate 5, momentum 0.9, clip 0.1 and regularization 0.01, for one step of SD-Turbo and a
    reward that is 5 HPSv2 + ImageReward + CLIP + PickScore, where gradients are mostly clipped.

    Zero iterations are the sampler itself.
    """

    kind = "search"
    sampler: Sampler
    reward: Any = option(None, help="The reward h, by default that of the sampler's method.")
    iterations: int = option(50, range=(0, 200), help="How many gradient steps the noise takes.")
    rate: float = option(5.0, range=(0.0, 50.0), help="The step size.")
    momentum: float = option(0.9, range=(0.0, 1.0), help="What is kept of the last step.")
    clip: float = option(0.1, range=(0.0, 10.0), help="The longest gradient of a sample.")
    regularization: float = option(0.01, range=(0.0, 1.0), help="The weight of the noise's norm.")

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError for a setting that is not of its kind or out of range."""
        if not isinstance(self.sampler, Sampler):
            raise TypeError(f"ReNO takes a dk.Sampler, got {type(self.sampler).__name__}")
        if self.reward is None:
            object.__setattr__(self, "reward", self.sampler.method.reward)
        as_reward(self.reward)  # raises TypeError for what is none
        whole("iterations", self.iterations, 0)
        for name in ("rate", "momentum", "clip", "regularization"):
            finite(name, getattr(self, name))

    def start(self, prompts: Sequence[str] | str, **kwargs: Any) -> NoiseSearch:
        """A search paused before it has judged anything; arguments as for `Sampler.init`."""
        start = self.sampler.init(prompts, **kwargs)
        z = kwargs.get("latents")
        if z is None:
            z = noise.initial(start.seeds, start.xt.shape[1:], self.sampler.backbone.dtype)
        z = z.to(start.xt.device, torch.promote_types(start.xt.dtype, torch.float32))
        return NoiseSearch(self, start, [z.detach()], [], torch.zeros_like(z))

    def ascend(self, start: State, z: Tensor) -> tuple[Tensor, Tensor]:
        """h of the sampler's pictures from a noise, (B,), and the clipped gradient of the loss."""
        sizes, found = self.sampler.memory.micro_batch or len(z), []
        for first in range(0, len(z), sizes):
            rows = slice(first, first + sizes)
            found.append(self._part(start[rows], z[rows], first))
        h, gradient = (torch.cat(each) for each in zip(*found, strict=True))
        check_finite(gradient, "the gradient in the initial noise is not finite")
        short = (self.clip / (norm(gradient) + 1e-6)).clamp(max=1)
        return h, gradient * per_sample(short, gradient)

    def _part(self, start: State, z: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """h and the gradient of the loss for some of the samples, the first of that number."""
        backbone, memory = self.sampler.backbone, self.sampler.memory
        check_gradient(z)
        leaf = z.detach().requires_grad_()
        with torch.enable_grad(), backbone.checkpointing(memory.checkpointing):
            state = noisy(self.sampler, start, leaf)
            while state.i < self.sampler.num_steps:
                state, _ = self.sampler.step(state)
            images = decoder_of(self.reward, backbone)(state.xt)
            h = score(self.reward, images, start.prompts, " of a noise", first)
            length, numbers = leaf.flatten(1).norm(dim=1), leaf[0].numel()
            likely = length**2 / 2 - (numbers - 1) * length.log()
            loss = -h + self.regularization * likely.to(h)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return h.detach(), gradient


def noisy(sampler: Sampler, start: State, z: Tensor) -> State:
    """The start with another noise, (B, C, h, w), of unit variance; carries gradient to it."""
    sigma = sampler.solver_for(z.shape).init_noise_sigma
    return start.replace(xt=z.to(start.xt.dtype) * sigma)


class NoiseSearch:
    """A `ReNO` in progress.

    start: the sampler's first state; path: the noises so far, (B, C, h, w) each, the first that of
    the seeds; rewards: h of those that were judged, (B,) each; velocity: v.
    """

    def __init__(
        self,
        search: ReNO,
        start: State,
        path: list[Tensor],
        rewards: list[Tensor],
        velocity: Tensor,
    ) -> None:
        self.search, self.start = search, start
        self.path, self.rewards, self.velocity = path, rewards, velocity

    def __repr__(self) -> str:
        judged = f"{len(self.rewards)} of {self.search.iterations + 1} noises are judged"
        return f"<NoiseSearch: {judged}, {self.search.sampler!r}>"

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts, one a sample."""
        return self.start.prompts

    @property
    def done(self) -> bool:
        """Whether every noise has been judged."""
        return len(self.rewards) > self.search.iterations

    def step(self) -> Tensor:
        """Judge the newest noise and take the next step from it; its h, (B,)."""
        if self.done:
            raise RuntimeError(f"all {self.search.iterations} iterations are taken")
        z, settings = self.path[-1], self.search
        h, gradient = settings.ascend(self.start, z)
        if len(self.rewards) < settings.iterations:
            velocity = settings.momentum * self.velocity + gradient
            z = z - settings.rate * (gradient + settings.momentum * velocity)
            self.path, self.velocity = [*self.path, z], velocity
        self.rewards = [*self.rewards, h]
        return h

    def finish(self, *, progress: bool = True) -> NoiseSearch:
        """Take all iterations that are left, and return this object itself."""
        hidden = not progress or "TQDM_DISABLE" in os.environ
        left = range(len(self.rewards), self.search.iterations + 1)
        for _ in tqdm(left, delay=2, leave=False, disable=hidden):
            self.step()
        return self

    @property
    def index(self) -> Tensor:
        """Which noise of the path is the best so far, (B,); the earliest of equals."""
        if not self.rewards:
            raise RuntimeError("no noise is judged yet: call step() or finish()")
        return torch.stack(self.rewards).argmax(0)

    @property
    def run(self) -> Run:
        """A run of the sampler from the best noise so far, paused before its first step."""
        best = [self.path[j][n] for n, j in enumerate(self.index.tolist())]
        return Run(self.search.sampler, noisy(self.search.sampler, self.start, torch.stack(best)))

    @property
    def pixels(self) -> Tensor:
        """The pictures from the best noise so far, (B, 3, H, W) in [0, 1]."""
        return self.run.finish(progress=False).pixels

    @property
    def images(self) -> list:
        """The `pixels` as PIL images."""
        return to_pil(self.pixels)

    def save(self, path: str | Path) -> Path:
        """Write the search to one file of tensors, whole or not at all; its path."""
        told = {"search": describe(self.search), "start": pack(self.start), "path": self.path}
        told |= {"rewards": self.rewards, "velocity": self.velocity}
        return save_tensors(path, "noise search", FORMAT, told)

    @classmethod
    def load(cls, path: str | Path, search: ReNO | None = None) -> NoiseSearch:
        """The search of a file, to go on to the same bits. ValueError for another or for none.

        search: the one it was made with; it may be left out where all of it was loaded by name.
        """
        content = load_tensors(path, "noise search", FORMAT)
        search = rebuild(content["search"]) if search is None else search
        if other := differences(content["search"], describe(search)):
            raise ValueError(f"{path} was made with other settings: {'; '.join(other)}")
        names = ("start", "path", "rewards", "velocity")
        parts = [unpack(content[name], search.sampler.backbone.device) for name in names]
        return cls(search, *parts)
