"""What the instruments share: the step they look at, its gradient, and how results show."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import finite
from ..methods import Method
from ..run import Run
from ..sampler import Sampler
from ..types import Conditioning, Record, RewardGradient, State

if TYPE_CHECKING:
    from pandas import DataFrame


class Result(Record):
    """What an instrument measured: a frozen dataclass with a table, `to_frame()`."""

    @property
    def title(self) -> str:
        """What was measured and how: the fields that are one number or word."""
        facts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float):
                value = f"{value:.4g}"
            if isinstance(value, (int, str)):
                facts.append(f"{field.name} = {value}")
        return ", ".join(facts)

    def to_frame(self) -> DataFrame:
        """The numbers as a pandas table."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.title}>"

    def _repr_html_(self) -> str:
        table = self.to_frame().to_html(index=False, border=0, float_format="{:.4g}".format)
        return f"<div><b>{type(self).__name__}</b>: {html.escape(self.title)}{table}</div>"


@dataclass(frozen=True, eq=False, repr=False)
class StepResult(Result):
    """A result of one paused step i at timestep t, with one prompt and one seed a sample."""

    i: int
    t: float
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def frame_of(self, columns: dict[str, Tensor]) -> DataFrame:
        """One row a sample: its prompt, its seed, and these columns, (B,) each."""
        import pandas as pd

        numbers = {name: values.tolist() for name, values in columns.items()}
        return pd.DataFrame({"prompt": self.prompts, "seed": self.seeds} | numbers)


def step_fields(state: State) -> dict:
    """The fields of a `StepResult` at a state."""
    return {"i": state.i, "t": state.t, "prompts": state.prompts, "seeds": state.seeds}


def paused(run: Run | State, sampler: Sampler | None = None) -> tuple[State, Sampler]:
    """The state and sampler of a run, or of a state that comes with its sampler.

    Raises TypeError for anything else, RuntimeError where no step is left to look at, ValueError
    for a method that moves the pooled text vector.
    """
    if isinstance(run, Run):
        state, sampler = run.state, sampler or run.sampler
    elif isinstance(run, State) and sampler is not None:
        state = run
    else:
        got = type(run).__name__
        raise TypeError(
            f"give a Run, or a State with its sampler: f(state, sampler=...); got {got}"
        )
    sampler.denoiser(state)  # raises where no step is left
    check_sequence_only(sampler.method)
    return state, sampler


def states_of(
    run: Run | State, steps: Sequence[int] | None, sampler: Sampler | None
) -> tuple[list[State], Sampler]:
    """The states of a run at some steps of its past, or the paused one, and their sampler.

    Raises ValueError for steps that have not been taken yet.
    """
    if steps is None:
        state, sampler = paused(run, sampler)
        return [state], sampler
    if not isinstance(run, Run):
        raise TypeError("steps are looked up in the past of a Run; give the Run, or no steps")
    known = {state.i: state for state in run.states if state.i < run.sampler.num_steps}
    missing = [i for i in steps if i not in known]
    if missing:
        been = f"it has been at {min(known)} to {max(known)}"
        raise ValueError(f"this run has not come to step(s) {missing}; {been}")
    return [known[i] for i in steps], sampler or run.sampler


def check_sequence_only(method: Method) -> None:
    """Raise ValueError for a method that moves the pooled text vector."""
    for part in parts_of(method):
        if getattr(part, "update", None) in ("pooled", "both"):
            rule = "the instruments follow the sequence only: use update='sequence'"
            raise ValueError(f"{part!r} moves the pooled text vector; {rule}")


def reward_of(sampler: Sampler, reward: Callable | None) -> Callable:
    """The reward asked for, by default the method's own. Raises ValueError where there is none."""
    reward = sampler.method.reward if reward is None else reward
    if reward is None:
        raise ValueError(f"{sampler.method!r} has no reward of its own; say which: reward=...")
    return reward


def rho_of(sampler: Sampler, rho: float | None) -> float:
    """The radius asked for, by default the method's own. Raises ValueError below 0 or for none."""
    rho = getattr(sampler.method, "rho", None) if rho is None else rho
    if rho is None:
        raise ValueError(f"{sampler.method!r} has no radius of its own; say which: rho=...")
    if callable(rho):
        raise ValueError(f"{rho!r} chooses a radius at each update; say which to look at: rho=...")
    return finite("rho", rho)


def look(
    sampler: Sampler, state: State, reward: Callable, cond: Conditioning | None = None
) -> RewardGradient:
    """The reward and its gradient at an embedding, by default where the method takes it."""
    cond = sampler.method.gradient_point(state) if cond is None else cond
    with sampler.paused(state) as denoiser:
        return denoiser.value_and_grad(reward, cond)


def level(sampler: Sampler, state: State) -> tuple[float, float]:
    """alpha and sigma of the step at which a state is paused."""
    return sampler.solver_for(state.xt.shape).level(state.i)


def score(sampler: Sampler, state: State, c: Tensor | Conditioning | None = None) -> Tensor:
    """s(xt, c) = -eps / sigma, with the guidance of the sampler, (B, C, H, W); carries gradient."""
    return -sampler.predict(state, c).eps / level(sampler, state)[1]


def base_of(method: Method, state: State) -> Conditioning:
    """The embedding that a method displaces: the running one for anchor "running", else c_org.

    The gradient is taken there too, except for anchor "reset": it takes the gradient at the running
    embedding and displaces c_org.
    """
    running = any(getattr(part, "anchor", None) == "running" for part in parts_of(method))
    return state.cond if running else state.cond_org


def parts_of(method: Method) -> tuple[Method, ...]:
    """The methods that a composition adds up; of any other method itself."""
    return getattr(method, "parts", (method,))
