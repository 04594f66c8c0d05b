"""The explorer without its looks: what is set, how far the run has come, which step is on screen.

The controls say what is wanted (`change`, `play`, `step`, `scrub`, `fork`, ...), at once and at no
cost. `work()` then does what is lacking, one step of sampling at a time, and may be left and taken
up again between any two: that is how a slider that moves during a long computation cancels it.
There is no widget, no thread and no clock in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ..analysis.sweep import RhoSweep, gather, octaves
from ..backbones import SHIPPED, Backbone, wrap
from ..errors import is_whole
from ..methods.soft_tokens import SHIPPED_TOKENS
from ..rewards.base import Reward
from .library import Frame, Library, Timeline, acting_from, changes
from .settings import PAST, Rewards, Settings, method_names, sampler_of, some

ROWS = {"run": "this run", "fixed": "fixed embedding", "old": "before the fork"}


class Controller:
    """An exploration: settings that become runs.

    backbone: from `dk.load` or `dk.wrap`, or a pipeline.
    rewards: one reward, a weighted sum, several in a list, or a dict by name.
    judged: whether the exact oracle of the shapes world looks on, by default for its models.
    settings: fields of `Settings` and options of the methods, such as rho.

    It holds settings, as the controls stand; timeline, which of them act from which step; head,
    how many steps were taken, and goal, how many are wanted; at, the step on screen, None for the
    newest; base, where the run begins again, 0 or the fork; old, the timeline from before the fork;
    sweeping, whether the sweep over rho is wanted; eager, whether `work` also prepares what
    scrubbing will ask for.
    Raises TypeError or ValueError for what does not fit.
    """

    def __init__(
        self,
        backbone,
        rewards: Reward | Callable | Mapping[str, Callable] | list,
        *,
        judged: bool | None = None,
        **settings,
    ) -> None:
        self.backbone = backbone if isinstance(backbone, Backbone) else wrap(backbone)
        self.rewards = Rewards(rewards)
        judged = self.backbone.source in SHIPPED if judged is None else judged
        self.library = Library(self.backbone, self.rewards, judged=judged)
        advice = self.backbone.recommended
        self.settings = Settings(
            weights=self.rewards.weights,
            guidance_scale=advice.guidance_scale,
            solver=advice.solver,
            num_steps=min(20, advice.num_steps),
        )
        if self.backbone.source in SHIPPED_TOKENS:
            self.settings = self.settings.change(tokens=self.backbone.source)
        self.settings = self.settings.change(**settings)
        sampler_of(self.settings, self.backbone, self.rewards)
        self.timeline: Timeline = ((0, self.settings),)
        self.old: Timeline | None = None
        self.head = self.goal = self.base = 0
        self.at: int | None = None
        self.sweeping, self.eager = False, True

    # what is wanted

    def methods(self) -> list[str]:
        """The names for `method` that can be chosen here, sums of two included."""
        return method_names(dict(self.settings.options))

    def change(self, **changes) -> None:
        """Other settings, which act from the paused step on; else the run begins again at `base`.

        Raises ValueError or TypeError for settings that do not fit, and then changes nothing.
        """
        new = self.settings.change(**changes)
        if new == self.settings:
            return
        sampler_of(new, self.backbone, self.rewards)
        self.rewards.combined(new.weights)
        if any(getattr(new, name) != getattr(self.settings, name) for name in PAST):
            self._begin(new)
        elif (new.plain(), new.weights) == (self.settings.plain(), self.settings.weights):
            self.timeline = (*self.timeline[:-1], (self.timeline[-1][0], new))
        elif self.paused:
            self.timeline, self.at = acting_from(self.head, self.timeline, new), None
        else:
            self.head = self.base
            self.timeline = acting_from(self.head, self.timeline, new)
        self.settings = new

    def _begin(self, new: Settings) -> None:
        """Another prompt, seed, solver or number of steps: all from the noise, as far as before."""
        whole = self.goal == self.num_steps
        self.timeline, self.old, self.base, self.head = ((0, new),), None, 0, 0
        self.goal = new.num_steps if whole else min(self.goal, new.num_steps)
        self.at = None if self.at is None else min(self.at, new.num_steps)

    def toggle(self, i: int) -> None:
        """Step i updates if it did not, and the other way round."""
        self.change(when=some({*self.settings.updates} ^ {i}))

    def play(self) -> None:
        """On to the last step; from `base` once more if the run is finished."""
        self.head = self.base if self.done else self.head
        self.goal, self.at = self.num_steps, None

    def pause(self) -> None:
        """Stay where the run has come to."""
        self.goal = self.head

    def step(self) -> None:
        """One step further, then pause."""
        self.goal, self.at = min(self.head + 1, self.num_steps), None

    def back(self) -> None:
        """Before the last step, and paused there."""
        self._rewind(max(self.head - 1, 0))

    def restart(self) -> None:
        """Before the first step, or where the run was forked."""
        self._rewind(self.base)

    def scrub(self, to: int) -> None:
        """Show step `to`, which is sampled first if need be. Raises ValueError beyond the run."""
        if not is_whole(to) or not 0 <= to <= self.num_steps:
            raise ValueError(
                f"this run can be shown at 0 to {self.num_steps} (the end); {to!r} is none of them"
            )
        self.goal, self.at = max(self.goal, to), to

    def fork(self) -> None:
        """Keep the run for comparison, and go back to the step on screen to change what follows."""
        self.old, self.base = self.timeline, self.last
        self._rewind(self.last)

    def join(self) -> None:
        """Forget the run from before the fork; changes act from the first step again."""
        self.old, self.base = None, 0

    def sweep(self, on: bool = True) -> None:
        """Whether the step on screen is shown at seven radii too."""
        self.sweeping = on

    def _rewind(self, to: int) -> None:
        self.timeline = acting_from(to, self.timeline, self.settings)
        self.head = self.goal = to
        self.base = min(self.base, to)
        self.at = None

    # where things stand

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.settings.num_steps

    @property
    def done(self) -> bool:
        """Whether the last step has been taken."""
        return self.head >= self.num_steps

    @property
    def paused(self) -> bool:
        """Whether the run waits before some step."""
        return self.head == self.goal < self.num_steps

    @property
    def shown(self) -> int:
        """The step on screen: the one asked for, as far as the run has come."""
        return self.head if self.at is None else min(self.at, self.head)

    @property
    def last(self) -> int:
        """The step on screen; the last one where the final picture is."""
        return min(self.shown, self.num_steps - 1)

    @property
    def timelines(self) -> dict[str, Timeline]:
        """The rows of `ROWS` that are on screen."""
        twin = tuple((start, settings.change(method="Fixed")) for start, settings in self.timeline)
        old = {} if self.old is None else {"old": self.old}
        return {"run": self.timeline, "fixed": twin, **old}

    @property
    def rhos(self) -> list[float]:
        """The radii of the sweep, around the rho that is set."""
        rho = self.settings.value("rho") if "rho" in self.settings.fields else None
        return octaves(dict(self.settings.options).get("rho", rho))

    def status(self) -> str:
        """Where the run stands and what a change would do, in one line."""
        if self.head < self.goal:
            where = f"sampling step {self.head} of {self.num_steps}"
        elif self.done:
            where = f"finished; a change samples again from step {self.base}"
        else:
            where = f"paused before step {self.head} of {self.num_steps}; "
            where += "a change acts from here on"
        known = len(self.rhos) - len(self._radii_to_do)
        if self.sweeping and self.head == self.goal and known < len(self.rhos):
            where += f"; sweep over rho: radius {known + 1} of {len(self.rhos)}"
        if len(rows := changes(self.timeline)) > 1:
            said = [f"from step {start}: {settings}" for start, settings in rows]
            where += "; settings: " + "; ".join(said)
        return where

    def notes(self) -> list[str]:
        """What reading the prompt gave a warning of, such as words beyond the encoder's window."""
        return self.library.notes.get(self.settings.prompt, [])

    # what is done

    def work(self) -> Iterator[str]:
        """Do what is wanted, a unit at a time, and yield what was done.

        Units are "step", "sweep", and "look", which prepares what scrubbing will ask for. To stop,
        take no more; the next `work()` goes on. An error leaves all as it was before the unit.
        """
        while self.head < self.goal:
            for timeline in self.timelines.values():
                self.library.picture(timeline, self.head)
            self.head += 1
            yield "step"
        while self.sweeping and (radii := self._radii_to_do):
            self.library.radius(self.timeline, self.last, self.settings.weights, radii[0])
            yield "sweep"
        nearest = sorted(range(self.head + 1), key=lambda i: abs(i - self.shown))
        for i in nearest if self.eager else []:
            for row, timeline in self.timelines.items():
                if not self.library.knows("frame", self.settings.weights, timeline=timeline, i=i):
                    self.frame(row, i)
                    yield "look"

    def finish(self) -> Controller:
        """All the work that is wanted, without a break; returns the controller itself."""
        for _ in self.work():
            pass
        return self

    # what there is to show

    def frame(self, row: str = "run", i: int | None = None) -> Frame:
        """What there is to see of a row of `ROWS` at step i, by default the one on screen."""
        i = self.shown if i is None else i
        return self.library.frame(self.timelines[row], i, self.settings.weights)

    def curves(self) -> dict[str, dict[str, list]]:
        """For each row: the steps taken, h and ||c - c_org|| at each, and which of them updated."""
        lines = {}
        for row, timeline in self.timelines.items():
            taken = self.library.run(timeline).state.i if row == "old" else self.head
            steps, weights = range(taken), self.settings.weights
            lines[row] = {
                "steps": list(steps),
                "h": [self.library.h(timeline, i, weights) for i in steps],
                "distance": [self.library.info(timeline, i).distance.item() for i in steps],
                "updated": [i for i in steps if self.library.updated(timeline, i)],
            }
        return lines

    def cosines(self) -> tuple[list[int], list[float]]:
        """The cosines of the direction on screen with those of the steps known: (steps, values)."""
        weights = self.settings.weights
        here = self.library.look(self.timeline, self.last, weights).direction.flatten()
        known = self.library.looks(self.timeline, weights)
        return list(known), [float(here @ look.direction.flatten()) for look in known.values()]

    def swept(self) -> RhoSweep | None:
        """The step on screen at seven radii; None until `work` has been through them."""
        if not self.sweeping or self._radii_to_do:
            return None
        where = self.timeline, self.last, self.settings.weights
        answers = [self.library.radius(*where, rho) for rho in self.rhos]
        return gather(self.library.look(*where), self.rhos, answers)

    @property
    def _radii_to_do(self) -> list[float]:
        known, weights = self.library.knows, self.settings.weights
        where = {"timeline": self.timeline, "i": self.last}
        return [rho for rho in self.rhos if not known("radius", weights, rho, **where)]
