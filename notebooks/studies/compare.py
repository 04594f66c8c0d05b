"""Methods against each other on held-out prompts about position: the main table.

Beside the paper's methods stand those that a user with a reward and some seconds would pick
instead. Each that has a strength gets the same budget for it: five strengths. A row is one line of
`ROWS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

import datekit as dk
from datekit.methods import DATE, EBCA, Fixed, LiDAR, RandomDirection, UniversalGuidance
from datekit.schedules import fraction
from studies.mistakes import KINDS
from studies.results import COST, FIXED, MEASURES, TITLES, cell, grid, with_settings
from studies.runner import Course
from studies.study import Row, Study
from studies.trials import Batch, Draw, Trials

SHARES = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8)  # rho in units of ||c_org||
ADDED_SHARES = (1 / 1024, 1 / 512, 1 / 256, 1 / 128, 1 / 64)  # where updates of all steps add up
SCALES = (3.0, 10.0, 30.0, 100.0, 300.0)
GAMMAS = ((0.0025, 0.005), (0.005, 0.01), (0.01, 0.02), (0.02, 0.04), (0.04, 0.08))
FACTORS = (0.6, 0.8, 1.0, 1.25, 1.6)  # on the recommended guidance scale
STRENGTHS = (10.0, 30.0, 100.0, 300.0, 1000.0)
LIDAR_SCALES = (3.0, 6.0, 12.5, 25.0, 50.0)
RATES = (1.5, 5.0, 15.0, 50.0, 150.0)
LOOKAHEADS = 8  # of LiDAR, by five steps: twice the steps of the run
SHORT, NOISES = 8, 5  # steps of a picture of ReNO, and pictures that it judges
RHO = "rho {0:.3g}, {share:.2%} of c_org's norm"
FEW = fraction(0.1)


def rhos(course: Course) -> list[float]:
    """The rho to choose from."""
    return [share * course.trials().scale for share in SHARES]


def added(course: Course) -> list[float]:
    """The rho to choose from where displacements of all steps add up."""
    return [share * course.trials().scale for share in ADDED_SHARES]


def both(course: Course) -> list[tuple[float, float]]:
    """The rho of DATE and the scale of Universal Guidance to choose from, half of each alone."""
    return [(rho / 2, s / 2) for rho, s in zip(rhos(course), SCALES, strict=True)]


def guided(trials: Trials, factor: float) -> Draw:
    """The fixed embedding at another guidance scale."""
    scale = factor * trials.backbone.recommended.guidance_scale
    return trials.sample(Fixed(), guidance_scale=scale)


def steered(trials: Trials, strength: float) -> Draw:
    """The best of four particles of Feynman-Kac steering."""
    own = {"num_steps": trials.steps, "eta": 1.0, "reward": trials.guide, "strength": strength}
    sampler = dk.FKSteering(trials.backbone, Fixed(), **own)

    def draw(batch: Batch) -> Tensor:
        run = sampler.start(batch.prompts, seeds=batch.seeds).finish(progress=False)
        return run.pixels[sampler.best(run.state)]

    return draw


def searched(trials: Trials, rate: float) -> Draw:
    """The best picture on the way of a noise that ReNO moves."""
    sampler = dk.Sampler(trials.backbone, Fixed(), num_steps=SHORT)
    search = dk.ReNO(sampler, trials.guide, iterations=NOISES - 1, rate=rate, clip=1.0)

    def draw(batch: Batch) -> Tensor:
        return search.start(batch.prompts, seeds=batch.seeds).finish(progress=False).pixels

    return draw


def lidar(h: Any, scale: float) -> LiDAR:
    """LiDAR with few lookaheads and the authors' strength, which takes the best that fits."""
    return LiDAR(h, samples=LOOKAHEADS, scale=scale)


ALL, RUNNING = "DATE, all steps", "DATE, all steps, running"
ROWS = (
    Row(FIXED, lambda h, s: Fixed()),
    Row("fixed, 1.4 times the steps", lambda h, s: Fixed(), longer=1.4),
    Row("guidance scale", make=guided, grid=FACTORS, words="{0:g} times the recommended"),
    Row("random direction", lambda h, s: RandomDirection(s), rhos, words=RHO),
    Row("EBCA", lambda h, s: EBCA(*s), GAMMAS,
        words="gamma_attn {0[0]:.3g}, gamma_norm {0[1]:.3g}"),
    Row("Universal Guidance", UniversalGuidance, SCALES, words="scale {0:g}"),
    Row("DATE, 10 % of steps, running", lambda h, s: DATE(h, s, FEW, "running"), rhos, words=RHO),
    Row(ALL, DATE, rhos, words=RHO),
    Row(RUNNING, lambda h, s: DATE(h, s, anchor="running"), added, words=RHO),
    Row("DATE, 10 % of steps, running, h = preference", lambda h, s: DATE(h, s, FEW, "running"),
        rhos, guide="preference", words=RHO),
    Row("DATE, all steps, running, h = preference", lambda h, s: DATE(h, s, anchor="running"),
        added, guide="preference", words=RHO),
    Row("DATE + Universal Guidance", lambda h, s: DATE(h, s[0]) + UniversalGuidance(h, s[1]), both,
        words="rho {0[0]:.3g}, scale {0[1]:g}"),
    Row("best of 2", lambda h, s: Fixed(), count=2),
    Row("best of 4", lambda h, s: Fixed(), count=4),
    Row("best of 8", lambda h, s: Fixed(), count=8),
    Row("DATE, all steps, running, best of 2", lambda h, s: DATE(h, s, anchor="running"),
        of=RUNNING, count=2),
    Row("fixed, eta = 1", lambda h, s: Fixed(), settings={"eta": 1.0}),
    Row("Feynman-Kac, 4 particles", make=steered, grid=STRENGTHS, words="strength {0:g}"),
    Row("LiDAR", lidar, LIDAR_SCALES, words="scale {0:g}"),
    Row(f"fixed, {SHORT} steps", lambda h, s: Fixed(), settings={"num_steps": SHORT}),
    Row(f"best of {NOISES}, {SHORT} steps", lambda h, s: Fixed(), count=NOISES,
        settings={"num_steps": SHORT}),
    Row(f"ReNO, {SHORT} steps", make=searched, grid=RATES, words="rate {0:g}"),
)  # fmt: skip


def _extra(course: Course) -> dict:
    true = course.trials().true_pictures
    return {
        "distance": f"Frechet, {true.shape[1]} features of shapes-clip-heldout, to {len(true)} "
        "true pictures"
    }


STUDY = Study(
    "compare",
    ROWS,
    (*MEASURES, *KINDS, "preference"),
    file="heldout",
    judges=("guide", "heldout", "preference"),
    steps=20,
    tuning_pairs=256,
    heat=64,
    distance=True,
    extra=_extra,
)
COLUMNS = {"guide": ".3f", "heldout": ".3f", "preference": ".2f", "oracle": ".1%"}


def markdown(content: Mapping) -> str:
    """Means, and paired differences to the fixed embedding with 95 % intervals."""
    titles = [TITLES.get(name, name) for name in COLUMNS]
    lines = []
    for name, row in with_settings(content["rows"]).items():
        cells = [name, f"{row[COST]:.2f}", f"{row['FID']:.3f}"]
        lines.append([*cells, *(cell(name, row, measure, COLUMNS[measure]) for measure in COLUMNS)])
    return grid(["method", "s / picture", "FID", *titles], lines)
