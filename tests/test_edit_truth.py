"""Edits with ground truth, and their measures against plain formulas."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from studies import edit_measures as measures
from studies.edit_truth import EDITS, SPLITS, pictures, sample_edits

import datekit as dk
from datekit import shapes
from datekit.shapes.world import held_out, relation


@pytest.mark.parametrize("split", SPLITS)
def test_the_oracle_reads_both_captions_in_both_pictures(split):
    edits = sample_edits(40, seed=1, split=split)
    before, after, _ = pictures(edits)
    assert all(v.right for v in shapes.judge(before, [e.source for e in edits]))
    assert all(v.right for v in shapes.judge(after, [e.target for e in edits]))
    assert not any(v.right for v in shapes.judge(before, [e.target for e in edits]))
    for e in edits:
        kinds = [[thing.kind for thing in scene.things] for scene in (e.before, e.after)]
        unseen = [len(two) == 2 and held_out(*two) for two in kinds]
        assert unseen[e.kind != "remove"] if split == "heldout" else not any(unseen)
    assert edits == sample_edits(40, seed=1, split=split) != sample_edits(40, seed=2, split=split)


def test_one_thing_changes_as_the_kind_says():
    edits = sample_edits(50, seed=2)
    before, after, changed = pictures(edits)
    assert [e.kind for e in edits[:5]] == list(EDITS)
    for n, e in enumerate(edits):
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
        assert [*gone, *come][0].colour in e.instruction
        covered = shapes.coverage([*gone, *come]).amax(0) > 0
        assert not (changed[n] & ~covered).any()
        assert torch.equal(before[n][:, ~changed[n]], after[n][:, ~changed[n]])
        assert changed[n].any()


def test_measures_are_the_formulas():
    edits = sample_edits(5, seed=0)
    before, after, changed = pictures(edits)
    expected = [((a - b) ** 2).mean().sqrt().item() for a, b in zip(before, after, strict=True)]
    assert measures.pixel_distance(before, after).tolist() == pytest.approx(expected, rel=1e-6)
    assert measures.background_distance(after, before, changed).tolist() == [0] * 5
    spoiled = after.clone()
    spoiled[:, :, :2] += 0.1  # two rows of 64 at the border, where nothing lies
    share = (2 * 64) / (~changed).sum((1, 2)).double()
    distance = measures.background_distance(spoiled, before, changed)
    torch.testing.assert_close(distance, 0.1 * share.sqrt(), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="NaN"):
        measures.pixel_distance(before * float("nan"), after)
    clip = dk.rewards.load("shapes-clip-heldout")
    features = clip.image_features(before), clip.image_features(after)
    cosine = torch.nn.functional.cosine_similarity(*features)
    torch.testing.assert_close(measures.feature_distance(before, after, clip), 1 - cosine)
    targets = [edit.target for edit in edits]
    share, right = measures.statements(after, targets)
    assert share.tolist() == right.tolist() == [1.0] * 5
    share, right = measures.statements(before, targets)
    assert right.tolist() == [0.0] * 5
    assert ((share > 0) & (share < 1)).any()


def test_lpips_is_the_formula_on_weights_of_the_hubs_folder(monkeypatch, tmp_path):
    """A random SqueezeNet for the published one; torchmetrics brings the layers' weights w."""
    if not importlib.util.find_spec("torchmetrics") and "CI" not in os.environ:
        pytest.skip("needs the package torchmetrics")
    import torchmetrics
    import torchvision

    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    a, b = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    model = torchvision.models.squeezenet1_1(weights=None)
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(model.state_dict(), tmp_path / "checkpoints" / Path(url).name)
    distance = measures.lpips(a, b, net="squeeze")
    file = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/squeeze.pth"
    lines = torch.load(file, map_location="cpu", weights_only=True)
    by_hand = lpips_by_hand(model.features, list(lines.values()), a, b)
    torch.testing.assert_close(distance, by_hand, rtol=1e-3, atol=1e-6)


def lpips_by_hand(features, lines, a, b):
    """Eq. 1 of arXiv 1801.03924, inputs normalised as ImageNet's, features of unit length."""
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    x, total, start = (torch.cat([a, b]).clamp(0, 1) - mean) / std, 0.0, 0
    with torch.no_grad():
        for end, line in zip((1, 4, 7, 9, 10, 11, 12), lines, strict=True):
            x, start = features[start : end + 1](x), end + 1
            unit = x / x.norm(dim=1, keepdim=True).clamp_min(1e-30)
            squared = (unit[: len(a)] - unit[len(a) :]).square()
            total = total + (squared * line.view(-1, 1, 1)).sum(1).mean((1, 2))
    return total
