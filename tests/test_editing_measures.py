"""Measures of edits against plain formulas, benchmarks as folders, and the comparison's command."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

import datekit as dk
from datekit import shapes
from datekit.cli import main
from datekit.evaluation import compare_edits
from datekit.evaluation import edits as measures
from datekit.shapes.edits import pictures, sample_edits


@pytest.fixture(scope="module")
def edits():
    return sample_edits(5, seed=0)


def test_distances_are_the_formulas(edits):
    before, after, changed = pictures(edits)
    for n in range(5):
        assert measures.pixel_distance(before, after)[n].item() == pytest.approx(((before[n] - after[n]) ** 2).mean().sqrt().item(), rel=1e-6)
    assert torch.equal(measures.background_distance(after, before, changed), torch.zeros(5, dtype=torch.float64))
    spoiled = after.clone()
    spoiled[:, :, :2] += 0.1  # two rows of 64 at the border, where nothing lies
    share = (2 * 64) / (~changed).sum((1, 2)).double()
    torch.testing.assert_close(measures.background_distance(spoiled, before, changed), 0.1 * share.sqrt(), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="no pixel that counts"):
        measures.background_distance(after, before, torch.ones_like(changed))
    with pytest.raises(ValueError, match="one shape"):
        measures.pixel_distance(before, after[:2])
    with pytest.raises(ValueError, match="NaN"):
        measures.pixel_distance(before * float("nan"), after)


def test_features_and_statements(edits, brightness):
    before, after, _ = pictures(edits)
    clip = dk.rewards.load("shapes-clip-heldout")
    found = measures.feature_distance(before, after, clip)
    a, b = clip.image_features(before), clip.image_features(after)
    torch.testing.assert_close(found, 1 - torch.nn.functional.cosine_similarity(a, b))
    assert measures.feature_distance(before, before, clip).max() < 1e-5
    with pytest.raises(TypeError, match="no image features"):
        measures.feature_distance(before, after, brightness)
    share, right = measures.statements(after, [e.target for e in edits])
    assert share.tolist() == right.tolist() == [1.0] * 5
    share, right = measures.statements(before, [e.target for e in edits])
    assert right.tolist() == [0.0] * 5
    assert ((share > 0) & (share < 1)).any()


def test_lpips_takes_torchmetrics_and_says_what_is_missing(monkeypatch):
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ImportError, match="pip install torchmetrics"):
        measures.lpips(a, b)
    seen = []
    for name in ("torchmetrics", "torchmetrics.functional", "torchmetrics.functional.image"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torchmetrics.functional.image"].learned_perceptual_image_patch_similarity = (
        lambda x, y, **more: seen.append(more) or (x - y).abs().mean())
    torch.testing.assert_close(measures.lpips(a, b, net="vgg"), (a - b).abs().mean((1, 2, 3)))
    assert seen == [{"net_type": "vgg", "normalize": True}] * 2


def test_a_benchmark_goes_through_its_folder(edits, tmp_path):
    path = measures.write_edits(tmp_path, edits)
    pairs = measures.read_edits(tmp_path)
    assert pairs == measures.read_edits(path)
    assert [(p.source, p.target, p.kind) for p in pairs] == [(e.source, e.target, e.kind) for e in edits]
    before, after, _ = pictures(edits)
    shown = dk.editing.as_images([p.ideal for p in pairs], dk.load("shapes", device="cpu"))
    assert (shown - after).abs().max() <= 0.5 / 255 + 1e-6
    shown = dk.editing.as_images([p.image for p in pairs], dk.load("shapes", device="cpu"))
    assert (shown - before).abs().max() <= 0.5 / 255 + 1e-6


def test_published_lists_are_read(edits, tmp_path):
    measures.write_edits(tmp_path, edits[:1])
    table = tmp_path / "edits.csv"
    table.write_text('init_img,target_prompts\n0000.png,"[""a graffiti of a castle"", ""a lego castle""]"\n')
    pairs = measures.read_edits(table)
    assert [(p.source, p.target, p.ideal) for p in pairs] == [("", "a graffiti of a castle", None), ("", "a lego castle", None)]
    for text, error, said in (
        ("picture,target\n0000.png,x\n", ValueError, "no column image or init_img"),
        ("image,target\n0000.png,\n", ValueError, "line 2: the target prompt is empty"),
        ("image,target\nnone.png,x\n", FileNotFoundError, "line 2: there is no image"),
    ):
        table.write_text(text)
        with pytest.raises(error, match=said):
            measures.read_edits(table)
    (tmp_path / "more.csv").write_text("image,target\n")
    with pytest.raises(ValueError, match="one CSV file, it holds 2"):
        measures.read_edits(tmp_path)


def test_the_comparison_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    out, backbone = tmp_path / "edits.json", dk.load("shapes", device="cpu")
    backbone.recommended = replace(backbone.recommended, num_steps=3)
    monkeypatch.setattr(compare_edits, "load", lambda model, device: backbone)
    for name, value in (("SKIPS", (0.0,)), ("GUIDANCE", (1.0,)), ("SHARES", (1 / 32,)), ("CURVE", (0.0, 0.4))):
        monkeypatch.setattr(compare_edits, name, value)
    judge, count = compare_edits.EditBench.judge, []

    def interrupted(self, draw):
        count.append(1)
        if len(count) == 8:
            raise KeyboardInterrupt
        return judge(self, draw)

    monkeypatch.setattr(compare_edits.EditBench, "judge", interrupted)
    arguments = ["compare-edits", "--out", str(out), "--pairs", "5", "--tuning-pairs", "2", "--curve-pairs", "2"]
    assert main(arguments) == 130
    assert not out.exists()
    assert main(arguments) == 0
    content = json.loads(out.read_text())
    curves = sum(len(points) for points in content["curves"].values())
    assert len(count) == 1 + 3 * 2 + len(content["rows"]) + 2 + curves
    assert set(content["rows"]) == {f"{editor}, {name}" for editor in ("ddpm", "ddim", "sdedit") for name in ("fixed", "DATE")}
    assert {"date", "hardware", "seed", "command", "pairs"} <= set(content)
    row = content["rows"]["ddpm, DATE"]
    assert set(row) == {"all", "seconds a picture", *shapes.EDITS}
    mean = lambda name: content["rows"][name]["all"]["ideal"][0]
    assert row["all"]["ideal - fixed"][0] == pytest.approx(mean("ddpm, DATE") - mean("ddpm, fixed"), abs=2e-4)
    assert content["references"]["the source itself"]["all"]["background"][0] == 0
    assert compare_edits.markdown(content).count("\n") == 1 + 2 + len(content["rows"])
    assert not list(tmp_path.glob("*.progress"))
    assert "background - fixed" in row["move"]
