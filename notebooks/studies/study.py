"""What a study is: rows to compare, prompts to compare them on, judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import datekit as dk
from studies.results import FIXED, MAIN, best
from studies.trials import Draw, Trials

if TYPE_CHECKING:
    from studies.runner import Course

OPTIONS = ("model", "steps", "pairs", "side_pairs", "tuning_pairs", "seed")


@dataclass(frozen=True)
class Row:
    """One line of a study.

    method: takes the guiding reward h and a strength s and gives the method. grid: strengths to
    choose from, or a function of the `Course` so far that gives them; one alone is taken as it is.
    of: the row whose strength is taken. guide: what h is, as `Trials.reward` names it. count:
    pictures drawn, of which the guiding reward keeps the best. longer: times the steps. settings:
    of the sampler. make: of the trials and a strength what draws, where a method is not enough.
    choose: of the tuning rows by strength the best. words: a format for the strength, in which
    `share` is its share of the norm of c_org.
    same: the row whose results are repeated. base: the row it is compared with. model: the study's
    if left out. pairs: the first so many, where not all of the group's. tags: what claims point to.
    """

    name: str
    method: Callable[[Any, Any], dk.Method] | None = None
    grid: Sequence | Callable[[Course], Sequence] = ()
    of: str = ""
    guide: str = "guide"
    count: int = 1
    longer: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    make: Callable[[Trials, Any], Draw] | None = None
    choose: Callable[[dict[Any, dict]], Any] = best
    words: str = ""
    same: str = ""
    base: str = FIXED
    model: str = ""
    pairs: int | None = None
    group: str = MAIN
    tags: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What other rows and files call it."""
        return self.name if self.group == MAIN else f"{self.group}: {self.name}"

    def draw(self, trials: Trials, strength: Any) -> Draw:
        """What draws a batch at a strength."""
        if self.make is not None:
            return self.make(trials, strength)
        steps = {"num_steps": round(self.longer * trials.steps)}
        method = self.method(trials.reward(self.guide), strength)
        return trials.sample(method, count=self.count, **steps | dict(self.settings))


@dataclass(frozen=True)
class Study:
    """What is compared, with what a run may change: model, steps, pairs, tuning_pairs, seed.

    file: of results, named as the study if left out.
    prompts: takes a number, a seed and "tune" or "test" and gives prompts. side_pairs: the first so
    many, for groups that are not in `deciding`. heat: tuning pairs that all strengths of a row are
    tried on first, of which two go on to all pairs. measures: of every row, with intervals.
    distance: whether the Frechet distance is measured. trials, parts,
    extra: for studies with judges, parts of the pairs, or measurements of their own.
    """

    name: str
    rows: tuple[Row, ...]
    measures: tuple[str, ...]
    file: str = ""
    judges: tuple[str, ...] = ("guide", "heldout")
    prompts: Callable[[int, int, str], list] = lambda n, seed, part: dk.shapes.prompts(
        "heldout", n, seed, part=part
    )
    model: str = "shapes"
    steps: int | None = None
    pairs: int = 304
    side_pairs: int | None = None
    tuning_pairs: int = 32
    heat: int | None = None
    deciding: tuple[str, ...] = ()
    seed: int = 0
    distance: bool = False
    trials: Callable[..., Trials] = Trials
    parts: Callable[[Trials], dict[str, list[int]]] | None = None
    extra: Callable[[Trials, Course], dict] | None = None

    def settings(self) -> dict:
        """What a run may change, as the file and the command say it."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return {name: value for name, value in values.items() if value is not None}

    def count(self, row: Row) -> int:
        """How many pairs a row is judged on."""
        side = self.side_pairs is not None and row.group not in (MAIN, *self.deciding)
        return min(self.pairs, row.pairs or self.pairs, self.side_pairs if side else self.pairs)
