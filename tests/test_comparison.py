"""The comparison of methods: every row, one budget, what the oracle says kind by kind, and the committed tables."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path

import families
import pytest
import torch

import datekit as dk
from datekit.cli import main
from studies import claims, compare, trials
from datekit.shapes.world import Scene, Thing

RESULTS = Path(dk.__file__).parent / "evaluation" / "results"
PROMPT = "a red circle left of a blue square"


def scene(*kinds):
    """Things side by side, from the left."""
    return Scene(
        tuple(
            Thing(colour, shape, 0.2 + 0.3 * n, 0.5, 0.11)
            for n, (colour, shape) in enumerate(kinds)
        )
    )


RED, BLUE = ("red", "circle"), ("blue", "square")
CASES = {  # what is drawn for PROMPT: present, bound, relation, what is wrong
    (RED, BLUE): (True, True, True, None),
    (BLUE, RED): (True, True, False, "relation"),
    (("blue", "circle"), ("red", "square")): (True, False, False, "swapped"),
    (("green", "circle"), BLUE): (True, False, False, "colour"),
    (RED, ("blue", "star")): (False, False, False, "neglect"),
    (RED,): (False, False, False, "neglect"),
    (RED, BLUE, ("green", "star")): (True, True, True, "surplus"),
    (("blue", "circle"), RED, BLUE): (True, True, True, "surplus"),
}


def test_each_kind_of_mistake_is_named():
    """Pictures drawn with a known mistake, seen through the oracle."""
    images = dk.shapes.render([scene(*kinds) for kinds in CASES])
    verdicts = dk.shapes.judge(images, [PROMPT] * len(CASES))
    for verdict, expected in zip(verdicts, CASES.values(), strict=True):
        assert tuple(claims.claims(PROMPT, verdict).values()) == expected[:3]
        assert claims.failure(PROMPT, verdict) == expected[3]
        assert verdict.right == (expected[3] is None)
    shares = claims.shares([PROMPT] * len(CASES), verdicts)
    assert shares["present"] == [float(expected[0]) for expected in CASES.values()]


def test_prompts_without_a_relation_and_with_counts():
    judged = lambda prompt, *kinds: (
        prompt,
        dk.shapes.judge(dk.shapes.render([scene(*kinds)]), [prompt])[0],
    )
    assert claims.claims(*judged("a red circle and a blue square", BLUE, RED)) == {
        "present": True,
        "bound": True,
        "relation": True,
    }
    assert claims.failure(*judged("two red circles", RED)) == "neglect"
    assert claims.failure(*judged("two red circles", RED, ("blue", "circle"))) == "colour"
    assert claims.failure(*judged("two red circles", RED, RED)) is None
    assert claims.failure(*judged("a circle and a square", BLUE, RED)) is None
    assert (
        claims.failure(*judged("a red circle and a blue circle", ("green", "circle"), RED))
        == "colour"
    )


def test_every_row_of_the_main_table_is_there_with_the_same_budget(target):
    """The methods of the paper's table and the peers, by type; as many strengths to choose from for each that has one."""
    kinds = {name: row.method(target, 10.0, 1.0) for name, row in compare.ROWS.items()}
    fits = lambda method, settings: all(
        getattr(method, name) == value for name, value in settings.items()
    )
    is_ = lambda kind, **settings: [
        name for name, method in kinds.items() if type(method) is kind and fits(method, settings)
    ]
    assert len(is_(dk.Fixed)) == 4  # as it is, more steps, best of 2, best of 4
    assert len(is_(dk.RandomDirection)) == len(is_(dk.EBCA)) == 1
    assert (
        len(is_(dk.UniversalGuidance, backward_steps=0, recurrence=1))
        == len(is_(dk.UniversalGuidance, backward_steps=1, recurrence=2))
        == 1
    )
    for when, anchor in product((dk.every(), dk.fraction(0.1)), ("original", "running")):
        assert is_(dk.DATE, when=when, anchor=anchor)
    guided = [kinds[name] for name, row in compare.ROWS.items() if row.guide == "preference"]
    assert {(str(method.when), method.anchor) for method in guided} == {
        (str(dk.every()), "original"),
        (str(dk.every()), "running"),
        (str(dk.fraction(0.1)), "running"),
    }
    assert [name for name, m in kinds.items() if m.stages == ("condition", "predict")] == [
        "DATE + Universal Guidance, all steps"
    ]
    assert {name for name, row in compare.ROWS.items() if row.count > 1} == {
        "best of 2",
        "best of 4",
        "DATE, 10 % of steps, best of 2",
    }
    for name, row in compare.ROWS.items():
        assert len(row.strengths) == (0 if type(kinds[name]) is dk.Fixed else compare.CHOICES)
        assert list(row.strengths) == sorted(set(row.strengths))


def test_the_held_out_reward_chooses_and_the_weakest_of_equals_wins():
    class Told:
        """A bench whose judge says what it was told."""

        def draw(self, row, strength):
            return strength

        def judge(self, strength):
            return {"heldout": {0.1: [0.0, 0.5], 0.2: [0.5, 0.5], 0.4: [0.9, 0.1]}[strength]}

    notes = type("Notes", (), {"get": lambda self, name, measure: measure()})()
    assert compare.choose(Told(), notes, "x", compare.Row(None, (0.1, 0.2, 0.4))) == 0.2
    assert compare.choose(Told(), notes, "x", compare.Row(None)) == 0.0


@pytest.fixture
def small(monkeypatch):
    """Two sampling steps, three rows, and no process for their memory."""
    backbone = trials.load("shapes", device="cpu")
    backbone.recommended = replace(backbone.recommended, num_steps=2)
    monkeypatch.setattr(trials, "load", lambda model, device: backbone)
    rows = {name: compare.ROWS[name] for name in ("fixed", "DATE, all steps", "best of 2")}
    monkeypatch.setattr(
        compare,
        "ROWS",
        rows | {"DATE, all steps": replace(rows["DATE, all steps"], strengths=(0.01, 0.02))},
    )
    monkeypatch.setattr(compare, "peak_memory", lambda *a: {"peak MiB": 123, "seconds": 0.0})
    return backbone


def test_compare_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, small):
    out = tmp_path / "table.json"
    arguments = ["compare", "--out", str(out), "--pairs", "3", "--tuning-pairs", "2"]
    judge, count, timed = trials.Trials.judge, [], iter((4.0, 5.0, 6.0))
    monkeypatch.setattr(
        compare.Bench,
        "timed",
        lambda self, draw: {"seconds": 1.0, "seconds a picture": 2.0, trials.COST: next(timed)},
    )

    def interrupted(self, draw):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return judge(self, draw)

    monkeypatch.setattr(trials.Trials, "judge", interrupted)
    assert main(arguments) == 130
    assert not out.exists()
    assert main(arguments) == 0
    assert len(count) == 1 + 2 + 3  # nothing but the interrupted one was done twice
    assert not list(tmp_path.glob("*.progress"))
    content = json.loads(out.read_text())
    assert {
        "date",
        "hardware",
        "seed",
        "command",
        "pairs",
        "weights",
        "steps",
        "distinct prompts",
    } <= set(content)
    assert (
        content["tuning"]["budget"] == "5 strengths x 2 pairs for each method that has a strength"
    )
    assert list(content["tuning"]["mean held-out reward"]["DATE, all steps"]) == ["0.01", "0.02"]
    row = content["rows"]["DATE, all steps"]
    assert (
        row["setting"]
        == f"rho {row['strength'] * content['norm of c_org']:.3g}, {row['strength']:.2%} of c_org's norm"
    )
    assert row["at an end of the grid"]
    assert row["peak MiB"] == 123
    assert [kept[trials.COST] for kept in content["rows"].values()] == [
        4.0,
        5.0,
        6.0,
    ]  # timed at the end, in order
    for name in ("oracle", "present", "bound", "relation"):
        assert content["rows"]["fixed"][f"{name} - fixed"] == [0, 0, 0]
        assert content["rows"]["best of 2"][name][0] >= content["rows"]["best of 2"]["oracle"][0]
    table = compare.markdown(content).splitlines()
    assert len(table) == 2 + 3
    assert {line.count("|") for line in table} == {9}
    assert compare.claims_table(content).splitlines()[-1].startswith("| best of 2 | ")
    for name, kept in content["rows"].items():
        for measure in compare.MEASURES:
            values = trials.unpacked(kept, measure)
            assert len(values) == 3
            assert values.mean() == pytest.approx(kept[measure][0], abs=6e-4)
        assert kept["FID"] > 0, name


def test_other_weights_or_settings_start_anew(tmp_path, small, monkeypatch):
    first = trials.Notes(tmp_path / "x", {"weights": "a"})
    first.get("row", lambda: {"guide": [1.0], "heldout": [1.0], "oracle": [1.0], "seconds": 0.0})
    assert trials.Notes(tmp_path / "x", {"weights": "a"}).content
    assert not trials.Notes(tmp_path / "x", {"weights": "b"}).content
    monkeypatch.setitem(dk.backbones.SHIPPED, "other", "clip")
    assert trials.fingerprint("other") != trials.fingerprint("shapes")


def test_what_is_not_defined_on_a_model_has_no_row_and_says_why(tmp_path, monkeypatch):
    backbone = dk.wrap(families.sd3())
    monkeypatch.setattr(trials, "load", lambda model, device: backbone)
    monkeypatch.setattr(compare, "ROWS", {name: compare.ROWS[name] for name in ("fixed", "EBCA")})
    monkeypatch.setattr(compare, "peak_memory", lambda *a: {"peak MiB": 1, "seconds": 0.0})
    content = compare.compare(tmp_path / "x.json", pairs=2, tuning_pairs=1, steps=1)
    assert list(content["rows"]) == ["fixed"]
    assert "joint attention" in content["undefined"]["EBCA"]


def test_bad_settings(tmp_path, small, capsys):
    assert main(["compare", "--out", str(tmp_path / "x.json"), "--pairs", "0"]) == 2
    assert main(["compare", "--out", str(tmp_path / "x.json"), "--pairs", "2", "--steps", "0"]) == 2
    assert "pairs must be 2 and tuning_pairs 1 at least, got 0 and 32" in capsys.readouterr().err
    assert not list(tmp_path.glob("*"))


def test_memory_is_of_a_process_of_its_own(monkeypatch):
    """Not of this one, which has more loaded; and a row that cannot be drawn says why."""
    assert 200 < compare.peak_memory("shapes", "fixed", 0.0, 38.5, 1)["peak MiB"] < 3000
    monkeypatch.setattr(
        compare.subprocess,
        "run",
        lambda *a, **k: subprocess.CompletedProcess(a, 1, "", "KeyError: 'nothing'"),
    )
    with pytest.raises(RuntimeError, match=r"the memory of 'nothing' failed:\nKeyError"):
        compare.peak_memory("shapes", "nothing", 0.0, 38.5, 1)


@pytest.mark.parametrize(
    ("file", "model", "steps"),
    [("heldout.json", "shapes", 50), ("heldout-flow.json", "shapes-flow", 28)],
)
def test_the_committed_tables(file, model, steps):
    """Enough pairs, seeds and command said, one budget, and tuning on prompts that the test does not have."""
    content = json.loads((RESULTS / file).read_text())
    assert content["model"] == model
    assert content["pairs"] >= 300
    assert content["steps"] == steps
    assert f"--seed {content['seed']}" in content["command"]
    assert set(content["rows"]) | set(content["undefined"]) == set(compare.ROWS)
    assert set(content["undefined"]) == ({"EBCA"} if model == "shapes-flow" else set())
    tried = content["tuning"]["mean held-out reward"]
    assert set(tried) == {name for name in content["rows"] if compare.ROWS[name].strengths}
    for name, by_strength in tried.items():
        assert len(by_strength) == compare.CHOICES
        assert by_strength[f"{content['rows'][name]['strength']:.6g}"] == max(
            by_strength.values()
        )  # rounded, so several may be highest
    parts = [
        set(dk.shapes.prompts("heldout", n, content["seed"], part=part))
        for n, part in ((content["pairs"], "test"), (4096, "tune"))
    ]
    assert not parts[0] & parts[1]
    assert len(parts[0]) == content["distinct prompts"]


def test_ebca_that_explodes_says_so(random_backbone):
    run = dk.Sampler(
        random_backbone, dk.EBCA(1e38, 0.0, when=dk.steps(1)), num_steps=3, guidance_scale=4.0
    ).start(["a", "b"], seeds=[0, 1])
    run.step()
    before, own = run.state, random_backbone.network.attn_processors
    with pytest.raises(
        dk.NonFiniteError,
        match=r"EBCA's context is not finite \(are its gammas too large\?\) for sample 0, 1 at step 1",
    ):
        run.step()
    assert run.state is before
    assert all(
        random_backbone.network.attn_processors[name] is processor
        for name, processor in own.items()
    )
    assert torch.isfinite(run.fork(dk.Fixed()).finish().state.xt).all()


def test_the_distance_to_true_pictures_and_the_preference_are_those_of_the_pictures():
    """True pictures of the prompts are near, noise is far; the preference is that of the reward asked directly."""
    bench = compare.Bench("shapes", dk.shapes.prompts("heldout", 40, seed=5), 0, steps=1)
    renders = torch.cat(list(dk.evaluation.metrics.real_pictures(bench.prompts, least=40, seed=9)))
    kept = iter(renders.split(16))
    near = bench.test(lambda prompts, seeds: next(kept))
    far = bench.test(
        lambda prompts, seeds: torch.rand(
            len(prompts), 3, 64, 64, generator=torch.Generator().manual_seed(0)
        )
    )
    assert near["oracle"] == [1.0] * 40
    assert 0 <= near["FID"] < far["FID"] / 4
    expected = dk.rewards.load("shapes-preference")(renders, bench.prompts)
    torch.testing.assert_close(
        torch.tensor(near["preference"]), expected.detach(), rtol=0, atol=1e-4
    )
