"""The runner of the studies: it chooses on other pairs, resumes, and its files say what it drew."""

from __future__ import annotations

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import studies
import torch
from studies import ablate, claims, figures, results, runner, trials
from studies.study import Row, Study

import datekit as dk
from datekit.statistics import bootstrap

FIXED = Row("fixed", lambda h, s: dk.Fixed(), tags=("fixed",))
ROWS = (
    FIXED,
    Row("DATE", dk.DATE, (0.5, 2.0), words="rho {0:g}, {share:.0%}", tags=("date", "both")),
    Row("early", lambda h, s: dk.DATE(h, s, dk.early()), of="DATE", tags=("both",), group="when"),
    Row("as before", same="DATE", group="when"),
    Row("best of 2", lambda h, s: dk.Fixed(), count=2),
    Row("longer", lambda h, s: dk.Fixed(), longer=1.5, settings={"guidance_scale": 3.0}),
)
TINY = Study(
    "tiny",
    ROWS,
    ("guide", "heldout", "oracle", "shape"),
    steps=2,
    pairs=3,
    side_pairs=2,
    tuning_pairs=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny study that was stopped twice, and how often something was judged."""
    out, judge, calls = tmp_path_factory.mktemp("tiny") / "tiny.json", trials.Trials.judge, []

    def stop(self, *given, **settings):
        calls.append(1)
        if len(calls) in (2, 5):
            raise KeyboardInterrupt
        return judge(self, *given, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials.Trials, "judge", stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                runner.run(TINY, out)
        assert not out.exists()
        runner.run(TINY, out)
    return out, len(calls)


def test_torn_notes_are_named(tmp_path):
    notes = results.Notes(tmp_path / "a.json", {})
    notes.get("a row", lambda: {"seconds": 1.0})
    assert results.Notes(tmp_path / "a.json", {}).content == {"a row": {"seconds": 1.0}}
    notes.path.write_text(notes.path.read_text()[:-9])
    with pytest.raises(ValueError, match=f"{notes.path.name} is damaged"):
        results.Notes(tmp_path / "a.json", {})


def test_a_study_goes_on_where_it_was_stopped(finished):
    out, calls = finished
    assert calls == 2 + 2 + 5  # two stopped, two strengths, five rows; nothing twice
    assert not list(out.parent.glob("*.progress"))
    content = json.loads(out.read_text())
    assert {"command", "date", "hardware", "seed", "weights", "pairs", "steps"} <= set(content)
    assert "studies tiny --model shapes --steps 2 --pairs 3" in content["command"]


def test_the_file_says_what_plain_runs_draw(finished):
    """Every value again: by a plain run, the same reward and oracle, from the same noise."""
    kept = studies.load(finished[0])
    tried = kept["tuning"]["mean held-out reward"]["DATE"]
    rho = kept.rows["DATE"]["strength"]
    assert tried[f"{rho:g}"] == max(tried.values())
    prompts = dk.shapes.prompts("heldout", 3, 0, part="test")
    guide = dk.rewards.load("shapes-clip")
    for name, method in (("fixed", dk.Fixed()), ("DATE", dk.DATE(guide, rho))):
        sampler = dk.Sampler(dk.load("shapes"), method, num_steps=2)
        images = sampler.start(prompts, seeds=[0, 1, 2]).finish(progress=False).pixels
        with torch.no_grad():
            wanted = guide(images, prompts)
        right = [float(verdict.right) for verdict in dk.shapes.judge(images, prompts)]
        np.testing.assert_allclose(kept.values(name, "guide"), wanted, atol=6e-4)
        assert kept.values(name, "oracle").tolist() == right
        np.testing.assert_allclose(kept.rows[name]["guide"][0], wanted.mean(), atol=1e-4)


def test_rows_are_paired_with_the_first_pairs_of_their_base(finished):
    kept = studies.load(finished[0])
    assert list(kept.group("when")) == ["early", "as before"]
    fixed, early = kept.values("fixed", "heldout"), kept.values("early", "heldout", "when")
    assert (len(fixed), len(early)) == (3, 2)
    gain = kept.rows["when: early"]["heldout - fixed"]
    np.testing.assert_allclose(gain, bootstrap(early, minus=fixed[:2]), atol=1.2e-3)
    again = kept.values("as before", "heldout", "when")
    assert again.tolist() == kept.values("DATE", "heldout")[:2].tolist()
    assert kept.rows["DATE"]["setting"] == f"rho {kept.rows['DATE']['strength']:g}, " + (
        f"{kept.rows['DATE']['strength'] / kept['norm of c_org']:.0%}"
    )
    assert kept.table().count("\n") == 1 + 4
    mean = (kept.values("DATE", "oracle")[:2] + kept.values("early", "oracle", "when")) / 2
    here, pairs = kept.difference({"both": 1.0, "fixed": -1.0}, "oracle")
    assert pairs == 2
    assert here == bootstrap(mean, minus=kept.values("fixed", "oracle")[:2])


def test_other_settings_or_weights_never_meet_old_rows(tmp_path):
    row = {"heldout": [1.0], "seconds": 0.0}
    for weights in ("a", "b"):
        notes = results.Notes(tmp_path / "x.json", {"weights": weights})
        assert not notes.content
        notes.get("row", lambda: row)
    assert results.Notes(tmp_path / "x.json", {"weights": "a"}).content == {"row": row}


def test_the_weakest_of_equals_is_chosen():
    rows = {0.1: {"heldout": [0, 0.5]}, 0.2: {"heldout": [0.5, 0.5]}, 0.4: {"heldout": [0.9, 0.1]}}
    assert results.best(rows) == 0.2
    assert results.best({}) is None


def test_what_is_not_defined_on_a_model_has_no_row_and_says_why(tmp_path):
    def refuse(h, s):
        raise ValueError("no such attention here")

    study = replace(TINY, rows=(FIXED, Row("EBCA", refuse)), pairs=2)
    content = runner.run(study, tmp_path / "x.json")
    assert list(content["rows"]) == ["fixed"]
    assert content["undefined"] == {"EBCA": "no such attention here"}


@pytest.mark.parametrize("name", studies.STUDIES)
def test_rows_are_named_once_and_refer_to_rows(name):
    study = studies.find(name)
    keys = [row.key for row in study.rows]
    assert len(set(keys)) == len(keys)
    for row in study.rows:
        assert {row.of, row.same, row.base} <= {"", *keys}
        assert not callable(row.grid) or not row.of


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.002, 0.5])
def test_a_verdict_is_read_off_the_interval(shift):
    noise = np.random.default_rng(0).normal(0, 0.03, 400)
    here = bootstrap(noise - noise.mean() + shift)
    beats = claims.Claim("a beats b", "", claims.over("a", "b"))
    equals = replace(beats, equal=True)
    verdict = {-0.5: "contradicted", 0.5: "reproduced"}.get(shift, "no difference")
    assert claims.Finding(beats, "heldout", here, 400).verdict == verdict
    other = "reproduced" if abs(shift) < 0.1 else "contradicted"
    assert claims.Finding(equals, "heldout", here, 400).verdict == other
    strict = claims.Finding(replace(beats, level=False), "heldout", here, 400)
    assert strict.verdict == ("undecided" if abs(shift) < 0.1 else verdict)


def test_every_number_of_the_committed_ablations_again_from_its_pairs():
    kept = studies.load("ablations")
    for name, row in kept.rows.items():
        for measure in ablate.STUDY.measures:
            values = kept.values(row["label"], measure, row["group"])
            fixed = kept.values("fixed", measure)[: len(values)]
            deciding = row["group"] in ("main", *ablate.DECIDING)
            assert len(values) == kept["pairs" if deciding else "side_pairs"], name
            assert row[measure][0] == pytest.approx(values.mean(), abs=6e-4)
            gain = row[f"{measure} - fixed"][0]
            np.testing.assert_allclose(gain, (values - fixed).mean(), atol=1.1e-3)


def test_every_claim_has_a_verdict_with_numbers():
    kept = studies.load("ablations")
    found = claims.findings(kept)
    assert len(found) == sum(len(claim.measures) for claim in claims.CLAIMS)
    assert {finding.verdict for finding in found} <= set(claims.VERDICTS)
    tags = {tag for row in ablate.ROWS for tag in row.tags}
    for claim in claims.CLAIMS:
        assert set(claim.weights) | ({claim.best} - {""}) <= tags
    few = next(f for f in found if "10 % of the updates keep" in f.claim.text)
    pick = [kept.values(n, "heldout") for n in ("DATE, 10 % of steps", "fixed", ablate.ALL)]
    assert few.here.mean == pytest.approx((pick[0] - (pick[1] + pick[2]) / 2).mean())
    with pytest.raises(KeyError, match="nothing"):
        claims.findings(kept, [claims.Claim("", "", {"nothing": 1.0})])


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_quality_against_time():
    rows = {f"method {n}": {"s": 9.0 - n, "h": (n, n - 1, n + 2)} for n in range(4)}
    ax = figures.quality({"some": rows, "one": {"alone": rows["method 2"]}}, cost="s", measure="h")
    some, one = ax.containers
    points = [[9 - n, n] for n in (3, 2, 1, 0)]  # from cheap to dear
    np.testing.assert_allclose(some.lines[0].get_xydata(), points)
    np.testing.assert_allclose(some.lines[2][0].get_segments()[1][:, 1], [1, 4])
    np.testing.assert_allclose(one.lines[0].get_xydata(), [[7, 2]])
    assert some.lines[0].get_marker() != one.lines[0].get_marker()  # told apart in grey print too
    written = {text.get_text(): text.xy for text in ax.texts}
    assert written == {f"method {n}": (9 - n, n) for n in range(4)} | {"alone": (7, 2)}
    assert "one, alone: 2 [1, 4] at 7" in dk.plot.alt_text(ax)


def test_a_ladder_climbs_from_cheap_to_dear():
    rows = {"dear": {"s": 3.0, "h - fixed": (2, 1, 4)}, "cheap": {"s": 1.0, "h - fixed": (0, 0, 0)}}
    figure = figures.ladder(rows, {"h": "gain"}, "s")
    (ax,) = figure.axes
    (bars,) = ax.containers
    np.testing.assert_allclose(bars.lines[0].get_xydata(), [[0, 0], [2, 1]])
    np.testing.assert_allclose(bars.lines[2][0].get_segments()[1][:, 0], [1, 4])
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["cheap   1.00 s", "dear   3.00 s"]
    assert ax.yaxis_inverted()  # the cheapest on top
    assert "cheap +0, dear +2" in dk.plot.alt_text(ax)
