"""The runner: draws, judges and writes a study.

A strength is chosen for each row that has a grid, by the held-out reward on tuning pairs that no
row is judged on; then the row is drawn and judged on the held-out pairs. All of it is noted row by
row, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import datekit as dk
from studies.machine import facts
from studies.mistakes import split
from studies.results import FIXED, FOLDER, MAIN, UNIT, Notes, fingerprint, intervals, packed, times
from studies.study import Row, Study
from studies.trials import Trials


class Course:
    """A study while it runs: its trials by model, and the strengths and rows so far by name."""

    def __init__(self, study: Study, notes: Notes) -> None:
        self.study, self.notes = study, notes
        self.by_key = {row.key: row for row in study.rows}
        self.chosen: dict[str, Any] = {}
        self.rows: dict[str, dict] = {}
        self.tried: dict[str, dict[str, float]] = {}
        self.ends: list[str] = []
        self.undefined: dict[str, str] = {}
        self._trials: dict[str, Trials] = {}

    def trials(self, row: Row | None = None) -> Trials:
        """The held-out pairs of a row's model; `.tuning` has those that strengths are chosen on."""
        model = (row and row.model) or self.study.model
        if model not in self._trials:
            self._trials[model] = self._make(model)
        return self._trials[model]

    def _make(self, model: str) -> Trials:
        study = self.study
        tune = study.prompts(study.tuning_pairs, study.seed, "tune")
        test = study.prompts(study.pairs, study.seed, "test")
        settings = {"steps": study.steps, "judges": study.judges}
        tuning = study.trials(model, tune, study.seed + 1, **settings)
        return study.trials(model, test, study.seed, tuning=tuning, **settings)

    def add(self, row: Row) -> None:
        """Choose the strength of a row, draw and judge it; or say why it is not defined here."""
        trials, study = self.trials(row), self.study
        try:
            row.draw(trials, self.grid(row)[0])
        except ValueError as error:
            if row.key == FIXED:
                raise
            self.undefined[row.key] = str(error)
            return
        strength = self.strength(row)
        draw, pairs = row.draw(trials, strength), study.count(row)
        self.rows[row.key] = self.notes.get(
            f"test: {row.key}", trials.judge, draw, pairs, distance=study.distance
        )

    def grid(self, row: Row) -> tuple:
        """The strengths that a row may have; (None,) for a row without any."""
        if row.of:
            return (self.strength(self.by_key[row.of]),)
        return tuple(row.grid(self) if callable(row.grid) else row.grid) or (None,)

    def strength(self, row: Row) -> Any:
        """The strength of a row: the best of its grid on the tuning pairs, the first of equals."""
        if row.key not in self.chosen:
            grid = self.grid(row)
            self.chosen[row.key] = grid[0] if len(grid) == 1 else self._choose(row, grid)
        return self.chosen[row.key]

    def _choose(self, row: Row, grid: tuple) -> Any:
        """The best strength of a grid; where there is a heat, of the two that lead in it."""
        judged, left = {}, grid
        if self.study.heat:
            heat = min(self.study.heat, self.study.tuning_pairs)
            judged = self._try(row, grid, heat)
            first = row.choose(judged)
            others = {strength: told for strength, told in judged.items() if strength != first}
            left = (first, row.choose(others))
        final = self._try(row, left)
        means = _means(judged)
        self.tried[row.key] = {f"{name} (heat)": means[name] for name in means} | _means(final)
        strength = row.choose(final)
        if strength in (grid[0], grid[-1]):
            self.ends.append(row.key)
        return strength

    def _try(self, row: Row, strengths: Sequence, pairs: int | None = None) -> dict[Any, dict]:
        """What the judges say of strengths on the first so many tuning pairs, all by default."""
        tuning, judged = self.trials(row).tuning, {}
        for strength in strengths:
            draw, told = row.draw(tuning, strength), f"tune{f' on {pairs}' if pairs else ''}"
            name = f"{told}: {row.key}, {_label(strength)}"
            judged[strength] = self.notes.get(name, tuning.judge, draw, pairs)
        return judged

    def time(self, row: Row) -> None:
        """The seconds of a row's first batch, once more: rows that took hours saw other loads."""
        trials = self.trials(row)
        draw = row.draw(trials, self.chosen[row.key])
        again = self.notes.get(f"time: {row.key}", trials.timed, draw)
        self.rows[row.key] = self.rows[row.key] | times(again)


def run(study: Study, out: str | Path | None = None, groups: Sequence[str] = ()) -> dict:
    """Run a study and write its results to `out`, by default to its place in `results/`.

    groups: of rows to run beside the main rows; all by default. The same call goes on where it was
    stopped. Returns what the file holds. Raises ValueError for fewer than two pairs, as a spread is
    measured, or no tuning pair, or an unknown group.
    """
    if study.pairs < 2 or study.tuning_pairs < 1:
        raise ValueError(
            f"a study needs at least 2 pairs and 1 tuning pair, got {study.pairs} and "
            f"{study.tuning_pairs}"
        )
    known = [row.group for row in study.rows]
    if missing := set(groups) - set(known):
        raise ValueError(f"unknown group {missing.pop()!r}; there are {', '.join(set(known))}")
    rows = [row for row in study.rows if not groups or row.group in (MAIN, *groups)]
    models = dict.fromkeys(row.model or study.model for row in study.rows)
    weights = {model: fingerprint(model) for model in models}
    own = f"{study.file or study.name}{study.model.removeprefix('shapes')}.json"
    out = FOLDER / own if out is None else Path(out)
    course = Course(study, Notes(out, study.settings() | {"weights": weights}))
    drawn = [row for row in rows if not row.same]
    for row in drawn:
        course.add(row)
    for row in drawn:
        if row.key in course.rows:
            course.time(row)
    rows = [row for row in rows if (row.same or row.key) in course.rows]
    return course.notes.finish(_head(course, weights) | {"rows": _rows(course, rows)})


def _head(course: Course, weights: dict) -> dict:
    """What a file of results says before its rows."""
    study, trials = course.study, course.trials()
    settings = study.settings()
    flags = " ".join(f"--{name.replace('_', '-')} {v}" for name, v in settings.items())
    tuned = len({row.key for row in study.rows} & set(course.tried))
    heat = f", two of them after a heat on {study.heat}" if study.heat else ""
    return {
        "study": study.name,
        "command": f"PYTHONPATH=notebooks python -m studies {study.name} {flags}",
        **facts(),
        **settings,
        "steps": trials.steps,
        "weights": weights,
        "solver": str(dk.Sampler(trials.backbone).solver),
        "guidance_scale": trials.backbone.recommended.guidance_scale,
        "distinct prompts": len(set(trials.prompts)),
        "norm of c_org": trials.scale,
        "values are": f"whole 1/{UNIT}",
        "tuning": {
            "budget": f"the strengths of {tuned} rows, on {study.tuning_pairs} other pairs" + heat,
            "mean held-out reward": course.tried,
        },
        "undefined": course.undefined,
        **(study.extra(course) if study.extra else {}),
    }


def _rows(course: Course, rows: Sequence[Row]) -> dict[str, dict]:
    """The rows of a file of results, by name."""
    result = {}
    for row in rows:
        about = {"label": row.name, "group": row.group, "tags": list(row.tags)}
        judged, pairs = course.rows[row.same or row.key], course.study.count(row)
        base = course.rows.get(row.base)
        numbers = _summary(course, row, _first(judged, pairs), base and _first(base, pairs))
        if row.same:
            about |= {"same": row.same, "pairs": pairs}
        else:
            about |= {"values": packed(_measures(judged), course.study.measures)}
        result[row.key] = about | _setting(course, row) | numbers
    return result


def _summary(course: Course, row: Row, judged: Mapping, base: Mapping | None) -> dict:
    """Means, paired differences and times of a row; of each part of the pairs, where there are."""
    study, own = course.study, _measures(judged)
    base = None if base is None else _measures(base)
    result = times(judged) | {key: judged[key] for key in ("FID",) if key in judged}
    if not study.parts:
        return result | intervals(own, study.measures, base)
    for part, numbers in study.parts(course.trials(row)).items():
        numbers = [n for n in numbers if n < len(own[study.measures[0]])]
        of_part = _pick(own, study.measures, numbers)
        of_base = base and _pick(base, study.measures, numbers)
        result[part] = {"pairs": len(numbers)} | intervals(of_part, study.measures, of_base)
    return result


def _pick(judged: Mapping, measures: Sequence[str], numbers: Sequence[int]) -> dict:
    """Some pairs of a row."""
    return {measure: [judged[measure][n] for n in numbers] for measure in measures}


def _setting(course: Course, row: Row) -> dict:
    """The strength of a row in numbers and words, and whether more of it might help."""
    strength = course.chosen.get(row.same or row.key)
    if strength is None:
        return {"setting": ""}
    words = ""
    if row.words:
        number = strength[0] if isinstance(strength, tuple) else strength
        words = row.words.format(strength, share=number / course.trials(row).scale)
    return {
        "setting": words,
        "strength": strength,
        "at an end of the grid": row.key in course.ends,
    }


def _measures(judged: Mapping) -> dict:
    """The measures of a row; kinds of failures that a study asks for from the letters."""
    return {**split(judged.get("failures", ())), **judged}


def _first(judged: Mapping, pairs: int) -> dict:
    """A row of its first `pairs` pairs; times stay."""
    items = judged.items()
    return {name: value[:pairs] if isinstance(value, list) else value for name, value in items}


def _means(judged: Mapping[Any, Mapping]) -> dict[str, float]:
    """The mean held-out reward by strength."""
    return {_label(s): round(float(np.mean(row["heldout"])), 4) for s, row in judged.items()}


def _label(strength: Any) -> str:
    numbers = strength if isinstance(strength, tuple) else (strength,)
    return ", ".join(f"{number:.6g}" for number in numbers)
