"""Gain by base rate: bins without bias, the bound on best-of-N, a figure that holds the data."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from studies import base_rate, figures
from studies.base_rate import BLOCK, BOTH, FIXED, OTHERS, RUNNING, SEEDS
from studies.results import COST
from studies.trials import Batch

import datekit as dk
from datekit import statistics

PAIRS = 300 * BLOCK
METHODS = [row.name for row in base_rate.STUDY.rows if row.name not in OTHERS]


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)


def known_rates(pairs=PAIRS):
    """How often each prompt is right, half of the prompts hardly ever; by pair."""
    rates = np.random.default_rng(0).beta(0.4, 0.6, pairs // SEEDS)
    return np.repeat(rates, SEEDS)


def sampled(rates, names=(*METHODS, *OTHERS)):
    """Pictures that are right at these rates, whatever the row: none is better than another."""
    rng = np.random.default_rng(1)
    return {name: (rng.random(len(rates)) < rates).astype(float) for name in names}


def test_every_prompt_is_of_its_family_and_has_its_seeds():
    pairs = 3 * BLOCK
    texts = base_rate.texts(pairs + 5, 40, "test")
    assert texts[:BLOCK] == base_rate.texts(BLOCK, 40, "test")
    families, two = base_rate.numbers(pairs + 5)
    rows = [*families.values(), two]
    assert sorted(np.concatenate(rows).ravel()) == list(range(pairs))
    for family, own in families.items():
        known = dk.shapes.prompts("heldout", None, 0, family, "test")
        assert {texts[n] for n in own.ravel()} <= set(known)
    assert all(len({texts[n] for n in row}) == 1 for row in np.concatenate(rows))
    assert len({texts[row[0]] for row in two}) == len(two)


def test_bins_are_made_by_seeds_that_nothing_else_has():
    asked = []
    trials = SimpleNamespace(sample=lambda method: lambda batch: asked.append(batch.seeds))
    own = list(range(8))
    for k in (1, 2):
        base_rate.other_seeds(trials, k)(Batch(0, ["a star"] * 8, own))
    candidates = [dk.noise.derived(s, j, "best-of") for s, j in itertools.product(own, range(1, 8))]
    seeds = [*own, *candidates, *asked[0], *asked[1]]
    assert len(set(seeds)) == len(seeds) == 8 * 10


def test_where_nothing_helps_no_bin_gains():
    """In each bin the fixed embedding shows its true rate, and drawing again gains nothing."""
    rates = known_rates()
    rights = sampled(rates, (FIXED, RUNNING, *OTHERS))
    _, two = base_rate.numbers(PAIRS)
    seen = np.concatenate([rights[name][two] for name in OTHERS], axis=1).mean(1)
    masks = base_rate.bins(seen)
    assert (sum(masks.values()) == 1).all()
    for name, part in base_rate.by_base_rate(rights)["bins"].items():
        true = rates[two][masks[name]]
        off = 4 * np.sqrt((true * (1 - true)).sum()) / true.size  # four standard errors
        assert part["rows"][FIXED]["oracle"][0] == pytest.approx(true.mean(), abs=off)
        assert part["rows"][RUNNING]["oracle - fixed"][0] == pytest.approx(0, abs=1.5 * off)
    # by the seeds that are judged, the low bins would gain and the high ones lose
    biased = rights | dict.fromkeys(OTHERS, rights[FIXED])
    low, *_, high = base_rate.by_base_rate(biased)["bins"].values()
    gains = [part["rows"][RUNNING]["oracle - fixed"] for part in (low, high)]
    assert gains[0][1] > 0.03
    assert gains[1][2] < -0.03


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_bound_is_the_closed_form_and_what_a_perfect_judge_reaches(n):
    outcomes = np.array(list(itertools.product((0.0, 1.0), repeat=SEEDS)))
    bound, right = base_rate.at_most(outcomes, n), outcomes.sum(1)
    for p in (0.0, 0.1, 0.5, 0.9, 1.0):
        chances = p**right * (1 - p) ** (SEEDS - right)
        assert bound @ chances == pytest.approx(1 - (1 - p) ** n)  # without bias
    rates = known_rates().reshape(-1, SEEDS)[:, 0]
    rng = np.random.default_rng(2)
    drawn, judged = (rng.random((len(rates), SEEDS)) < rates[:, None] for _ in range(2))
    reached = judged[:, :n].any(1)  # by a judge that finds the right one
    bound = base_rate.at_most(drawn.astype(float), n)
    off = 4 * np.sqrt((reached.var() + bound.var()) / len(rates))
    assert bound.mean() == pytest.approx(reached.mean(), abs=off)


def test_the_figure_and_the_table_hold_the_data():
    costs = {FIXED: 0.1, RUNNING: 0.38, "best of 4": 0.4, "best of 8": 0.8, BOTH: 0.76}
    rights = sampled(known_rates(8 * BLOCK))
    content = base_rate.by_base_rate(rights)
    content["rows"] = {name: {COST: seconds} for name, seconds in costs.items()}
    found = [base_rate.beside(content["rows"], name) for name in (RUNNING, BOTH)]
    assert found == ["best of 4", "best of 8"]
    ax = figures.gains(content["families"], content["bins"], {RUNNING: "DATE"})
    for kind, bars in zip(("bins", "families"), ax.containers, strict=True):
        rows = [part["rows"] for part in content[kind].values()]
        wanted = [(row[FIXED]["oracle"][0], row[RUNNING]["oracle - fixed"][0]) for row in rows]
        np.testing.assert_allclose(bars.lines[0].get_xydata(), wanted)
    plt.close(ax.figure)
    first, second = base_rate.draw(content).axes
    assert [len(ax.containers) for ax in (first, second)] == [4, 4]  # of bins and of families
    plt.close("all")
    lines = base_rate.markdown(content).splitlines()
    assert len(lines) == 3 + len(content["families"]) + len(content["bins"])
    most = content["bins"]["never"]["rows"]["best of 4"]["at most"][0]
    base = content["bins"]["never"]["rows"][FIXED]["oracle"][0]
    assert f"at most {most - base:+.1%}" in next(line for line in lines if "never" in line)
