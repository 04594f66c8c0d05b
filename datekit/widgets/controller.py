"""The explorer without its looks: what is set, how far the run has come, which step is on screen.

The controls say what is wanted (`change`, `scrub`, `fork`, `join`), at once and at no cost.
`work()` then does what is lacking, one step of sampling or one picture at a time, and may be left
and taken up again between any two: that is how a slider that moves during a long computation
cancels it. There is no widget, no thread and no clock in here.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from .. import shapes
from ..backbones import SHIPPED, Backbone, wrap
from ..errors import unknown
from ..feynman_kac import FKSteering
from ..inputs import check_seeds
from ..methods import Method
from ..reno import NoiseSearch, ReNO
from ..rewards.base import as_reward, score
from ..run import Run
from ..sampler import Sampler
from ..schedules import every
from ..tensors import to_pil
from .settings import BESIDE, Settings, Timeline, near, plain_timeline, until

ROWS = {"fixed": "fixed embedding", "run": "this run", "old": "before the fork"}
PAST = ("prompt", "seed", "num_steps", "solver")  # another one of these begins another run
AHEAD = 3  # positions of rho on either side that are sampled before anybody asks
START = {"eta": 1.0, "iterations": 8}  # of FKSteering; of ReNO, so that a draft comes in seconds
TWINS = {"FKSteering": {"particles": 1}}  # what makes a twin, where it is not the method Fixed
RUNS = 2 * AHEAD + 6  # that are remembered, with as many frames as they have
EXAMPLES = ("a red circle left of a blue square", "a green star", "three yellow triangles")


Asked = tuple[Timeline, int]  # the settings up to a step, and the step


@dataclass(frozen=True, eq=False)
class Frame:
    """A step as it is shown; i is the number of steps for the end, with the last step's numbers."""

    i: int
    steps: int  # of its run; a draft has fewer
    picture: Image  # x0bar_hat, or the end, decoded
    values: dict[str, float]  # its rewards by name
    updated: bool  # whether the method did something
    distance: float  # ||c - c_org||
    verdict: shapes.Verdict | None  # of the oracle, where it looks on and knows the prompt
    sample: int  # which one of its run it is, and in words why
    told: str


class Controller:
    """An exploration: settings that become runs, of one sample.

    rewards: one, or a dict by name; the settings choose one, the others look on. settings: fields
    of `Settings` and options of the methods, such as rho. Raises TypeError or ValueError for what
    does not fit.

    settings: as the controls stand;
    timelines: by the names of `ROWS`, which settings act from which step;
    drafts: by the same names, runs of few steps that stand in for a final picture at first;
    base: the step from which changes act, 0 or the fork;
    at: the step that is asked for, the number of steps for the final picture;
    runs, frames: what is known, also a search that is to give a run its noise;
    found: by the settings of a run that began with a search, what that found;
    notes: by prompt, what reading it gave a warning of.
    """

    def __init__(
        self, backbone: Any, rewards: Callable | Mapping[str, Callable], **settings: Any
    ) -> None:
        self.backbone = backbone if isinstance(backbone, Backbone) else wrap(backbone)
        if not isinstance(rewards, Mapping):
            rewards = {as_reward(rewards).name: rewards}
        if not rewards:
            raise ValueError("rewards are empty: give one reward at least")
        self.rewards = {name: as_reward(reward) for name, reward in rewards.items()}
        advice = self.backbone.recommended
        first = Settings(
            reward=next(iter(self.rewards)),
            guidance_scale=advice.guidance_scale,
            solver=advice.solver,
            num_steps=min(20, advice.num_steps),
        )
        self.oracle = self.backbone.source in SHIPPED
        tokens = {"tokens": self.backbone.source} if self.oracle else {}
        self.settings = first.change(**START | tokens | settings)
        self.sampler(self.settings)
        self.base, self.at = 0, self.num_steps
        self.timelines: dict[str, Timeline] = {}
        self.drafts: dict[str, Asked] = {}
        self.runs: dict[Timeline, Run | NoiseSearch] = {}
        self.frames: dict[Asked, Frame] = {}
        self.found: dict[Timeline, str] = {}
        self.notes: dict[str, list[str]] = {}
        self._act()

    # what is wanted

    def sampler(self, settings: Settings) -> Sampler | ReNO:
        """What starts runs of settings. Raises ValueError or TypeError if they do not fit."""
        check_seeds(settings.seed)
        if settings.reward not in ("", *self.rewards):
            raise unknown("reward", settings.reward, self.rewards)
        plain = settings.plain()
        given = {"reward": self.rewards[plain.reward]} if plain.reward else {}
        made, given = plain.method_class, given | dict(plain.options)
        make = partial(made, **given) if made is FKSteering else Sampler
        sampler = make(
            self.backbone,
            made(**given) if issubclass(made, Method) else None,
            num_steps=settings.num_steps,
            guidance_scale=settings.guidance_scale,
            solver=settings.solver,
        )
        if sampler.num_steps != settings.num_steps:
            more = f"{sampler.solver} takes {sampler.num_steps} steps for {settings.num_steps}"
            raise ValueError(f"{more}, which the explorer does not show; take another solver")
        return ReNO(sampler, **given) if made is ReNO else sampler

    def change(self, **changes: Any) -> None:
        """Other settings, which act from the fork on, or else from the first step.

        Raises ValueError or TypeError for settings that do not fit, and then changes nothing.
        """
        new, old = self.settings.change(**changes), self.settings
        self.sampler(new)
        if not (anew := any(getattr(new, name) != getattr(old, name) for name in PAST)):
            self._rows(new)  # raises for what cannot act from the fork on
        self.settings = new
        self.at = new.num_steps if self.at == old.num_steps else min(self.at, new.num_steps)
        if anew:
            self.join()
        else:
            self._act()

    def scrub(self, to: int) -> None:
        """Show step `to`, which is sampled first if need be. Raises ValueError beyond the run."""
        if to not in range(self.num_steps + 1):
            raise ValueError(f"this run has steps 0 to {self.num_steps} (the end), not {to!r}")
        self.at = to

    def fork(self) -> None:
        """Keep the run for comparison; from now on changes act from the step on screen on."""
        self.base, self.timelines["old"] = self.last, self.timelines["run"]

    def join(self) -> None:
        """Forget the fork: the settings as they stand act from the first step on."""
        self.base = 0
        self.timelines.pop("old", None)
        self._act()

    def _rows(self, settings: Settings) -> Timeline:
        """The run's timeline if these settings act from `base` on. ValueError if they cannot."""
        past = [row for row in self.timelines.get("run", ()) if row[0] < self.base]
        rows = plain_timeline([*past, (self.base, settings)])
        whole = [settings.method for _, settings in rows if settings.method in BESIDE]
        if whole and len(rows) > 1:
            raise ValueError(f"{whole[0]} shapes a run as a whole, so it takes no fork: join first")
        return rows

    def _act(self) -> None:
        """Let the settings act from `base` on, in a run and in its twin."""
        rows = self._rows(self.settings)
        twin = [(i, s.change(**TWINS.get(s.method, {"method": "Fixed"}))) for i, s in rows]
        self.timelines |= {"fixed": plain_timeline(twin), "run": rows}
        self.drafts = {}
        for name, timeline in self.timelines.items():
            short = timeline[0][1].draft()
            if short and len(timeline) == 1:
                with contextlib.suppress(ValueError):  # of a solver that takes more steps
                    self.sampler(short)
                    self.drafts[name] = plain_timeline([(0, short)]), short.num_steps

    # where things stand

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.settings.num_steps

    @property
    def head(self) -> int:
        """The first step whose picture is not known yet in all rows."""
        for i in range(self.num_steps):
            if not self._known(i):
                return i
        return self.num_steps

    def _asked(self, row: str, i: int) -> Asked:
        return until(i, self.timelines[row]), i

    def _known(self, i: int) -> bool:
        return all(self._asked(row, i) in self.frames for row in self.timelines)

    @property
    def answered(self) -> bool:
        """Whether the pictures that are asked for are there."""
        return self._known(self.at)

    @property
    def shown(self) -> int:
        """The step on screen: the one asked for, as far as the rows have come."""
        if self.answered:
            return self.at
        lacking = (self._asked(row, self.at) for row in self.timelines)
        runs = [self.runs.get(rows) for rows, i in lacking if (rows, i) not in self.frames]
        return min(self.at, *(run.state.i if isinstance(run, Run) else 0 for run in runs))

    @property
    def last(self) -> int:
        """The step on screen; the last one where the final picture is."""
        return min(self.shown, self.num_steps - 1)

    @property
    def updates(self) -> tuple[int, ...]:
        """The steps in which the method acts: before the fork as it went, from there as is set."""
        kept = []
        for i in range(self.num_steps):
            rows, _ = asked = self._asked("run", i)
            known = self.frames.get(asked) if i < self.base else None
            if known.updated if known else i in rows[-1][1].updates:
                kept.append(i)
        return tuple(kept)

    @property
    def place(self) -> str:
        """Which picture is on screen, in words."""
        if self.shown == self.num_steps:
            return "the final picture"
        return f"the expected picture at step {self.shown} of {self.num_steps}"

    @property
    def screen(self) -> tuple:
        """What is on screen, to be told from what was there before."""
        return dict(self.timelines), self.shown, self.settings.reward

    @property
    def story(self) -> str:
        """Which settings make the run, and from which step on where there are several."""
        rows = self.timelines["run"]
        return "; ".join(f"from step {i}: " * (i > 0) + each.told(i) for i, each in rows)

    def status(self) -> str:
        """Where the run stands, how it is made, and what a change would do, in one line."""
        said = [self.place if self.answered else self._doing()]
        if not self.answered and self.pictures():
            said = [f"a draft of the final picture; {said[0]}"]
        if "old" in self.timelines:
            said.append(f"forked: a change acts from step {self.base} on")
        return "; ".join([*said, self.story])

    def _doing(self) -> str:
        """What is under way, in words."""
        rows, _ = next(each for each in self._wanted() if each not in self.frames)
        if isinstance(run := self.runs.get(rows), NoiseSearch):
            told = f"{len(run.rewards)} of {run.search.iterations + 1} noises judged, each by"
            return f"{told} {rows[0][1].num_steps} steps and their gradient; fewer are quicker"
        return f"sampling step {self.shown} of {self.num_steps}"

    def hint(self) -> str:
        """What the prompt lost when it was read, and what the model knows instead; else nothing."""
        return "; ".join(self.notes.get(self.settings.prompt, []))

    # what is done

    def work(self) -> Iterator[None]:
        """Do what is wanted, and pause after each step of sampling or search and each picture.

        The pictures that are asked for come first, before a final picture of many steps a draft of
        it, and then those of the steps before, which make the curve. To stop, take no more; the
        next `work()` goes on.
        """
        while asked := next((each for each in self._wanted() if each not in self.frames), None):
            yield from self._make(*asked)

    def _wanted(self) -> Iterator[Asked]:
        """What is asked for, in the order in which it is to be there."""
        if self.at == self.num_steps:
            for row, draft in self.drafts.items():
                if self._asked(row, self.at) not in self.frames:
                    yield draft
        for i in (self.at, *range(self.at)):
            for row in self.timelines:
                yield self._asked(row, i)

    def _make(self, rows: Timeline, i: int) -> Iterator[None]:
        yield from self._begin(rows)
        run = self._run(rows)
        while run.state.i <= min(i, run.sampler.num_steps - 1):
            run.step()
            yield
        self._frame(rows, i)
        yield

    def ahead(self) -> Iterator[None]:
        """Sample what may be asked for next: the step on screen at the nearest values of rho.

        It pauses as `work` does.
        """
        if "rho" not in self.settings.fields:
            return
        for rho in near(self.settings.value("rho"), AHEAD):
            rows = self._rows(self.settings.change(rho=rho))
            if (asked := (until(self.at, rows), self.at)) not in self.frames:
                yield from self._make(*asked)

    def finish(self) -> Controller:
        """All the work that is wanted, without a break; returns the controller itself."""
        for _ in self.work():
            pass
        return self

    def run(self, row: str = "run", i: int | None = None) -> Run:
        """The run of a row of `ROWS` at step i, by default at the end; it may have gone further."""
        return self._run(until(self.num_steps if i is None else i, self.timelines[row]))

    def _run(self, rows: Timeline) -> Run:
        for _ in self._begin(rows):
            pass
        return self.runs[rows]

    def _begin(self, rows: Timeline) -> Iterator[None]:
        """Make a run known, if need be by a search for its noise; pause after each noise of it."""
        search = _once(self.runs, rows, RUNS, lambda: self._start(rows))
        while isinstance(search, NoiseSearch):
            if search.done:
                best = f"from noise {search.index.item() + 1} of {len(search.rewards)}, the best"
                self.found[rows] = f"{best}; noise 1 is that of the seed"
                search = self.runs[rows] = search.run
            else:
                search.step()
                yield

    def _start(self, rows: Timeline) -> Run | NoiseSearch:
        start, settings = rows[-1]
        sampler = self.sampler(settings)
        if start:
            past = self._run(rows[:-1])
            while past.state.i < start:
                past.step()
            return past.fork(sampler.method, at=start, guidance_scale=settings.guidance_scale)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = sampler.start([settings.prompt], seeds=[settings.seed])
        self.notes[settings.prompt] = list(dict.fromkeys(str(note.message) for note in caught))
        return run

    # what there is to show

    def frame(self, row: str = "run", i: int | None = None) -> Frame:
        """What there is to see of a row of `ROWS` at step i, by default the one on screen."""
        return self._frame(*self._asked(row, self.shown if i is None else i))

    def _frame(self, rows: Timeline, i: int) -> Frame:
        most = RUNS * (self.num_steps + 1)
        return _once(self.frames, (rows, i), most, lambda: self._look(rows, i))

    def pictures(self) -> dict[str, Frame]:
        """The frames to show: those asked for, or else drafts; none while a row has neither."""
        asked = {row: self._asked(row, self.at) for row in self.timelines}
        if self.at == self.num_steps:
            lacking = {row for row in self.drafts if asked[row] not in self.frames}
            asked |= {row: self.drafts[row] for row in lacking}
        known = {row: self.frames[each] for row, each in asked.items() if each in self.frames}
        return known if len(known) == len(asked) else {}

    def _look(self, rows: Timeline, i: int) -> Frame:
        """The frame of step i of a run, which is sampled so far if need be."""
        run = self._run(rows)
        sampler, last = run.sampler, min(i, run.sampler.num_steps - 1)
        while run.state.i <= last:
            run.step()
        info, h, verdict = run.history[last], {}, None
        with torch.no_grad():
            images = sampler.decode(info.x0bar_hat if i == last else run.state.xt)
            for name, reward in self.rewards.items():
                h[name] = score(reward, images, run.prompts, f" at step {i}")
        n, why = 0, self.found.get(rows, "")
        if len(images) > 1:
            n, why = _particle(run, i, h[rows[-1][1].reward])
        when = getattr(sampler.method, "when", every())
        elsewhere = {*sampler.method.stages} - {"condition"}  # acts, and moves no embedding
        updated = info.updated or (bool(elsewhere) and when(last, sampler.num_steps))
        picture = to_pil(images)[n]
        if self.oracle:
            with contextlib.suppress(ValueError):  # of a prompt outside the grammar
                (verdict,) = shapes.judge([picture], run.prompts[:1])
        values = {name: each[n].item() for name, each in h.items()}
        told = picture, values, updated, info.distance[n].item(), verdict, n, why
        return Frame(i, sampler.num_steps, *told)

    def curves(self) -> dict[str, list[Frame]]:
        """For each row the frames of the steps that are known in all rows."""
        steps = range(self.head)
        return {row: [self.frame(row, i) for i in steps] for row in self.timelines}


def _particle(run: Run, i: int, h: Tensor) -> tuple[int, str]:
    """The particle that has the best h at step i or in the end, and what is said of it."""
    n = run.sampler.best(run.state)[0] if i == run.sampler.num_steps else int(h.argmax())
    size = [info.extras["fk_size"] for info in run.history[: i + 1] if "fk_size" in info.extras][-1]
    told = f"particle {n + 1} of {len(h)}, the best here; when last weighed, all were worth"
    return n, f"{told} {size[n]:.1f} (effective sample size)"


def _once(known: dict, key: Any, most: int, make: Callable[[], Any]) -> Any:
    """known[key], made where it is missing; of all the `most` that were asked for last stay."""
    value = known.pop(key) if key in known else make()
    known[key] = value
    while len(known) > most:
        del known[next(iter(known))]
    return value
