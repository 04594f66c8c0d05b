"""Edits with ground truth: the ideal is what the target says, and only what the edit names has changed."""

from __future__ import annotations

import pytest
import torch

from datekit import shapes
from datekit.shapes.edits import EDITS, SPLITS, pictures, sample_edits
from datekit.shapes.world import held_out, relation


@pytest.mark.parametrize("split", SPLITS)
def test_the_oracle_reads_both_captions_in_both_pictures(split):
    edits = sample_edits(40, seed=1, split=split)
    before, after, _ = pictures(edits)
    assert all(v.right for v in shapes.judge(before, [e.source for e in edits]))
    assert all(v.right for v in shapes.judge(after, [e.target for e in edits]))
    assert not any(v.right for v in shapes.judge(before, [e.target for e in edits]))


def test_one_thing_changes_as_the_kind_says():
    edits = sample_edits(50, seed=2)
    assert [e.kind for e in edits[:5]] == list(EDITS)
    for e in edits:
        old, new = e.before.things, e.after.things
        gone, come = [t for t in old if t not in new], [t for t in new if t not in old]
        assert e.before.background == e.after.background
        assert (len(gone), len(come)) == {"add": (0, 1), "remove": (1, 0)}.get(e.kind, (1, 1))
        if e.kind in ("recolour", "reshape"):
            name = {"recolour": "colour", "reshape": "shape"}[e.kind]
            assert getattr(gone[0], name) != getattr(come[0], name)
            assert {**vars(gone[0]), name: None} == {**vars(come[0]), name: None}
        if e.kind == "move":
            assert gone[0].kind == come[0].kind
            assert relation(*old) != relation(*new)
        named = [*gone, *come][0]
        assert named.colour in e.instruction
        assert named.shape in e.instruction


def test_changed_pixels_are_those_of_the_things_that_changed():
    edits = sample_edits(20, seed=3)
    before, after, changed = pictures(edits)
    for n, e in enumerate(edits):
        moved = [
            t
            for t in (*e.before.things, *e.after.things)
            if t not in e.before.things or t not in e.after.things
        ]
        covered = shapes.coverage(moved).amax(0) > 0
        assert not (changed[n] & ~covered).any()
        assert torch.equal(before[n][:, ~changed[n]], after[n][:, ~changed[n]])
        assert changed[n].any()


def test_splits_and_seeds():
    pair = lambda scene: len(scene.things) == 2 and held_out(*(t.kind for t in scene.things))
    assert not any(pair(e.before) or pair(e.after) for e in sample_edits(25, seed=4))
    assert all(
        pair(e.before if e.kind == "remove" else e.after)
        for e in sample_edits(25, seed=4, split="heldout")
    )
    assert sample_edits(5, seed=4) == sample_edits(5, seed=4)
    assert sample_edits(5, seed=4) != sample_edits(5, seed=5)
    with pytest.raises(ValueError, match="kinds holds some of"):
        sample_edits(5, seed=4, kinds=("paint",))
    with pytest.raises(ValueError, match="split holds some of"):
        sample_edits(5, seed=4, split="test")
