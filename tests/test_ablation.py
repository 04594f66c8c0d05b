"""The ablation study: it resumes, its rows are what they are called, and the committed results say what their values say."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import datekit as dk
from datekit.cli import main
from datekit.evaluation import bootstrap
from studies import ablation, ablation_rows, trials, verdicts
from studies.ablation import FIXED, MEASURES, Bench, markdown, values

RESULTS = Path(ablation.__file__).parent / "results" / "ablations.json"
SMALL = [
    "ablate",
    "--steps",
    "2",
    "--pairs",
    "3",
    "--side-pairs",
    "2",
    "--tuning-pairs",
    "2",
    "--part",
    "main",
    "--part",
    "between",
]
CHOSEN = {
    "rho": 1.2,
    "rho, running": 0.3,
    "rho, reset": 0.6,
    "tolerance": 0.5,
    "most": 1.2,
    "mean gradient": 0.01,
}


def test_a_study_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, capsys):
    out, judge, count = tmp_path / "a.json", Bench.judge, []
    monkeypatch.setattr(ablation_rows, "RHOS", (0.3, 0.6))
    monkeypatch.setattr(ablation_rows, "RUNNING_RHOS", (0.1,))

    def interrupted(self, *args):
        count.append(1)
        if len(count) in (2, 9):
            raise KeyboardInterrupt
        return judge(self, *args)

    monkeypatch.setattr(Bench, "judge", interrupted)
    monkeypatch.setattr(trials, "bootstrap", functools.partial(bootstrap, resamples=500))
    assert main([*SMALL, "--out", str(out)]) == 130
    assert main([*SMALL, "--out", str(out)]) == 130
    assert not out.exists()
    assert main([*SMALL, "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert (
        len(count) == 2 + 3 + len(content["main"]) + 2
    )  # nothing but the two interrupted rows was measured twice
    assert not list(tmp_path.glob("*.progress"))
    assert {"date", "hardware", "seed", "command", "pairs", "weights"} <= set(content)
    capsys.readouterr()
    check(content)
    other = [*SMALL[:-4], "--part", "anchor", "--out", str(out)]
    assert main(other) == 0
    both = json.loads(out.read_text())
    assert list(both["groups"]) == ["anchor", "between"]
    assert both["groups"]["between"] == content["groups"]["between"]
    assert both["chosen on other prompts by the held-out reward"]["rho, reset"] in (0.3, 0.6)
    check(both)
    assert main([*other, "--seed", "1"]) == 2
    assert "holds a study with another seed; give another --out" in capsys.readouterr().err
    assert json.loads(out.read_text()) == both


def test_another_study_beside_it_does_not_touch_what_is_kept(tmp_path):
    row = {"guide": [1.0], "heldout": [1.0], "oracle": [1.0], "seconds": 0.0}
    for pairs in (3, 4):
        trials.Notes(tmp_path / "a.json", {"pairs": pairs}).get(f"row {pairs}", lambda: row)
    assert [
        list(trials.Notes(tmp_path / "a.json", {"pairs": pairs}).content) for pairs in (3, 4)
    ] == [["row 3"], ["row 4"]]


def check(content: dict) -> None:
    """Every number of a file of results again, from the values of its pairs."""
    assert set(content["main"][FIXED]["values"]) == set(MEASURES)
    for group, rows in ((None, content["main"]), *content["groups"].items()):
        pairs = (
            content["pairs"] if group in (None, *ablation_rows.DECIDING) else content["side_pairs"]
        )
        for name, row in rows.items():
            for measure in MEASURES:
                found, fixed = (
                    values(content, name, measure, group),
                    values(content, FIXED, measure)[:pairs],
                )
                assert len(found) == pairs
                np.testing.assert_allclose(row[measure][0], found.mean(), atol=6e-4)
                np.testing.assert_allclose(
                    row[f"{measure} - fixed"][0], (found - fixed).mean(), atol=1.1e-3
                )
                assert row[measure][1] <= row[measure][0] <= row[measure][2]
            assert row[ablation.COST] > 0
    assert markdown(content).count("\n") == 1 + len(content["main"])


def test_what_is_judged_is_what_a_plain_run_draws():
    bench = Bench("shapes", dk.shapes.prompts("heldout", 3, 0, part="test"), 0, steps=2, batch=2)
    row = bench.judge(bench.sample(dk.DATE(bench.guide, rho=0.5)), 3)
    sampler = dk.Sampler(
        dk.load("shapes"), dk.DATE(dk.rewards.load("shapes-clip"), rho=0.5), num_steps=2
    )
    for start in (0, 2):
        prompts = bench.prompts[start : start + 2]
        images = sampler.start(prompts, seeds=bench.seeds[start : start + 2]).finish().pixels
        for measure, name in trials.JUDGES.items():
            with torch.no_grad():
                wanted = dk.rewards.load(name)(images, prompts).tolist()
            assert row[measure][start : start + 2] == pytest.approx(wanted, abs=1e-4)
        assert row["oracle"][start : start + 2] == [
            float(v.right) for v in dk.shapes.judge(images, prompts)
        ]
    assert len(bench.judge(bench.sample(dk.Fixed()), 1)["oracle"]) == 1


@pytest.fixture(scope="module")
def bench():
    return Bench("shapes", dk.shapes.prompts("heldout", 4, 0, part="tune"), 0, steps=20, batch=2)


def recorded(monkeypatch, bench, group) -> dict:
    """The methods and settings of a group's rows, by name; nothing is sampled."""
    asked = []
    sample = Bench.sample
    monkeypatch.setattr(
        Bench,
        "sample",
        lambda self, method, **settings: (
            asked.append((method, settings)) or sample(self, method, **settings)
        ),
    )
    monkeypatch.setattr(
        dk.Run, "finish", lambda run, **_: run
    )  # the scale of a sum may come from noise here
    found = {}
    for name, made in (
        ablation_rows.main(bench, CHOSEN)
        if group == "main"
        else ablation_rows.GROUPS[group](bench, bench, CHOSEN)
    ):
        assert name not in found
        asked.clear()
        found[name] = made if isinstance(made, str) else (made(), *asked[-1:])[-1]
    return found


def test_the_main_rows_are_what_they_are_called(monkeypatch, bench):
    rows = recorded(monkeypatch, bench, "main")
    updates = {
        name: len(method.when.indices(20))
        for name, (method, _) in rows.items()
        if isinstance(method, dk.DATE)
    }
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
    assert rows["fixed, 28 steps"][1] == {"num_steps": 28}
    assert {
        name: settings["count"] for name, (_, settings) in rows.items() if "count" in settings
    } == {"best of 2": 2, "best of 4": 4, "DATE, 10 % of steps, then best of 2": 2}
    assert (
        rows["random direction of length 1.2, all steps"][0].rho
        == rows["DATE, all steps"][0].rho
        == 1.2
    )
    assert rows["DATE, all steps, running"][0].anchor == "running"


@pytest.mark.parametrize("group", ablation_rows.GROUPS)
def test_the_other_rows_are_what_they_are_called(monkeypatch, bench, group):
    rows, known = recorded(monkeypatch, bench, group), recorded(monkeypatch, bench, "main")
    assert rows
    for name, made in rows.items():
        if isinstance(made, str):
            assert made in known
            continue
        method, settings = made if isinstance(made, tuple) else (None, {})
        for word, wanted in re.findall(r"(rho|guidance) ([\d.]+)", name):
            assert float(wanted) == (method.rho if word == "rho" else settings["guidance_scale"])
        if group == "between":
            assert method.between == name
        if group == "inner steps":
            count, share = map(int, re.fullmatch(r"(\d) in (\d+)% of the steps", name).groups())
            assert (method.inner_steps, len(method.when.indices(20))) == (count, 20 * share // 100)
        if group == "reward":
            parts = name.split(", rho")[0].split(" + ")
            inside = (
                [part.reward for _, part in method.reward.parts]
                if len(parts) > 1
                else [method.reward]
            )
            assert [reward.name for reward in inside] == [trials.JUDGES[part] for part in parts]


@pytest.mark.parametrize(("options", "message"), [
    (["--part", "colour"], "unknown part colour; there are main, reward"),
    (["--side-pairs", "9"], "side_pairs are the first of the pairs, so from 1 to 3; got 9"),
])  # fmt: skip
def test_bad_options(tmp_path, capsys, options, message):
    assert (
        main(
            [
                "ablate",
                "--out",
                str(tmp_path / "a.json"),
                "--pairs",
                "3",
                "--side-pairs",
                "2",
                *options,
            ]
        )
        == 2
    )
    assert message in capsys.readouterr().err


def test_a_verdict_is_read_off_the_interval():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 400)
    for shift, margin, wanted in ((0.5, 0.9, "reproduced"), (-0.5, 0.9, "contradicted"), (0.0, None, "undecided"), (0.0, 0.05, "undecided"),
                                  (0.0, 0.2, "no difference")):  # fmt: skip
        claim = verdicts.Claim(
            "a beats b", "", bootstrap(noise - noise.mean() + shift), 400, margin=margin
        )
        assert claim.verdict == wanted
    for shift, wanted in ((0.0, "reproduced"), (0.15, "contradicted"), (0.05, "undecided")):
        claim = verdicts.Claim(
            "a equals b",
            "",
            bootstrap((noise - noise.mean()) + shift),
            400,
            margin=0.11,
            equal=True,
        )
        assert claim.verdict == wanted, claim.here
    table = verdicts.markdown([verdicts.Claim("a beats b", "by a lot", bootstrap([1.0, 2.0]), 2)])
    assert "| a beats b | by a lot | heldout | +1.500 [+1.000, +2.000] | 2 | reproduced |" in table


if RESULTS.is_file():
    CONTENT = json.loads(RESULTS.read_text())

    def test_the_committed_study_is_large_small_and_consistent():
        assert CONTENT["pairs"] >= 500
        assert CONTENT["side_pairs"] >= 320
        assert RESULTS.stat().st_size < 1_000_000
        assert list(CONTENT["groups"]) == list(ablation_rows.GROUPS)
        check(CONTENT)

    def test_the_committed_study_is_of_held_out_prompts():
        tune, test = (
            set(dk.shapes.prompts("heldout", CONTENT[n], CONTENT["seed"], part=part))
            for n, part in (("tuning_pairs", "tune"), ("pairs", "test"))
        )
        assert not tune & test
        assert len(test) == CONTENT["distinct prompts"]

    def test_every_claim_has_a_verdict_with_numbers():
        claims = verdicts.claims(CONTENT)
        assert len(claims) >= 8
        assert {claim.verdict for claim in claims} <= set(verdicts.VERDICTS)
