"""The comparison of methods: mistakes named kind by kind, one budget, and the committed tables."""

from __future__ import annotations

import json
from itertools import product

import pytest
import studies
import torch
from studies import compare, mistakes
from studies.results import FOLDER

import datekit as dk
from datekit.shapes.world import Scene, Thing

PROMPT = "a red circle left of a blue square"
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
OTHERS = {  # prompts without a relation, and with counts
    ("a red circle and a blue square", BLUE, RED): None,
    ("two red circles", RED): "neglect",
    ("two red circles", RED, ("blue", "circle")): "colour",
    ("two red circles", RED, RED): None,
    ("a circle and a square", BLUE, RED): None,
    ("a red circle and a blue circle", ("green", "circle"), RED): "colour",
}


def scene(*kinds):
    """Things side by side, from the left."""
    places = [0.2 + 0.3 * n for n in range(len(kinds))]
    return Scene(tuple(Thing(*kind, x, 0.5, 0.11) for kind, x in zip(kinds, places, strict=True)))


def test_each_kind_of_mistake_is_named():
    """Pictures drawn with a known mistake, seen through the oracle."""
    images = dk.shapes.render([scene(*kinds) for kinds in CASES])
    prompts = [PROMPT] * len(CASES)
    verdicts = dk.shapes.judge(images, prompts)
    for verdict, expected in zip(verdicts, CASES.values(), strict=True):
        assert tuple(mistakes.truths(PROMPT, verdict).values()) == expected[:3]
        assert mistakes.failure(PROMPT, verdict) == expected[3]
        assert verdict.right == (expected[3] is None)
    shares = mistakes.shares(prompts, verdicts)
    assert shares["present"] == [float(expected[0]) for expected in CASES.values()]
    letters = "".join(shares["failures"])
    wanted = [float(expected[3] == "neglect") for expected in CASES.values()]
    assert mistakes.split(letters)["neglect"].tolist() == wanted
    assert mistakes.mended(letters, "." * len(letters))["surplus"] == (2, 2)
    for (prompt, *kinds), expected in OTHERS.items():
        (verdict,) = dk.shapes.judge(dk.shapes.render([scene(*kinds)]), [prompt])
        assert mistakes.failure(prompt, verdict) == expected


def test_every_method_is_there_with_the_same_budget(target):
    """The methods of the paper's table and the peers, by type, and as many strengths for each."""
    trials = type("Trials", (), {"scale": 64.0})()
    course = type("Course", (), {"trials": lambda self: trials})()
    methods, guides = {}, {}
    for row in compare.ROWS:
        grid = tuple(row.grid(course) if callable(row.grid) else row.grid)
        methods[row.name] = method = row.method(target, grid[-1] if grid else None)
        guides[row.name] = row.guide
        assert len(grid) == (0 if type(method) is dk.Fixed else 5)
        assert list(grid) == sorted(set(grid))
    kinds = [type(method) for method in methods.values()]
    assert kinds.count(dk.Fixed) == 4  # as it is, more steps, best of 2, best of 4
    assert kinds.count(dk.RandomDirection) == kinds.count(dk.EBCA) == 1
    assert kinds.count(dk.UniversalGuidance) == 2
    dates = [m for m in methods.values() if type(m) is dk.DATE]
    known = {(str(m.when), m.anchor) for m in dates}
    schedules = (str(dk.every()), str(dk.fraction(0.1)))
    assert known == set(product(schedules, ("original", "running")))
    assert list(guides.values()).count("preference") == 3
    assert [n for n, m in methods.items() if m.stages == ("condition", "predict")] == [
        "DATE + Universal Guidance, all steps"
    ]


@pytest.mark.parametrize(("file", "steps"), [("heldout", 50), ("heldout-flow", 28)])
def test_the_committed_tables(file, steps):
    """Enough pairs, seed and command said, one budget, tuned on prompts that no row has."""
    content = studies.load(file)
    assert content["pairs"] >= 300
    assert content["steps"] == steps
    assert f"--seed {content['seed']}" in content["command"]
    assert set(content.rows) | set(content["undefined"]) == {row.key for row in compare.ROWS}
    assert set(content["undefined"]) == ({"EBCA"} if file == "heldout-flow" else set())
    tried = content["tuning"]["mean held-out reward"]
    assert set(tried) == {row.key for row in compare.ROWS if row.grid and row.key in content.rows}
    assert {len(by_strength) for by_strength in tried.values()} == {5}
    for name, row in content.rows.items():
        for measure in compare.COLUMNS:
            values = content.values(name, measure)
            assert len(values) == content["pairs"]
            assert values.mean() == pytest.approx(row[measure][0], abs=6e-4)
    test, tune = (
        set(dk.shapes.prompts("heldout", n, content["seed"], part=part))
        for n, part in ((content["pairs"], "test"), (4096, "tune"))
    )
    assert not test & tune
    assert len(test) == content["distinct prompts"]
    assert compare.markdown(content).count("\n") == 1 + len(content.rows)


def test_the_files_are_small():
    for path in FOLDER.glob("*.json"):
        assert path.stat().st_size < 1_000_000, path
        content = json.loads(path.read_text())
        assert content.get("made", content)["date"]


def test_ebca_that_explodes_says_so(random_backbone):
    method = dk.EBCA(1e38, 0.0, when=dk.steps(1))
    sampler = dk.Sampler(random_backbone, method, num_steps=3, guidance_scale=4.0)
    run = sampler.start(["a", "b"], seeds=[0, 1])
    run.step()
    before, own = run.state, random_backbone.network.attn_processors
    with pytest.raises(dk.NonFiniteError, match=r"EBCA.*for sample 0, 1 at step 1"):
        run.step()
    assert run.state is before
    for name, processor in own.items():
        assert random_backbone.network.attn_processors[name] is processor
    assert torch.isfinite(run.fork(dk.Fixed()).finish().state.xt).all()
