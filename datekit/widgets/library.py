"""What was sampled and looked at, by configuration: the same settings are never computed twice while they are remembered."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence

from ..backbones import Backbone
from .branch import Branch, Frame
from .settings import Rewards, Settings, method_of, sampler_of
from .sweep import RhoSweep, at_radius, gathered

Timeline = tuple[
    tuple[int, Settings], ...
]  # (step from which they act, settings), the first from step 0
KEPT = 8  # branches remembered, those on screen included


class Library:
    """Branches by timeline, frames and sweeps of them; all of one backbone."""

    def __init__(self, backbone: Backbone, rewards: Rewards, *, judged: bool) -> None:
        self.backbone, self.rewards, self.judged = backbone, rewards, judged
        self._branches: OrderedDict[Timeline, Branch] = OrderedDict()
        self._frames: OrderedDict[tuple, Frame] = OrderedDict()
        self._sweeps: OrderedDict[tuple, list] = OrderedDict()
        self._notes: dict[str, list[str]] = {}

    def branch(self, timeline: Timeline) -> Branch:
        """The trajectory of a timeline."""
        key = plain(timeline)
        if key not in self._branches:
            _remember(self._branches, key, self._begun(key), KEPT)
        self._branches.move_to_end(key)
        return self._branches[key]

    def frame(self, timeline: Timeline, i: int, weights: tuple[tuple[str, float], ...]) -> Frame:
        """Step i of a timeline as it is shown, under the reward of these weights."""
        key = _frame_key(timeline, i, weights)
        if key not in self._frames:
            made = self.branch(timeline).frame(
                i, self.rewards.combined(weights), self.rewards.parts, weights, judged=self.judged
            )
            _remember(self._frames, key, made, 4 * (timeline[-1][1].num_steps + 1))
        return self._frames[key]

    def has_frame(self, timeline: Timeline, i: int, weights: tuple[tuple[str, float], ...]) -> bool:
        """Whether `frame` would only look it up."""
        return _frame_key(timeline, i, weights) in self._frames

    def sweep_on(self, timeline: Timeline, i: int, rhos: Sequence[float]) -> bool:
        """RewardGradient at one more radius of step i; False, and nothing is done, where all are known."""
        found = self._swept(timeline, i, rhos)
        if len(found) == len(rhos):
            return False
        branch, reward = self.branch(timeline), self.rewards.combined(timeline[-1][1].weights)
        found.append(
            at_radius(
                branch.sampler(i), branch.state(i), branch.look(i, reward), reward, rhos[len(found)]
            )
        )
        return True

    def radii_known(self, timeline: Timeline, i: int, rhos: Sequence[float]) -> int:
        """How many rho_rules of step i were looked at."""
        return len(self._swept(timeline, i, rhos))

    def swept(self, timeline: Timeline, i: int, rhos: Sequence[float]) -> RhoSweep | None:
        """All rho_rules of step i, None while some are missing."""
        found = self._swept(timeline, i, rhos)
        if len(found) < len(rhos):
            return None
        return gathered(
            self.branch(timeline).look(i, self.rewards.combined(timeline[-1][1].weights)),
            rhos,
            found,
        )

    def notes(self, prompt: str) -> list[str]:
        """What reading a prompt gave a warning of, such as words beyond the text encoder's window."""
        return self._notes.get(prompt, [])

    def _swept(self, timeline: Timeline, i: int, rhos: Sequence[float]) -> list:
        key = (plain(timeline), i, timeline[-1][1].weights, tuple(rhos))
        if key not in self._sweeps:
            _remember(self._sweeps, key, [], 4 * KEPT)
        return self._sweeps[key]

    def _begun(self, key: Timeline) -> Branch:
        start, settings = key[-1]
        if start:
            parent = self.branch(key[:-1])
            parent.state(start)
            return Branch(
                parent.run.fork(
                    method_of(settings, self.rewards),
                    at=start,
                    guidance_scale=settings.guidance_scale,
                ),
                parent,
            )
        sampler = sampler_of(settings, self.backbone, self.rewards)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = sampler.start([settings.prompt], seeds=[settings.seed])
        self._notes[settings.prompt] = list(
            dict.fromkeys(str(warning.message) for warning in caught)
        )
        return Branch(run)


def changes(timeline: Timeline) -> Timeline:
    """Without the settings that sample the same as those before them."""
    return tuple(
        row
        for n, row in enumerate(timeline)
        if n == 0 or row[1].plain() != timeline[n - 1][1].plain()
    )


def plain(timeline: Timeline) -> Timeline:
    """The same trajectory in one way of writing it."""
    return tuple((start, settings.plain()) for start, settings in changes(timeline))


def acting_from(start: int, timeline: Timeline, settings: Settings) -> Timeline:
    """A timeline with these settings from a step on."""
    return (*(row for row in timeline if row[0] < start), (start, settings))


def _frame_key(timeline: Timeline, i: int, weights: tuple[tuple[str, float], ...]) -> tuple:
    """What step i depends on: the settings up to it, not those that act later."""
    return plain(tuple(row for row in timeline if row[0] <= i)), i, weights


def _remember(cache: OrderedDict, key: tuple, value: object, limit: int) -> None:
    cache[key] = value
    while len(cache) > limit:
        cache.popitem(last=False)
