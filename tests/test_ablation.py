"""The ablation study: rows are what they are called, and the committed values say its claims."""

from __future__ import annotations

import re

import numpy as np
import pytest
import studies
import torch
from studies import ablate, claims, trials

import datekit as dk

KEPT = studies.load("ablations")


@pytest.fixture(scope="module")
def bench():
    prompts = dk.shapes.prompts("heldout", 2, 0, part="tune")
    own = trials.Trials("shapes", prompts, 0, steps=20, judges=tuple(trials.JUDGES))
    own.plain_pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return own


def methods(trials_, monkeypatch) -> dict[str, tuple]:
    """The method and the settings of every row at strength 1.2, by name; nothing is sampled."""
    asked = {}
    monkeypatch.setattr(trials.Trials, "sample", lambda self, method, **s: (method, s))
    monkeypatch.setattr(ablate, "mean_gradient", lambda *given: 0.01)
    for row in ablate.ROWS:
        if not row.same:
            strength = row.grid[0] if len(row.grid) == 1 else 1.2
            asked[row.key] = row.draw(trials_, strength)
    return asked


def test_rows_are_what_they_are_called(bench, monkeypatch):
    rows = methods(bench, monkeypatch)
    updates = {}
    for name, (method, _) in rows.items():
        if name in {row.key for row in ablate.main_rows()} and isinstance(method, dk.DATE):
            updates[name] = len(method.when.indices(20))
    assert updates == {
        "DATE, all steps": 20,
        "DATE, 10 % of steps": 2,
        "DATE, 10 % of steps, then best of 2": 2,
        "DATE, 50 % of steps": 10,
        "DATE, all steps, running": 20,
        "DATE, early third": 7,
        "DATE, middle third": 7,
        "DATE, late third": 6,
    }
    assert rows["fixed, 1.4 times the steps"][1]["num_steps"] == 28
    for name, (method, settings) in rows.items():
        assert settings.get("count", 1) == int((re.findall(r"best of (\d)$", name) or [1])[0])
        for word, wanted in re.findall(r"(rho|guidance) ([\d.]+)", name):
            got = method.rho if word == "rho" else settings["guidance_scale"]
            assert got == float(wanted)
        if match := re.fullmatch(r"inner steps: (\d) in (\d+)% of the steps", name):
            count, share = map(int, match.groups())
            own = (method.inner_steps, len(method.when.indices(20)))
            assert own == (count, 20 * share // 100)
        if match := re.fullmatch(r"reward: (\w+), rho .*", name):
            assert method.reward.name == trials.JUDGES[match[1]]
        if match := re.fullmatch(r"between: (\w+)", name):
            assert method.between == match[1]
        if match := re.fullmatch(r"anchor: (\w+)", name):
            assert method.anchor == match[1]
    assert rows["direction: unnormalised, of the same mean length"][0].rho.scale == 120.0
    assert str(rows["precision: fixed, bfloat16"][1]["backbone"].dtype) == "torch.bfloat16"


def test_the_committed_study_is_large_and_of_held_out_prompts():
    assert KEPT["pairs"] >= 500
    assert KEPT["side_pairs"] >= 320
    tune, test = (
        set(dk.shapes.prompts("heldout", KEPT[n], KEPT["seed"], part=part))
        for n, part in (("tuning_pairs", "tune"), ("pairs", "test"))
    )
    assert not tune & test
    assert len(test) == KEPT["distinct prompts"]


def test_every_number_of_the_committed_study_again_from_its_pairs():
    for name, row in KEPT.rows.items():
        for measure in ablate.STUDY.measures:
            values = KEPT.values(row["label"], measure, row["group"])
            fixed = KEPT.values("fixed", measure)[: len(values)]
            deciding = row["group"] in ("main", *ablate.DECIDING)
            assert len(values) == KEPT["pairs" if deciding else "side_pairs"], name
            assert row[measure][0] == pytest.approx(values.mean(), abs=6e-4)
            gain = row[f"{measure} - fixed"][0]
            np.testing.assert_allclose(gain, (values - fixed).mean(), atol=1.1e-3)


def test_every_claim_has_a_verdict_with_numbers():
    found = claims.findings(KEPT)
    assert len(found) == sum(len(claim.measures) for claim in claims.CLAIMS)
    assert {finding.verdict for finding in found} <= set(claims.VERDICTS)
    tags = {tag for row in ablate.ROWS for tag in row.tags}
    for claim in claims.CLAIMS:
        assert set(claim.weights) | ({claim.best} - {""}) <= tags
    few = next(f for f in found if "10 % of the updates keep" in f.claim.text)
    pick = [KEPT.values(n, "heldout") for n in ("DATE, 10 % of steps", "fixed", ablate.ALL)]
    assert few.here.mean == pytest.approx((pick[0] - (pick[1] + pick[2]) / 2).mean())
    table = claims.markdown(found)
    assert (
        "| updates at all steps beat the fixed embedding | CS .3292 to .3204 | heldout |" in table
    )
    with pytest.raises(KeyError, match="nothing"):
        claims.findings(KEPT, [claims.Claim("", "", {"nothing": 1.0})])
