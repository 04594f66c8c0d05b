"""What makes a reward guide well, and can it be known before the first guided run?

Each guide moves the embedding at the same rho, and is measured at the x0bars of plain runs: by
instruments that need the right picture, and by those of `dk.analysis.reward_report`, which need
none. Two guides are no choice that anybody has: the held-out judge, whose gain it judges itself,
and the ideal, which knows the right pictures. Three more do not ship (`unshipped_guides`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

import datekit as dk
from datekit.analysis.base import cosines
from datekit.analysis.reward_report import MEASURED, RewardReport
from datekit.methods import DATE, Fixed
from datekit.rewards.decoders import through
from datekit.statistics import Interval, bootstrap, bootstrap_pairs
from studies.results import FIXED, cell, grid, rounded
from studies.runner import Course
from studies.study import Row, Study
from studies.trials import Batch, Trials
from studies.unshipped_guides import RIGHT, TRAINED, Contrast, Ideal, trained

RHO = 1.0
DECODER: str | None = "tiny"  # of the gradients; None: the backbone's own, slower
EVERY = 2  # steps lie from one look to the next
GUIDES = {  # names of rows -> names of rewards, as `Trials.reward` takes them
    "plain CLIP": "plain",
    "x0bars only": "x0bars only",
    "attacks only": "attacks only",
    "robust CLIP": "guide",
    "contrast to near captions": "contrast",
    "preference": "preference",
    "held-out judge (forbidden)": "heldout",
    "ideal (upper bound)": "ideal",
}
GAIN = f"oracle - {FIXED}"
INSTRUMENTS = {  # the first three need the right pictures or the oracle
    "cosine x0bar": "cosine of grad_x0bar h to the ideal's",
    "cosine c": "cosine of grad_c h to the ideal's",
    "AUC": "AUC of right pictures by h of x0bar",
} | MEASURED
MEASURES = ("guide", "plain", "preference", "heldout", "oracle")


class GuideTrials(Trials):
    """Trials in which the guides that do not ship can guide too."""

    def reward(self, name: str) -> Any:
        """A judge by name, or a guide of `unshipped_guides`."""
        made = {"ideal": Ideal, "contrast": Contrast}
        if name in TRAINED:
            return trained(name)
        return made[name]() if name in made else super().reward(name)


def _seen(reward: Any) -> Any:
    """A reward as the guided runs see it."""
    return reward if DECODER is None else through(reward, DECODER)


def looks(trials: Trials) -> dict:
    """What each guide says of each pair's x0bar by step: h, and cosines to the ideal's gradients.

    By name of guide {"h", "cosine x0bar", "cosine c": (T, N)}, and "right": (N,), 1 where the
    oracle finds the finished picture right. All are taken at the states of one plain run.
    """
    began, steps = time.perf_counter(), range(0, trials.steps, EVERY)
    guides = {name: _seen(trials.reward(own)) for name, own in GUIDES.items()}
    blank = {"h": [], "cosine x0bar": [], "cosine c": []}
    found = {name: {what: [[] for _ in steps] for what in blank} for name in guides}
    right: list[float] = []
    sampler = dk.Sampler(trials.backbone, Fixed(), num_steps=trials.steps)
    for batch in trials.batches():
        run = sampler.start(batch.prompts, seeds=batch.seeds).finish(progress=False)
        right += [float(verdict.right) for verdict in dk.shapes.judge(run.pixels, batch.prompts)]
        for t, i in enumerate(steps):
            for name, measured in _look(run.fork(at=i), guides).items():
                for what, values in measured.items():
                    found[name][what][t] += values
    return {"right": right, "steps": list(steps), "seconds": time.perf_counter() - began} | found


def _look(run: dk.Run, guides: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """h of each guide at the paused step, (B,), and cosines of its gradients to the ideal's."""
    seen = {name: run.peek(guide) for name, guide in guides.items()}
    ideal = seen["ideal (upper bound)"]
    return {
        name: {
            "h": look.h.tolist(),
            "cosine x0bar": cosines(look.grad_x0bar, ideal.grad_x0bar).tolist(),
            "cosine c": cosines(look.grad, ideal.grad).tolist(),
        }
        for name, look in seen.items()
    }


def report(trials: Trials, guide: str) -> dict:
    """What `dk.analysis.reward_report` says of a guide, {measurement: (T, N)}, batch by batch."""
    began, found = time.perf_counter(), []
    for batch in trials.batches():
        found.append(_report(trials, guide, batch))
    result: dict = {"steps": list(found[0].right.steps)}
    for name in MEASURED:
        result[name] = torch.cat([getattr(one, name).values for one in found], 1).tolist()
    return result | {"seconds": time.perf_counter() - began}


def _report(trials: Trials, guide: str, batch: Batch) -> RewardReport:
    reward = _seen(trials.reward(guide))
    given = {"seeds": batch.seeds, "num_steps": trials.steps}
    return dk.analysis.reward_report(reward, trials.backbone, batch.prompts, **given)


def summary(seen: Mapping, told: Mapping, name: str) -> dict[str, dict]:
    """Means and intervals over pairs of each instrument of a guide, by step and over all steps."""
    result = {"AUC": _auc(seen[name]["h"], seen["right"]) | {"steps": seen["steps"]}}
    for of, whole in ((seen[name], seen), (told, told)):
        for what in INSTRUMENTS.keys() & of.keys():
            values = np.array(of[what])
            by_step = [rounded(bootstrap(row)) for row in values]
            mean = rounded(bootstrap(values.mean(0)))
            result[what] = {"all steps": mean, "by step": by_step, "steps": whole["steps"]}
    return {what: result[what] for what in INSTRUMENTS}


def _auc(h: Sequence[Sequence[float]], right: Sequence[float]) -> dict[str, Any]:
    """P(h of a right picture > h of a wrong one), ties half; None where all are of one kind."""
    is_right = np.array(right, bool)
    counts, wins = np.outer(is_right, ~is_right).astype(float), []
    if not counts.any():
        return {"all steps": None, "by step": [None] * len(h)}
    for row in np.array(h):
        higher, equal = row[:, None] > row, row[:, None] == row
        wins.append((higher + 0.5 * equal) * counts)
    pairs = np.arange(len(counts))
    by_step = [rounded(bootstrap_pairs(won, counts, pairs)) for won in wins]
    mean = bootstrap_pairs(np.mean(wins, axis=0), counts, pairs)
    return {"all steps": rounded(mean), "by step": by_step}


def same_order(content: Mapping, instrument: str) -> tuple[int, int]:
    """Of the pairs of guides that differ in gain, how many an instrument orders alike, of how many.

    An instrument without a value for a guide, or with equal ones, does not order them.
    """
    alike, differ = _alike(content, instrument)
    return int(alike.sum()) // 2, int(differ.sum()) // 2


def order_apart(content: Mapping, one: str, other: str) -> Interval:
    """The share of pairs of guides that one instrument orders as their gains, minus the other's.

    The 95 % interval is over guides: it says what other guides might have shown. Pairs of equal
    gain count too, as ordered by neither.
    """
    (mine, differ), (theirs, _) = (_alike(content, name) for name in (one, other))
    guides = len(differ)
    ahead = mine.astype(float) - theirs
    return bootstrap_pairs(ahead, 1.0 - np.eye(guides), np.arange(guides))


def _alike(content: Mapping, instrument: str) -> tuple[np.ndarray, np.ndarray]:
    """Which guides an instrument orders as their gains, and which differ in gain, (G, G) each."""
    told = content["instruments"]
    values = [(each[instrument]["all steps"] or [np.nan])[0] for each in told.values()]
    gains = [content["rows"][name][GAIN][0] for name in told]
    apart = np.subtract.outer(gains, gains)
    return np.subtract.outer(values, values) * apart > 0, apart != 0


def points(content: Mapping, instrument: str = "cosine x0bar") -> dict[str, dict]:
    """What `figures.alignment_against_gain` draws: a guide's instrument and gain, by its name."""
    told = content["instruments"]
    return {
        name: {INSTRUMENTS[instrument]: told[name][instrument]["all steps"], GAIN: row[GAIN]}
        for name, row in content["rows"].items()
        if name in told and told[name][instrument]["all steps"] is not None
    }


def guided(h: Any, rho: float) -> DATE:
    """What a guide is judged by."""
    return DATE(h, rho, decoder=DECODER)


def _extra(course: Course) -> dict:
    trials, told = course.trials(), {}
    seen = course.notes.get("looks", looks, trials)
    for name, own in GUIDES.items():
        answers = course.notes.get(f"report: {name}", report, trials, own)
        told[name] = summary(seen, answers, name)
    return {"rho": RHO, "decoder": DECODER, "right pictures": RIGHT, "instruments": told}


STUDY = Study(
    "what-guides",
    (
        Row(FIXED, lambda h, s: Fixed()),
        *(Row(name, guided, (RHO,), guide=own) for name, own in GUIDES.items()),
    ),
    MEASURES,
    judges=MEASURES[:-1],
    trials=GuideTrials,
    steps=20,
    tuning_pairs=16,
    seed=40,
    extra=_extra,
)


def markdown(content: Mapping) -> str:
    """The gain of each guide beside its instruments, and how many pairs of guides these order."""
    names, lines = list(INSTRUMENTS), []
    for guide, told in content["instruments"].items():
        cells = [_told(told[name]["all steps"]) for name in names]
        lines.append([guide, cell(guide, content["rows"][guide], "oracle", ".1%"), *cells])
    orders = ["{} of {}".format(*same_order(content, name)) for name in names]
    lines.append(["pairs of guides in the order of their gains", "", *orders])
    return grid(["guide", "oracle: all right", *INSTRUMENTS.values()], lines)


def _told(interval: Sequence[float] | None) -> str:
    return "" if interval is None else "{:.2f} [{:.2f}, {:.2f}]".format(*interval)
