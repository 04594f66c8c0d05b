"""A run: a cursor over the states of a sampler. Pause, look, step, rewind, fork, save."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .display import run_html
from .errors import check_finite, whole
from .files import damaged, load_tensors, save_tensors
from .methods import Method
from .rewards.base import as_reward, score
from .serialize import describe, differences, pack, rebuild, unpack
from .tensors import NO_PICTURE, to_pil
from .types import RewardGradient, State, StepInfo

if TYPE_CHECKING:
    from .sampler import Sampler

FORMAT = 6  # of saved files


class History(tuple[StepInfo, ...]):
    """The `StepInfo`s of a run, in order."""

    @property
    def updated(self) -> list[int]:
        """The steps in which the embedding was moved."""
        return [info.i for info in self if info.updated]

    def stack(self, name: str) -> Tensor:
        """One field of every step that has it, (T', B, ...); ValueError where no step does."""
        values = [getattr(info, name) for info in self if getattr(info, name) is not None]
        if not values:
            raise ValueError(f"no step so far recorded {name!r}, as dk.DATE does where it updates")
        return torch.stack(values)

    def cosine(self, name: str = "direction") -> Tensor:
        """Cosines of a field between the steps that have it, (T', T'), averaged over the samples.

        A sample whose field is zero at a step has none there, and does not count.
        """
        rows = self.stack(name).flatten(2).cpu().double()
        rows = rows / rows.norm(dim=2, keepdim=True)
        return torch.einsum("sbn,tbn->bst", rows, rows).nanmean(0)

    def __repr__(self) -> str:
        return f"<History of {len(self)} steps, updated in {self.updated}>"


class Run:
    """Sampling in progress. Every state and every `StepInfo` so far is kept, to be gone back to.

    Iterating steps to the end; `break` pauses. An interrupt (KeyboardInterrupt) or an error inside
    a step leaves the run paused before that step.
    """

    def __init__(self, sampler: Sampler, state: State, past: list | None = None) -> None:
        self.sampler, self._start = sampler, state
        self._past: tuple[tuple[StepInfo, State], ...] = tuple(past or ())  # a copy shares it

    @property
    def state(self) -> State:
        """Where the run stands: `xt, i, t, c, c_org, ...`."""
        return self._past[-1][1] if self._past else self._start

    @property
    def states(self) -> list[State]:
        """All states so far, the first before any step."""
        return [self._start, *(state for _, state in self._past)]

    @property
    def history(self) -> History:
        """What happened in each step so far."""
        return History(info for info, _ in self._past)

    @property
    def done(self) -> bool:
        """Whether every step has been taken."""
        return self.state.i >= self.sampler.num_steps

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts, one a sample."""
        return self._start.prompts

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, one a sample, also those that were drawn fresh."""
        return self._start.seeds

    def step(self, n: int = 1) -> StepInfo:
        """Take n steps, or as many as are left; the info of the last. RuntimeError for none."""
        left = self.sampler.num_steps - self.state.i
        for _ in range(min(whole("n", n, 1), max(1, left))):
            state, info = self.sampler.step(self.state)
            self._past += ((info, state),)  # at once: an interrupt falls before or after it
        return info

    def __iter__(self) -> Iterator[StepInfo]:
        while not self.done:
            yield self.step()

    def finish(self, *, progress: bool = True) -> Run:
        """Take all steps that are left, with a bar after two seconds, and return the run itself."""
        hidden = not progress or "TQDM_DISABLE" in os.environ  # not read by tqdm in a notebook
        left = self.sampler.num_steps - self.state.i
        for _ in tqdm(self, total=left, delay=2, leave=False, disable=hidden):
            pass
        return self

    def peek(self, reward: Callable | None = None, c: Tensor | None = None) -> RewardGradient:
        """x0bar, h, grad_c h and its direction here and now; nothing advances.

        reward: the method's own by default; c: (B, L, D), by default where the method looks.
        """
        method, state = self.sampler.method, self.state
        if c is not None and getattr(c, "shape", None) != state.c.shape:
            got = getattr(c, "shape", type(c).__name__)
            raise ValueError(f"c must be a tensor of shape {tuple(state.c.shape)}, got {got}")
        cond = method.gradient_point(state) if c is None else state.cond.replace(sequence=c)
        with self.sampler.pause(state) as denoiser:
            return denoiser.value_and_grad(method.reward if reward is None else reward, cond)

    def fork(self, method: Method | None = None, *, at: int | None = None, **changes: Any) -> Run:
        """Another run of the same noise and past up to step `at`, by default now; this one stays.

        changes: further settings of the sampler (guidance_scale, micro_batch, ...). Raises
        ValueError for those that the past depends on (backbone, num_steps, solver, eta).
        """
        if shared := ", ".join(changes.keys() & {*self.sampler.fixed_by_the_past}):
            raise ValueError(f"a fork shares its past, so {shared} cannot change; start a new run")
        if method is not None:
            changes["method"] = method
        return Run(self.sampler.replace(**changes), self._start, self._past[: self._index(at)])

    def rewind(self, to: int | None = None) -> Run:
        """Go back to before step `to`, the first by default, forget what came later; the run."""
        self._past = self._past[: self._index(self._start.i if to is None else to)]
        return self

    def _index(self, to: int | None) -> int:
        """How many steps of the past lie before step `to`, by default all."""
        first, here = self._start.i, self.state.i
        return whole("a step of this run", here if to is None else to, first, here) - first

    @property
    def pixels(self) -> Tensor:
        """The pictures, (B, 3, H, W) in [0, 1]; while paused those of x0bar at the running c.

        Raises NonFiniteError where the decoder gives NaN or infinity.
        """
        latents = self.state.xt if self.done else self.sampler.predict(self.state).x0bar
        decoded = self.sampler.decode(latents).float()
        check_finite(decoded, NO_PICTURE)  # before infinity becomes white
        return decoded.clamp(0, 1)

    @property
    def images(self) -> list:
        """The `pixels` as PIL images."""
        return to_pil(self.pixels)

    @torch.no_grad()
    def rewards(self, reward: Callable | None = None) -> Tensor:
        """The reward of what the solver used, x0bar_hat, at each step so far; (T, B)."""
        reward, rows = as_reward(self.sampler.method.reward if reward is None else reward), []
        for info in self.history:
            images = self.sampler.decode(info.x0bar_hat)
            rows.append(score(reward, images, self.prompts, f" at step {info.i}"))
        return torch.stack(rows) if rows else torch.zeros(0, len(self.prompts))

    def save(self, path: str | Path) -> Path:
        """Write the run with its past to one file of tensors, whole or not at all; its path."""
        past = pack({"start": self._start, "past": self._past})
        return save_tensors(path, "run", FORMAT, {"sampler": describe(self.sampler)} | past)

    @classmethod
    def load(cls, path: str | Path, sampler: Sampler | None = None) -> Run:
        """The run of a file, to go on to the same bits. ValueError for no run or other settings.

        sampler: the one it was made with; it may be left out where all of it comes along.
        """
        content = load_tensors(path, "run", FORMAT)
        with damaged(path):
            sampler = rebuild(content["sampler"]) if sampler is None else sampler
            if other := differences(content["sampler"], describe(sampler)):
                raise ValueError(f"{path} was made with another sampler: {'; '.join(other)}")
            start, past = unpack((content["start"], content["past"]), sampler.backbone.device)
            wanted = len(start.prompts), sampler.backbone.latent_shape()[0], *start.xt.shape[2:]
            if any(state.xt.shape != wanted for state in (start, *(state for _, state in past))):
                raise TypeError("its latents are not of this model and these prompts")
            known = {"decode": sampler.backbone.decode}
            past = [(info.replace(**known), state) for info, state in past]
            return cls(sampler, start, past)

    def __repr__(self) -> str:
        where = f"paused before step {self.state.i} of {self.sampler.num_steps}, "
        where = "finished" if self.done else f"{where}t = {self.state.t:g}"
        return f"<Run of {len(self.prompts)}: {where}; {self.sampler.method!r}>"

    def _repr_html_(self) -> str:
        return run_html(self)
