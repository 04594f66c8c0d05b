"""When is DATE the better buy? What methods gain, by how often the fixed embedding is right.

Families of prompts differ in how often it is right, and so do prompts of two things. These are put
into bins by how often it is right over other seeds than those that the methods are judged on: by
the same seeds, prompts that had bad luck would fill the low bins, and whatever draws them again
would seem to help there. Every prompt is judged with several seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

import datekit as dk
from datekit.methods import DATE, Fixed
from datekit.noise import derived
from studies import figures, results
from studies.results import COST, FIXED, MEASURES, grid, intervals
from studies.runner import Course
from studies.study import Row, Study
from studies.trials import Batch, Draw, Trials

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAMILIES = ("single", "attribution", "two", "position", "counting", "three")
BINNED = ("attribution", "position")  # families of two things that the bins take prompts from
TWICE = 2  # as many prompts of each are binned as a family has
SEEDS = 4  # of each prompt, on which every method is judged
COLUMNS = len(FAMILIES) + TWICE * len(BINNED)
BLOCK = COLUMNS * SEEDS  # pairs: one prompt of each family, and those to be binned
OTHERS = tuple(f"{FIXED}, other seeds {k}" for k in (1, 2))  # that the bins are made by
EDGES = (0.0, 0.25, 0.5, 0.75)
BINS = ("never", "to 25 %", "25 to 50 %", "50 to 75 %", "above 75 %")
RUNNING = "DATE, running"
BOTH = f"{RUNNING}, best of 2"
RHO = 0.3
COUNTS = (4, 8)  # which take about the time of DATE and of `BOTH`
CANDIDATES = {f"best of {n}": (FIXED, n) for n in COUNTS} | {BOTH: (RUNNING, 2)}


def texts(n: int, seed: int, part: str) -> list[str]:
    """n prompts, each `SEEDS` times: one of each family and those to be binned, in turn."""
    blocks = -(-n // BLOCK)
    columns = [dk.shapes.prompts("heldout", blocks, seed, family, part) for family in FAMILIES]
    for family in BINNED:
        own = dk.shapes.prompts("heldout", TWICE * blocks, seed + 1, family, part)
        columns += [own[k::TWICE] for k in range(TWICE)]
    result: list[str] = []
    for row in zip(*columns, strict=True):
        for prompt in row:
            result += [prompt] * SEEDS
    return result[:n]


def numbers(pairs: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Which of the pairs belong to each family, (P, SEEDS), and to the prompts that are binned."""
    whole = np.arange(pairs - pairs % BLOCK).reshape(-1, COLUMNS, SEEDS)
    families = {family: whole[:, n] for n, family in enumerate(FAMILIES)}
    return families, whole[:, len(FAMILIES) :].reshape(-1, SEEDS)


def bins(rates: np.ndarray) -> dict[str, np.ndarray]:
    """Which prompts (P,) fall into each bin, by how often each was right: 0, (0, 1/4] and so on."""
    places = np.searchsorted(EDGES, rates)
    return {name: places == n for n, name in enumerate(BINS)}


def at_most(right: np.ndarray, n: int) -> np.ndarray:
    """How often a perfect judge would find one of n pictures right, by prompt, (P,).

    It is 1 - (1 - p)^n with p how often one picture is right, which differs by prompt: the mean of
    p in its place would promise too much. right: (P, m), m >= n, of other pictures. Of those, the
    share of choices of n that are all wrong estimates (1 - p)^n without bias.
    """
    m = right.shape[1]
    wrong = m - right.sum(1).astype(int)
    return np.array([1 - math.comb(w, n) / math.comb(m, n) for w in wrong])


def summaries(rights: Mapping[str, np.ndarray], own: np.ndarray) -> dict:
    """What each row did on some prompts: share right, paired gain, and what it could do at most.

    rights: 1 or 0 of all pairs by row; own: the numbers of these prompts' pairs, (P, SEEDS). Means
    over a prompt's seeds first, as the intervals are over prompts.
    """
    right = {name: row[own] for name, row in rights.items() if name not in OTHERS}
    base, result = right[FIXED].mean(1), {}
    for name, row in right.items():
        result[name] = intervals({"oracle": row.mean(1)}, ("oracle",), {"oracle": base})
        alone, n = CANDIDATES.get(name, (name, 1))
        if 1 < n <= SEEDS:
            most = {"at most": at_most(right[alone], n)}
            result[name] |= intervals(most, most)
    return {"prompts": len(own), "pairs": own.size, "rows": result}


def by_base_rate(rights: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """`summaries` of each family, and of each bin of the prompts of two things that has any."""
    families, two = numbers(len(rights[FIXED]))
    rates = np.concatenate([rights[name][two] for name in OTHERS], axis=1).mean(1)
    binned = {name: two[mask] for name, mask in bins(rates).items() if mask.any()}
    return {
        "families": {name: summaries(rights, own) for name, own in families.items()},
        "bins": {name: summaries(rights, own) for name, own in binned.items()},
    }


def other_seeds(trials: Trials, k: int) -> Draw:
    """What the fixed embedding draws from seeds that nothing else is drawn from."""
    draw = trials.sample(Fixed())

    def again(batch: Batch):
        return draw(replace(batch, seeds=[derived(seed, k, "base rate") for seed in batch.seeds]))

    return again


def moved(h: Any, rho: float) -> DATE:
    """DATE at all steps from the running embedding, whose reward sees through the small decoder."""
    return DATE(h, rho, anchor="running", decoder="tiny")


def _rows() -> list[Row]:
    rows = [Row(FIXED, lambda h, s: Fixed())]
    rows += [Row(name, make=other_seeds, grid=(k,)) for k, name in enumerate(OTHERS, 1)]
    for name, (alone, n) in ({RUNNING: (RUNNING, 1)} | CANDIDATES).items():
        if alone == FIXED:
            rows.append(Row(name, lambda h, s: Fixed(), count=n))
        else:
            rows.append(Row(name, moved, (RHO,), count=n, words="rho {0:g}"))
    return rows


def _extra(course: Course) -> dict:
    rights = {name: np.array(row["oracle"]) for name, row in course.rows.items()}
    return {"seeds a prompt": SEEDS, **by_base_rate(rights)}


STUDY = Study(
    "base-rate",
    tuple(_rows()),
    MEASURES,
    prompts=texts,
    steps=20,
    pairs=24 * BLOCK,
    tuning_pairs=1,
    seed=40,
    extra=_extra,
)


def markdown(content: Mapping) -> str:
    """Gains by family and by bin, with what a perfect judge would gain at most, and seconds."""
    rows = {name: row for name, row in content["rows"].items() if name not in OTHERS}
    lines = [["s / picture", *(f"{row[COST]:.2f}" for row in rows.values())]]
    for part, own in (content["families"] | content["bins"]).items():
        cells = [_cell(name, own["rows"]) for name in rows]
        lines.append([f"{part} ({own['prompts']} prompts)", *cells])
    return grid(["prompts", *rows], lines)


def _cell(name: str, rows: Mapping) -> str:
    """A share right for the fixed embedding; else a gain, and what it could be at most."""
    if name == FIXED:
        return f"{rows[name]['oracle'][0]:.1%}"
    text = results.cell(name, rows[name], "oracle", ".1%").partition(", ")[2]
    most = rows[name].get("at most")
    return f"{text}, at most {most[0] - rows[FIXED]['oracle'][0]:+.1%}" if most else text


def draw(content: Mapping) -> Figure:
    """DATE beside the best-of-N nearest to it in time, and the same of `BOTH`."""
    import matplotlib.pyplot as plt

    image, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    rows = content["rows"]
    for ax, own in zip(axes, (RUNNING, BOTH), strict=True):
        shown = (own, beside(rows, own))
        labels = {name: f"{name}: {rows[name][COST]:.2f} s" for name in shown}
        figures.gains(content["families"], content["bins"], labels, ax=ax)
    return image


def beside(rows: Mapping[str, Mapping], name: str) -> str:
    """The best-of-N of the fixed embedding whose time is nearest to a row's."""
    plain = [key for key, (alone, _) in CANDIDATES.items() if alone == FIXED]
    return min(plain, key=lambda key: abs(rows[key][COST] - rows[name][COST]))
