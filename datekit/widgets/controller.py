"""The explorer without its looks: a state machine over settings, steps and branches. No widget, no thread, no clock.

Controls change what is wanted (`change`, `play`, `step`, `back`, `scrub`, `fork`, ...), at once and at no cost. `work()` then does
what the wanted state lacks, one step of sampling at a time, and may be left and taken up again between any two: that is how a
slider that moves during a long computation cancels it. What was sampled is kept by its configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ..backbones import SHIPPED, Backbone, wrap
from ..errors import is_whole
from ..rewards.base import Reward
from ..methods.soft_tokens import SHIPPED_TOKENS
from .branch import Branch, Frame
from .library import Library, Timeline, acting_from, changes
from .settings import PAST, Rewards, Settings, sampler_of
from .sweep import OCTAVES, RhoSweep, rho_rules

ROWS = {"run": "this run", "fixed": "fixed embedding", "old": "before the fork"}


class Controller:
    """What is set, how far the run has come, and which step is on screen.

    backbone: from `dk.load` or `dk.wrap`, or a pipeline; rewards: one reward, a weighted sum, several, or a dict by name; judged: whether
    the exact oracle of the shapes world looks on, by default where the backbone is one of that world; settings: fields of `Settings`.

    settings: as the controls stand, which is how the steps to come are taken; timeline: which settings act from which step; head: how
    many steps were taken; goal: how many are wanted; at: the step on screen, None for the newest; since: where the computation
    under way began; base: where a finished run begins again, 0 or the fork; sweeping: whether the sweep over rho is wanted; eager:
    whether `work` also prepares what scrubbing will ask for. Raises TypeError or ValueError on what does not fit.
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
        self.rewards = rewards if isinstance(rewards, Rewards) else Rewards(rewards)
        self.judged = self.backbone.source in SHIPPED if judged is None else judged
        advice = self.backbone.recommended
        default = {
            "weights": self.rewards.weights,
            "guidance_scale": advice.guidance_scale,
            "solver": advice.solver,
            "num_steps": min(20, advice.num_steps),
            "tokens": self.backbone.source if self.backbone.source in SHIPPED_TOKENS else "",
        }
        self.settings = Settings().change(**(default | settings))
        sampler_of(self.settings, self.backbone, self.rewards)
        self.timeline: Timeline = ((0, self.settings),)
        self.old: Timeline | None = None
        self.head = self.goal = self.since = self.base = 0
        self.at: int | None = None
        self.sweeping, self.eager = False, True
        self._library = Library(self.backbone, self.rewards, judged=self.judged)

    # what is wanted

    def change(self, **changes) -> None:
        """Other settings. They act from the paused step on; a computation under way is begun again, and a finished run from `base`.

        Raises ValueError or TypeError, and changes nothing, where they do not fit.
        """
        new = self.settings.change(**changes)
        if new == self.settings:
            return
        sampler_of(new, self.backbone, self.rewards)
        self.rewards.combined(new.weights)
        if any(getattr(new, name) != getattr(self.settings, name) for name in PAST):
            self._begin(new)
        elif new.plain() == self.settings.plain() and new.weights == self.settings.weights:
            self.timeline = (*self.timeline[:-1], (self.timeline[-1][0], new))
        elif self.paused:
            self.timeline, self.at = acting_from(self.head, self.timeline, new), None
        else:
            self.head = self.since = self.base if self.done else self.since
            self.timeline = acting_from(self.head, self.timeline, new)
        self.settings = new

    def _begin(self, new: Settings) -> None:
        """Another prompt, seed, solver or number of steps: all from the noise, as far as the run had come."""
        whole = self.goal == self.num_steps
        self.timeline, self.old, self.base, self.head, self.since = ((0, new),), None, 0, 0, 0
        self.goal = new.num_steps if whole else min(self.goal, new.num_steps)
        self.at = None if self.at is None else min(self.at, new.num_steps)

    def toggle(self, i: int) -> None:
        """Step i updates if it did not, and the other way round."""
        if not 0 <= i < self.num_steps:
            raise ValueError(f"this run has steps 0 to {self.num_steps - 1}; {i!r} is none of them")
        self.change(when=self.settings.toggled(i).when)

    def play(self) -> None:
        """On to the last step; from `base` once more if the run is finished."""
        if self.done:
            self.head = self.goal = self.base
        self._aim(self.num_steps)
        self.at = None

    def pause(self) -> None:
        """Stay where the run has come to."""
        self.goal = self.head

    def step(self) -> None:
        """One step further, then pause."""
        self._aim(min(self.head + 1, self.num_steps))
        self.at = None

    def back(self) -> None:
        """Before the last step, and paused there."""
        self._rewind(max(self.head - 1, 0))

    def restart(self) -> None:
        """Before the first step, or where the run was forked."""
        self._rewind(self.base)

    def scrub(self, to: int) -> None:
        """Show step `to`; one that is not yet taken is sampled first. Raises ValueError for a step that the run does not have."""
        if not is_whole(to) or not 0 <= to <= self.num_steps:
            raise ValueError(
                f"this run can be shown at 0 to {self.num_steps} (the end); {to!r} is none of them"
            )
        if to > self.goal:
            self._aim(to)
        self.at = to

    def fork(self) -> None:
        """Keep the run as it is for comparison, and go back to the step on screen: what is changed now acts from there on."""
        at = min(self.shown, self.num_steps - 1)
        self.old, self.base = self.timeline, at
        self._rewind(at)

    def join(self) -> None:
        """Forget the run from before the fork; changes act from the first step again."""
        self.old, self.base = None, 0

    def sweep(self, on: bool = True) -> None:
        """Whether the step on screen is shown at seven rho_rules too."""
        self.sweeping = bool(on)

    def _aim(self, goal: int) -> None:
        if self.head == self.goal:
            self.since = self.head
        self.goal = goal

    def _rewind(self, to: int) -> None:
        self.timeline = acting_from(to, self.timeline, self.settings)
        self.head = self.goal = self.since = to
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
    def reward(self) -> Reward:
        """The weighted sum that is set."""
        return self.rewards.combined(self.settings.weights)

    @property
    def timelines(self) -> dict[str, Timeline]:
        """What is on screen, by the names of `ROWS`: the run, its twin with the fixed embedding, the run before the fork."""
        twin = tuple((start, settings.change(method="fixed")) for start, settings in self.timeline)
        return {"run": self.timeline, "fixed": twin} | (
            {} if self.old is None else {"old": self.old}
        )

    def status(self) -> str:
        """Where the run stands and what a change would do, in one line."""
        if self.head < self.goal:
            where = f"sampling step {self.head} of {self.num_steps}"
        elif self.done:
            where = f"finished; a change samples again from step {self.base}"
        else:
            where = (
                f"paused before step {self.head} of {self.num_steps}; a change acts from here on"
            )
        if self.sweeping and self.head == self.goal and (known := self._radii_known) < len(OCTAVES):
            where += f"; sweep over rho: radius {known + 1} of {len(OCTAVES)}"
        if len(rows := changes(self.timeline)) > 1:
            where += "; settings: " + "; ".join(
                f"from step {start}: {settings}" for start, settings in rows
            )
        return where

    def notes(self) -> list[str]:
        """What reading the prompt gave a warning of, such as words beyond the text encoder's window."""
        return self._library.notes(self.settings.prompt)

    # what is done

    def work(self) -> Iterator[str]:
        """Do what is wanted, a unit at a time; yields what was done: "step", "sweep", or "look" (what scrubbing will ask for).

        To stop, take no more; the next `work()` goes on. An error leaves everything as before the unit that raised it.
        """
        while self.head < self.goal:
            for timeline in self.timelines.values():
                self._library.branch(timeline).h(
                    self.head, self.settings.weights, self.rewards.parts
                )
            self.head += 1
            yield "step"
        while self.sweeping and self._library.sweep_on(
            self.timeline, self._last, rho_rules(self.settings.rho)
        ):
            yield "sweep"
        for i in (
            sorted(range(self.head + 1), key=lambda i: abs(i - self.shown)) if self.eager else ()
        ):
            for row, timeline in self.timelines.items():
                if not self._library.has_frame(timeline, i, self.settings.weights):
                    self.frame(row, i)
                    yield "look"

    def finish(self) -> Controller:
        """All the work that is wanted, without a break; returns the controller itself."""
        for _ in self.work():
            pass
        return self

    # what there is to show

    def branch(self, row: str = "run") -> Branch:
        """The trajectory of a row on screen."""
        return self._library.branch(self.timelines[row])

    def frame(self, row: str = "run", i: int | None = None) -> Frame:
        """What there is to see of a row of `ROWS` at step i, the one on screen by default."""
        return self._library.frame(
            self.timelines[row], self.shown if i is None else i, self.settings.weights
        )

    def curves(self) -> dict[str, dict[str, list]]:
        """For each row: steps taken, h and ||c - c_org|| at each, and which of them updated."""
        found = {}
        for row in self.timelines:
            branch = self.branch(row)
            steps = list(range(branch.taken if row == "old" else self.head))
            infos = [branch.info(i) for i in steps]
            h = [branch.h(i, self.settings.weights, self.rewards.parts) for i in steps]
            found[row] = {
                "steps": steps,
                "h": h,
                "distance": [info.distance.item() for info in infos],
                "updated": [i for i in steps if branch.updated(i)],
            }
        return found

    def cosines(self) -> tuple[list[int], list[float]]:
        """The cosines of the direction at the step on screen with those of the steps known so far: (steps, values)."""
        return self.branch().cosines(self._last, self.reward)

    def swept(self) -> RhoSweep | None:
        """The step on screen at seven rho_rules, None until `work` has been through them."""
        return (
            self._library.swept(self.timeline, self._last, rho_rules(self.settings.rho))
            if self.sweeping
            else None
        )

    @property
    def _radii_known(self) -> int:
        return self._library.radii_known(self.timeline, self._last, rho_rules(self.settings.rho))

    @property
    def _last(self) -> int:
        """The step on screen, the last one for the end."""
        return min(self.shown, self.num_steps - 1)
