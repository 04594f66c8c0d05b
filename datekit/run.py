"""A run: a cursor over the states of a sampler. Pause, look, step, rewind, fork, save."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .errors import is_whole
from .files import load_tensors, save_tensors
from .history import History
from .methods import Method
from .rewards.base import score
from .sampler import Sampler
from .serialize import describe, differences, rebuild
from .types import RewardGradient, State, StepInfo, pack, to_pil, unpack

_FORMAT = 1  # of saved files


class Run:
    """Sampling in progress. Every state and every `StepInfo` so far is kept, so that any step can be gone back to.

    Iterating steps to the end; `break` pauses. An interrupt (KeyboardInterrupt) or an error inside a step leaves the run
    paused before that step.
    """

    def __init__(
        self, sampler: Sampler, state: State, past: list[tuple[StepInfo, State]] | None = None
    ) -> None:
        self.sampler = sampler
        self._start = state
        self._past = list(past or [])

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
        return History([info for info, _ in self._past])

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
        """Take n steps, or as many as are left; the info of the last. Several show a bar if they take more than two seconds.

        Raises RuntimeError where none is left.
        """
        if not is_whole(n) or n < 1:
            raise ValueError(
                f"step takes a whole number from 1 up, got {n!r}; to go back, use rewind(to=...)"
            )
        count = min(n, max(1, self.sampler.num_steps - self.state.i))
        with self._bar(count > 1) as bar:
            for _ in range(count):
                state, info = self.sampler.step(self.state)
                self._past.append(
                    (info, state)
                )  # one operation: an interrupt falls before or after it
                bar.update()
        return info

    def __iter__(self) -> Iterator[StepInfo]:
        while not self.done:
            yield self.step()

    def finish(self, *, progress: bool = True) -> Run:
        """Take all steps that are left and return the run itself; a bar appears if that takes more than two seconds."""
        with self._bar(progress) as bar:
            for _ in self:
                bar.update()
        return self

    def _bar(self, shown: bool):
        from tqdm.auto import tqdm

        hidden = not shown or bool(
            os.environ.get("TQDM_DISABLE")
        )  # which tqdm itself does not read in a notebook
        return tqdm(
            total=self.sampler.num_steps,
            initial=self.state.i,
            desc=type(self.sampler.method).__name__,
            unit="step",
            delay=2,
            leave=False,
            **({"disable": True} if hidden else {}),
        )

    def peek(self, reward=None) -> RewardGradient:
        """x0bar, h, grad_c h and its direction here and now; nothing advances. reward: the method's own by default."""
        return self.sampler.look(self.state, reward)

    def fork(self, method: Method | None = None, *, at: int | None = None, **changes) -> Run:
        """Another run with the same noise and the same past up to step `at` (now, by default) and another future.

        changes: further settings of the sampler (guidance_scale, micro_batch, ...); those that the past depends on
        (backbone, num_steps, solver, eta) cannot change. This run is not disturbed.
        """
        for name in self.sampler.fixed_by_the_past:
            if name in changes:
                raise ValueError(
                    f"a fork shares its past, so {name} cannot change; start a new run with another dk.Sampler"
                )
        sampler = self.sampler.replace(**({} if method is None else {"method": method}), **changes)
        return Run(sampler, self._start, self._past[: self._index(at)])

    def rewind(self, to: int | None = None) -> Run:
        """Go back to before step `to`, the first by default; later steps are forgotten (fork first to keep them). Returns the run itself."""
        del self._past[self._index(self._start.i if to is None else to) :]
        return self

    def _index(self, to: int | None) -> int:
        first, here = self._start.i, self.state.i
        to = here if to is None else to
        if not is_whole(to) or not first <= to <= here:
            raise ValueError(
                f"this run has been through steps {first} to {here}; {to!r} is none of them"
            )
        return int(to) - first

    @property
    def pixels(self) -> Tensor:
        """The pictures as a tensor (B, 3, H, W) in [0, 1]: the final ones, or x0bar at the running c while paused."""
        latents = self.state.xt if self.done else self.sampler.predict(self.state).x0bar
        return self.sampler.decode(latents).float().clamp(0, 1)

    @property
    def images(self) -> list:
        """The pictures as PIL images: the final ones, or x0bar at the running c while paused."""
        return to_pil(self.pixels)

    def rewards(self, reward=None) -> Tensor:
        """The reward of x0bar_hat, what the solver used, at each step so far; (T, B). Each is decoded and scored here."""
        reward = self.sampler.method.reward if reward is None else reward
        if reward is None:
            raise ValueError(
                f"{self.sampler.method!r} has no reward of its own; say which: run.rewards(reward)"
            )
        with torch.no_grad():
            rows = [
                score(
                    reward, self.sampler.decode(info.x0bar_hat), self.prompts, f" at step {info.i}"
                )
                for info, _ in self._past
            ]
        return torch.stack(rows) if rows else torch.zeros(0, len(self.prompts))

    def save(self, path: str | Path) -> Path:
        """Write the whole run, past included, to one file (torch format, plain tensors); atomically. Returns the path."""
        content = {
            "sampler": describe(self.sampler),
            "start": pack(self._start),
            "past": pack(self._past),
        }
        return save_tensors(path, "run", _FORMAT, content)

    @classmethod
    def load(cls, path: str | Path, sampler: Sampler | None = None) -> Run:
        """A saved run, ready to go on, bit for bit as if never interrupted.

        sampler: the one it was made with; may be left out where backbone and reward were loaded by name. Raises
        ValueError if the file is no run or was made with other settings.
        """
        content = load_tensors(path, "run", _FORMAT)
        sampler = rebuild(content["sampler"]) if sampler is None else sampler
        if other := differences(content["sampler"], describe(sampler)):
            raise ValueError(f"{path} was made with another sampler: {'; '.join(other)}")
        device, decode = sampler.backbone.device, sampler.backbone.decode
        past = [
            (info.replace(decode=decode), state) for info, state in unpack(content["past"], device)
        ]
        return cls(sampler, unpack(content["start"], device), past)

    def __repr__(self) -> str:
        what = (
            "finished"
            if self.done
            else f"paused before step {self.state.i} of {self.sampler.num_steps}, t = {self.state.t:g}"
        )
        return f"<Run of {len(self.prompts)}: {what}; {self.sampler.method!r}>"

    def _repr_html_(self) -> str:
        from .display import run_html

        return run_html(self)
