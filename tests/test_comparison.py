"""The comparison of methods: mistakes named kind by kind, one budget, and the committed tables."""

from __future__ import annotations

import json

import pytest
import studies
from studies import compare, mistakes
from studies.results import FOLDER

import datekit as dk
from datekit.shapes.world import Scene, Thing

PROMPT = "a red circle left of a blue square"
RED, BLUE = ("red", "circle"), ("blue", "square")
CASES = {  # what is drawn for PROMPT: present, bound, relation, what is wrong
    (RED, BLUE): (True, True, True, None),
    (BLUE, RED): (True, True, False, "misplaced"),
    (("blue", "circle"), ("red", "square")): (True, False, False, "binding"),
    (RED, ("red", "square")): (True, False, False, "binding"),
    (("blue", "circle"), ("green", "square")): (True, False, False, "colour"),
    (("green", "circle"), BLUE): (True, False, False, "colour"),
    (RED, ("blue", "star")): (False, False, False, "shape"),
    (RED, ("blue", "circle")): (False, False, False, "shape"),
    (RED,): (False, False, False, "left out"),
    (("blue", "circle"),): (False, False, False, "left out"),
    (RED, RED): (False, False, False, "left out"),
    (RED, ("green", "star")): (False, False, False, "left out"),
    (("blue", "circle"), ("red", "star")): (False, False, False, "shape"),
    (("blue", "circle"), ("green", "star")): (False, False, False, "left out"),
    (("blue", "circle"), ("blue", "star")): (False, False, False, "shape"),
    (("blue", "star"), ("red", "star")): (False, False, False, "shape"),
    (RED, BLUE, ("green", "star")): (True, True, True, "surplus"),
    (("blue", "circle"), RED, BLUE): (True, True, True, "surplus"),
}
OTHERS = {  # prompts without a relation, without colours, and with counts
    ("a red circle and a blue square", BLUE, RED): None,
    ("a red circle and a blue square", ("blue", "circle"), BLUE, ("green", "star")): "binding",
    ("two red circles", RED): "left out",
    ("two red circles", RED, ("red", "star")): "shape",
    ("three red circles", RED, ("red", "star")): "left out",
    ("two red circles", RED, ("blue", "circle")): "colour",
    ("two red circles", RED, RED): None,
    ("two red circles", RED, RED, RED): "surplus",
    ("two circles", RED, RED, RED): "surplus",
    ("a circle and a square", BLUE, RED): None,
    ("a circle and a square", RED, ("blue", "star")): "shape",
    ("a circle and a square", RED, ("blue", "circle")): "left out",
    ("a red circle left of a red square", RED, RED): "left out",
    ("a red circle and a blue circle", RED, ("red", "square")): "left out",
    ("a red circle and a blue circle", RED, ("blue", "square")): "shape",
    (
        "a circle, a red square and a star",
        ("yellow", "triangle"),
        ("red", "triangle"),
        BLUE,
    ): "shape",
    ("a red circle and a blue circle", ("green", "circle"), RED): "colour",
    ("a red circle and a blue circle", RED, RED): "left out",
    ("a red circle and a blue circle", ("blue", "circle"), ("blue", "square")): "left out",
    ("a red circle and a blue star", ("blue", "circle"), ("red", "star")): "binding",
    (
        "a circle, a red square and a blue star",
        ("green", "circle"),
        BLUE,
        ("red", "star"),
    ): "binding",
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
    wanted = [float(expected[3] == "shape") for expected in CASES.values()]
    assert mistakes.split(letters)["shape"].tolist() == wanted
    assert not {*mistakes.FAILURES} & {*mistakes.KINDS}  # which may stand in one row
    for (prompt, *kinds), expected in OTHERS.items():
        (verdict,) = dk.shapes.judge(dk.shapes.render([scene(*kinds)]), [prompt])
        assert mistakes.failure(prompt, verdict) == expected


def test_the_committed_table():
    """Enough pairs, seed and command said, one budget, tuned on prompts that no row has."""
    content = studies.load("heldout")
    assert content["pairs"] >= 300
    assert f"--seed {content['seed']}" in content["command"]
    assert set(content.rows) == {row.key for row in compare.ROWS}
    tried = content["tuning"]["mean held-out reward"]
    assert {len(by_strength) for by_strength in tried.values()} == {5 + 2}  # a heat, and its best
    for name, by_strength in tried.items():
        heat = {k.removesuffix(" (heat)"): h for k, h in by_strength.items() if "heat" in k}
        finals = {key: by_strength[key] for key in by_strength if "heat" not in key}
        assert set(finals) == set(sorted(heat, key=heat.get)[-2:])
        strength = content.rows[name]["strength"]
        numbers = strength if isinstance(strength, list) else [strength]
        assert by_strength[", ".join(f"{number:.6g}" for number in numbers)] == max(finals.values())
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


def test_the_files_are_small():
    for path in FOLDER.glob("*.json"):
        assert path.stat().st_size < 1_000_000, path
        content = json.loads(path.read_text())
        assert content.get("made", content)["date"]
