"""Runs by their settings, and what there is to see of their steps; nothing is computed twice."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..analysis.sweep import at_radius
from ..backbones import Backbone
from ..methods import Fixed
from ..rewards.base import score
from ..run import Run
from ..types import RewardGradient, StepInfo, to_pil
from .pictures import false_colours, heat, shares_by_token, size_map
from .settings import Rewards, Settings, method_of, sampler_of, stages

if TYPE_CHECKING:
    from PIL.Image import Image

# (step from which they act, settings), the first from step 0
Timeline = tuple[tuple[int, Settings], ...]
Weights = tuple[tuple[str, float], ...]
RUNS = 8  # runs remembered
STEPS = 16  # results remembered for each step of a run


@dataclass(frozen=True, eq=False)
class Frame:
    """A step as it is shown.

    i, t: the step; i is the number of steps for the final picture, which has the last step's maps.
    updated: whether the method did something in this step.
    h, values: the reward of the decoded picture, and that of each reward by name.
    grad_norm, distance: ||grad_c h|| before the update and ||c - c_org|| after it.
    pictures: by the names of `pictures.PICTURES`; scales: the largest value of each map.
    words, shares, moved: by token, its share of ||grad_c h||^2 and of ||c - c_org||^2.
    statements, things: of the oracle, where it looks on and knows the prompt.
    """

    i: int
    t: float
    updated: bool
    h: float
    values: dict[str, float]
    grad_norm: float
    distance: float
    pictures: dict[str, Image]
    scales: dict[str, float]
    words: tuple[str, ...]
    shares: tuple[float, ...]
    moved: tuple[float, ...]
    statements: tuple[tuple[str, bool], ...] = ()
    things: str = ""


class Library:
    """Runs of one backbone by timeline, and the frames of their steps. All of one sample.

    judged: whether the exact oracle of the shapes world looks on; notes: by prompt, what reading it
    gave a warning of, such as words beyond the text encoder's window.
    """

    def __init__(self, backbone: Backbone, rewards: Rewards, *, judged: bool) -> None:
        self.backbone, self.rewards, self.judged = backbone, rewards, judged
        self.notes: dict[str, list[str]] = {}
        self._runs: OrderedDict[Timeline, Run] = OrderedDict()
        self._known: OrderedDict[tuple, Any] = OrderedDict()

    def run(self, timeline: Timeline, i: int | None = None) -> Run:
        """The run of a timeline, which only ever goes further; with i, sampled up to step i.

        With i it is the run under the settings that act in step i.
        """
        key = plain(timeline if i is None else up_to(timeline, i))
        if key not in self._runs:
            self._runs[key] = self._start(key)
        self._runs.move_to_end(key)
        while len(self._runs) > RUNS:
            self._runs.popitem(last=False)
        run = self._runs[key]
        while i is not None and run.state.i < i:
            run.step()
        return run

    def _start(self, key: Timeline) -> Run:
        start, settings = key[-1]
        if start:
            past = self.run(key[:-1], start)
            method = method_of(settings, self.rewards)
            return past.fork(method, at=start, guidance_scale=settings.guidance_scale)
        sampler = sampler_of(settings, self.backbone, self.rewards)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = sampler.start([settings.prompt], seeds=[settings.seed])
        self.notes[settings.prompt] = list(dict.fromkeys(str(w.message) for w in caught))
        return run

    def info(self, timeline: Timeline, i: int) -> StepInfo:
        """What happened in step i."""
        run = self.run(timeline, i)
        return run.history[i] if run.state.i > i else run.step()

    def updated(self, timeline: Timeline, i: int) -> bool:
        """Whether the method moved the embedding in step i, or changed something else in it."""
        settings, info = up_to(timeline, i)[-1][1].plain(), self.info(timeline, i)
        beyond = any(stages(cls) - {"condition"} for cls in settings.methods)
        return info.updated or (beyond and ("when" not in settings.fields or i in settings.updates))

    def picture(self, timeline: Timeline, i: int) -> tuple[Image, dict[str, float]]:
        """The picture of step i and its rewards by name: of x0bar_hat, or of the end."""
        return self._once(("picture",), timeline, i, lambda: self._picture(timeline, i))

    @torch.no_grad()
    def _picture(self, timeline: Timeline, i: int) -> tuple[Image, dict[str, float]]:
        run = self.run(timeline, i)
        latents = run.state.xt if i == run.sampler.num_steps else self.info(timeline, i).x0bar_hat
        images = run.sampler.decode(latents)
        values = {
            name: score(reward, images, run.prompts, f" at step {i}").item()
            for name, reward in self.rewards.parts.items()
        }
        return to_pil(images)[0], values

    def h(self, timeline: Timeline, i: int, weights: Weights) -> float:
        """The weighted reward of that picture."""
        values = self.picture(timeline, i)[1]
        return sum(weight * values[name] for name, weight in weights if weight)

    def look(self, timeline: Timeline, i: int, weights: Weights) -> RewardGradient:
        """x0bar, h and its gradient where the method looks in step i, whether or not it did."""
        return self._once(("look", weights), timeline, i, lambda: self._look(timeline, i, weights))

    def _look(self, timeline: Timeline, i: int, weights: Weights) -> RewardGradient:
        run, info = self.run(timeline, i), self.info(timeline, i)
        reward = self.rewards.combined(weights)
        if info.grad is None or run.sampler.method.reward is not reward:
            return run.fork(at=i).peek(reward)
        kept = {field.name: getattr(info, field.name) for field in fields(RewardGradient)}
        return RewardGradient(**kept | {"c": info.at})

    def looks(self, timeline: Timeline, weights: Weights) -> dict[int, RewardGradient]:
        """By step, what `look` has seen so far."""
        keys = [(i, self._key(("look", weights), timeline, i)) for i in range(num_steps(timeline))]
        return {i: self._known[key] for i, key in keys if key in self._known}

    def radius(
        self, timeline: Timeline, i: int, weights: Weights, rho: float
    ) -> tuple[Tensor, Tensor]:
        """The picture (1, 3, H, W) and reward (1,) of x0bar at c + rho eps_hat in step i."""
        look, reward = self.look(timeline, i, weights), self.rewards.combined(weights)
        run = self.run(timeline, i).fork(at=i)
        make = partial(at_radius, run.sampler, run.state, look, reward, rho)
        return self._once(("radius", weights, rho), timeline, i, make)

    def knows(self, *what, timeline: Timeline, i: int) -> bool:
        """Whether ("frame", weights) or ("radius", weights, rho) need only be looked up."""
        return self._key(what, timeline, i) in self._known

    def frame(self, timeline: Timeline, i: int, weights: Weights) -> Frame:
        """Everything that is shown of step i under the reward of these weights."""
        make = partial(self._frame, timeline, i, weights)
        return self._once(("frame", weights), timeline, i, make)

    def _frame(self, timeline: Timeline, i: int, weights: Weights) -> Frame:
        last = min(i, num_steps(timeline) - 1)
        look, info = self.look(timeline, last, weights), self.info(timeline, last)
        state = self.run(timeline, i).states[i]
        picture, values = self.picture(timeline, i)
        maps = {
            "grad": size_map(look.grad_x0bar),
            "guidance": size_map(self.change(timeline, last)),
        }
        pictures = {
            "xt": false_colours(state.xt),
            "x0bar": false_colours(info.x0bar_hat if i == last else state.xt),
            **{name: heat(values) for name, values in maps.items()},
            "decoded": picture,
        }
        tokens = state.cond_org.tokens[0] if state.cond_org.tokens else None
        words, shares, moved = shares_by_token(tokens, look.grad[0], (info.c - state.c_org)[0])
        return Frame(
            i=i,
            t=state.t,
            updated=self.updated(timeline, last),
            h=self.h(timeline, i, weights),
            values=values,
            grad_norm=look.grad_norm.item(),
            distance=info.distance.item(),
            pictures=pictures,
            scales={name: values.max().item() for name, values in maps.items()},
            words=words,
            shares=shares,
            moved=moved,
            **self._verdict(picture, state.prompts),
        )

    @torch.no_grad()
    def change(self, timeline: Timeline, i: int) -> Tensor:
        """x0bar_hat - x0bar(xt, c_org), (1, C, h, w): what the method has changed in step i."""
        info, run = self.info(timeline, i), self.run(timeline, i)
        state, fed = run.states[i], run.states[i + 1].cond
        if not self.updated(timeline, i) and fed.same(state.cond_org):
            return torch.zeros_like(info.x0bar_hat)
        plain = run.sampler.replace(method=Fixed()).predict(state, state.cond_org)
        return info.x0bar_hat - plain.x0bar

    def _verdict(self, picture: Image, prompts: tuple[str, ...]) -> dict[str, Any]:
        if not self.judged:
            return {}
        from ..shapes.oracle import judge

        try:
            verdict = judge([picture], prompts)[0]
        except ValueError:  # the prompt is outside the grammar
            return {}
        things = [f"{thing.colour} {thing.shape}" for thing in verdict.things]
        return {"statements": verdict.statements, "things": ", ".join(things) or "nothing"}

    def _key(self, what: tuple, timeline: Timeline, i: int) -> tuple:
        return (*what, plain(up_to(timeline, i)), i)

    def _once(self, what: tuple, timeline: Timeline, i: int, make: Callable[[], Any]) -> Any:
        key = self._key(what, timeline, i)
        if key not in self._known:
            self._known[key] = make()
        self._known.move_to_end(key)
        while len(self._known) > STEPS * (num_steps(timeline) + 1):
            self._known.popitem(last=False)
        return self._known[key]


def up_to(timeline: Timeline, i: int) -> Timeline:
    """The settings on which step i depends, not those that act later."""
    return tuple(row for row in timeline if row[0] <= i)


def changes(timeline: Timeline) -> Timeline:
    """Without the settings that sample the same as those before them."""
    rows: list[tuple[int, Settings]] = []
    for start, settings in timeline:
        if not rows or settings.plain() != rows[-1][1].plain():
            rows.append((start, settings))
    return tuple(rows)


def plain(timeline: Timeline) -> Timeline:
    """The same trajectory in one way of writing it."""
    return tuple((start, settings.plain()) for start, settings in changes(timeline))


def acting_from(start: int, timeline: Timeline, settings: Settings) -> Timeline:
    """A timeline with these settings from a step on."""
    return (*(row for row in timeline if row[0] < start), (start, settings))


def num_steps(timeline: Timeline) -> int:
    """Steps of the whole run."""
    return timeline[-1][1].num_steps
