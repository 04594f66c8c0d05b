"""Measures of edits against plain formulas, benchmarks as folders, and the comparison's command."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import datekit as dk
from datekit.cli import main
from studies import compare_edits, trials
from datekit.evaluation import edits as measures
from datekit.shapes.edits import EDITS, pictures, sample_edits

EDITED = Path(compare_edits.__file__).parent / "results" / "edits.json"


@pytest.fixture(scope="module")
def edits():
    return sample_edits(5, seed=0)


def test_distances_are_the_formulas(edits):
    before, after, changed = pictures(edits)
    for n in range(5):
        assert measures.pixel_distance(before, after)[n].item() == pytest.approx(
            ((before[n] - after[n]) ** 2).mean().sqrt().item(), rel=1e-6
        )
    assert torch.equal(
        measures.background_distance(after, before, changed), torch.zeros(5, dtype=torch.float64)
    )
    spoiled = after.clone()
    spoiled[:, :, :2] += 0.1  # two rows of 64 at the border, where nothing lies
    share = (2 * 64) / (~changed).sum((1, 2)).double()
    torch.testing.assert_close(
        measures.background_distance(spoiled, before, changed),
        0.1 * share.sqrt(),
        rtol=1e-5,
        atol=0,
    )
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


def test_lpips_without_torchmetrics_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ImportError, match=r"pip install 'datekit\[lpips\]'"):
        measures.lpips(*torch.rand(2, 1, 3, 64, 64))
    with pytest.raises(ValueError, match="Did you mean 'alex'"):
        measures.lpips(*torch.rand(2, 1, 3, 64, 64), net="alexnet")


def test_lpips_is_the_formula_on_weights_of_a_folder(monkeypatch, tmp_path):
    """A random SqueezeNet in place of the published one; the weights w of the layers are those that torchmetrics brings."""
    if not importlib.util.find_spec("torchmetrics") and "CI" not in os.environ:
        pytest.skip("needs the package torchmetrics")
    import torchmetrics
    import torchvision

    weights = {
        "alex": "AlexNet_Weights",
        "vgg": "VGG16_Weights",
        "squeeze": "SqueezeNet1_1_Weights",
    }
    assert {
        net: Path(getattr(torchvision.models, name).DEFAULT.url).name
        for net, name in weights.items()
    } == measures.LPIPS
    monkeypatch.setattr(
        "torch.hub.download_url_to_file",
        lambda *_, **__: (_ for _ in ()).throw(OSError("no network here")),
    )
    a, b = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    hub, model = torch.hub.get_dir(), torchvision.models.squeezenet1_1(weights=None)
    torch.save(model.state_dict(), tmp_path / measures.LPIPS["squeeze"])
    found = measures.lpips(a, b, net="squeeze", weights=tmp_path)
    file = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/squeeze.pth"
    lines = torch.load(file, map_location="cpu", weights_only=True)
    by_hand = lpips_by_hand(model.features, (1, 4, 7, 9, 10, 11, 12), list(lines.values()), a, b)
    torch.testing.assert_close(found, by_hand, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(
        measures.lpips(a[1:2], b[1:2], net="squeeze", weights=tmp_path),
        found[1:2],
        rtol=1e-4,
        atol=1e-7,
    )
    assert measures.lpips(a, a, net="squeeze", weights=tmp_path).abs().max() == 0
    assert torch.hub.get_dir() == hub
    with pytest.raises(FileNotFoundError, match=r"holds no vgg16-.*\.pth"):
        measures.lpips(a, b, net="vgg", weights=tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    with pytest.raises(
        OSError, match=r"could not be downloaded .*no network here.*squeezenet1_1-.*weights="
    ):
        measures.lpips(a, b, net="squeeze")


def lpips_by_hand(features, ends, lines, a, b):
    """Eq. 1 of arXiv 1801.03924, inputs in [-1, 1] normalised as ImageNet's, features of unit length."""
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    x, total = torch.cat([((images.clamp(0, 1) - mean) / std) for images in (a, b)]), 0.0
    with torch.no_grad():
        for layer, (start, end) in enumerate(zip((0, *(e + 1 for e in ends)), ends, strict=False)):
            x = features[start : end + 1](x)
            unit = x / x.norm(dim=1, keepdim=True).clamp_min(1e-30)
            squared = (unit[: len(a)] - unit[len(a) :]).square()
            total = total + (squared * lines[layer].view(-1, 1, 1)).sum(1).mean((1, 2))
    return total


def test_a_benchmark_goes_through_its_folder(edits, tmp_path):
    path = measures.write_edits(tmp_path, edits)
    pairs = measures.read_edits(tmp_path)
    assert pairs == measures.read_edits(path)
    assert [(p.source, p.target, p.kind) for p in pairs] == [
        (e.source, e.target, e.kind) for e in edits
    ]
    before, after, _ = pictures(edits)
    shown = dk.editing.as_images([p.ideal for p in pairs], dk.load("shapes", device="cpu"))
    assert (shown - after).abs().max() <= 0.5 / 255 + 1e-6
    shown = dk.editing.as_images([p.image for p in pairs], dk.load("shapes", device="cpu"))
    assert (shown - before).abs().max() <= 0.5 / 255 + 1e-6


def test_published_lists_are_read(edits, tmp_path):
    measures.write_edits(tmp_path, edits[:1])
    table = tmp_path / "edits.csv"
    table.write_text(
        'init_img,target_prompts\n0000.png,"[""a graffiti of a castle"", ""a lego castle""]"\n'
    )
    pairs = measures.read_edits(table)
    assert [(p.source, p.target, p.ideal) for p in pairs] == [
        ("", "a graffiti of a castle", None),
        ("", "a lego castle", None),
    ]
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


@pytest.fixture
def small(monkeypatch, shapes, flow):
    """The comparison with few settings to choose from, on models that are loaded once."""
    monkeypatch.setattr(
        trials, "load", lambda model, device: {"shapes": shapes, "shapes-flow": flow}[model]
    )
    for name, value in (
        ("SKIPS", (0.0,)),
        ("GUIDANCE", (1.0,)),
        ("SHARES", (1 / 32,)),
        ("CURVE", (0.0, 0.4)),
        ("MULTIPLES", (1.0,)),
        ("CURVE_GUIDANCE", (2.0,)),
    ):
        monkeypatch.setattr(compare_edits, name, value)


@pytest.fixture(scope="module")
def flow():
    return dk.load("shapes-flow", device="cpu")


def test_the_comparison_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, small, capsys):
    out, judge, count = tmp_path / "edits.json", compare_edits.EditTrials.judge, []

    def interrupted(self, draw):
        count.append(1)
        if len(count) == 8:
            raise KeyboardInterrupt
        return judge(self, draw)

    monkeypatch.setattr(compare_edits.EditTrials, "judge", interrupted)
    arguments = [
        "compare-edits",
        "--out",
        str(out),
        "--pairs",
        "5",
        "--tuning-pairs",
        "2",
        "--curve-pairs",
        "2",
        "--steps",
        "3",
    ]
    assert main(arguments) == 130
    assert not out.exists()
    assert main(arguments) == 0
    content = json.loads(out.read_text())
    curves = sum(len(points) for axes in content["curves"].values() for points in axes.values())
    assert (
        len(count) == 1 + 4 * 2 + len(content["rows"]) + 2 + curves
    )  # the interrupted one twice, everything else once
    assert curves == 4 * (4 + 2)
    along = {
        axis: {(p[axis], p["rho"] > 0) for p in points}
        for axis, points in content["curves"]["flowedit"].items()
    }
    assert along == {
        "skip": {(0.0, False), (0.0, True), (0.4, False), (0.4, True)},
        "guidance": {(2.0, False), (2.0, True)},
    }
    names = ("fixed", "random", "DATE", "fixed, nothing skipped", "DATE, nothing skipped")
    assert set(content["rows"]) == {
        f"{editor}, {name}" for editor in ("ddpm", "ddim", "sdedit", "flowedit") for name in names
    }
    fixed, date = content["curves"]["sdedit"]["skip"][:2]
    assert date["heldout - fixed"][0] == pytest.approx(
        date["heldout"][0] - fixed["heldout"][0], abs=2e-4
    )
    assert {
        editor: chosen["model"] for editor, chosen in content["editors"].items()
    } == compare_edits.EDITORS
    assert {"date", "hardware", "seed", "command", "pairs", "tuning"} <= set(content)
    assert content["references"]["the source itself"]["all"]["background"][0] == 0
    assert compare_edits.markdown(content).count("\n") == 1 + 2 + len(content["rows"])
    assert compare_edits.markdown(content) in capsys.readouterr().out
    for name, row in content["rows"].items():
        line = next(
            line
            for line in compare_edits.markdown(content, "move").splitlines()
            if line.startswith(f"| {name} |")
        )
        assert f"| {row['move']['heldout'][0]:.3f}" in line
        assert (
            ("[" not in line)
            if ", fixed" in name
            else (f", {row['move']['ideal - fixed'][0]:+.3f} [" in line)
        )
        line = next(
            line
            for line in compare_edits.markdown(content).splitlines()
            if line.startswith(f"| {name} |")
        )
        assert f"| {row['one ideal']['ideal'][0]:.3f}" in line
        assert f"| {row['all']['heldout'][0]:.3f}" in line
    assert not list(tmp_path.glob("*.progress"))


def test_a_row_says_what_its_values_say(tmp_path):
    """Means, and paired differences between DATE and the fixed embedding, over all edits and over each kind, against plain numpy."""
    edits, rng = sample_edits(10, seed=0), np.random.default_rng(0)
    fixed, date = (
        {name: rng.random(10).tolist() for name in compare_edits.MEASURES} | {"seconds": 5.0}
        for _ in range(2)
    )
    row = compare_edits._summary(date, edits, fixed)
    assert set(row) == {"all", "one ideal", compare_edits.COST, *EDITS}
    assert row[compare_edits.COST] == 0.5
    for kind in ("all", "one ideal", *EDITS):
        rows = [
            n
            for n, e in enumerate(edits)
            if kind in ("all", e.kind) or (kind == "one ideal" and e.kind not in ("move", "add"))
        ]
        for name in compare_edits.MEASURES:
            a, b = (np.array(values[name])[rows] for values in (date, fixed))
            assert row[kind][name][0] == pytest.approx(a.mean(), abs=1e-4)
            mean, low, high = row[kind][f"{name} - fixed"]
            assert mean == pytest.approx((a - b).mean(), abs=1e-4)
            assert (a - b).min() - 1e-4 <= low <= mean <= high <= (a - b).max() + 1e-4
    assert [row[kind]["edits"] for kind in EDITS] == [2] * 5


@pytest.mark.parametrize("editor", compare_edits.EDITORS)
def test_fixed_and_date_start_from_the_same_picture_and_noise(editor, small):
    edits = sample_edits(2, seed=0)
    bench = compare_edits.EditTrials(editor, edits, seed=3, steps=4)
    draws = {rho: bench.draw(skip=0.25, guidance=1.5, rho=rho) for rho in (None, 0.0, 2.0)}
    before = pictures(edits)[0]
    fixed, still, moved = (draws[rho](0, edits, bench.seeds, before) for rho in (None, 0.0, 2.0))
    assert torch.equal(fixed, still)
    assert not torch.equal(fixed, moved)
    w, prompts, targets = (
        1.5 * bench.backbone.recommended.guidance_scale,
        [e.source for e in edits],
        [e.target for e in edits],
    )
    common = dict(num_steps=4, seeds=[3_000_009, 3_000_010])
    if editor == "flowedit":
        run = dk.editing.flowedit(
            bench.backbone, before, prompts, targets, n_max=3, guidance_scale=w, **common
        )
    elif editor == "sdedit":
        run = dk.editing.sdedit(bench.backbone, before, targets, skip=1, guidance_scale=w, **common)
    else:
        invert = {"ddpm": dk.editing.ddpm_inversion, "ddim": dk.editing.ddim_inversion}[editor]
        run = invert(bench.backbone, before, prompts, **common).edit(
            targets, skip=1, guidance_scale=w
        )
    assert torch.equal(fixed, run.finish().pixels)


def test_rho_is_what_the_held_out_reward_likes_best_on_other_edits(small, monkeypatch, tmp_path):
    """Of made-up results the choice follows: skip and guidance by the distance to the ideal, rho by the held-out reward alone."""
    seen, norm = [], 32.0
    monkeypatch.setattr(compare_edits, "SKIPS", (0.0, 0.2))
    monkeypatch.setattr(compare_edits, "SHARES", (1 / 64, 1 / 32, 1 / 16))
    monkeypatch.setattr(compare_edits.EditTrials, "norm", lambda self: norm)
    monkeypatch.setattr(compare_edits.EditTrials, "draw", lambda self, **settings: settings)

    def judge(self, draw):
        seen.append((self.seeds[0], self.prompts, draw))
        draw = {} if callable(draw) else draw  # a reference
        rho = draw.get("rho") or 0.0
        made_up = {
            "ideal": draw.get("skip", 0),
            "heldout": -abs(rho - 1.0),
            "guide": rho,
            "oracle": -rho,
        }
        return {
            name: [made_up.get(name, 0.0)] * len(self.edits) for name in compare_edits.MEASURES
        } | {"seconds": 0.0}

    monkeypatch.setattr(compare_edits.EditTrials, "judge", judge)
    content = compare_edits.compare_edits(
        tmp_path / "e.json",
        editors=["sdedit"],
        pairs=5,
        tuning_pairs=3,
        curve_pairs=0,
        steps=3,
        seed=7,
    )
    assert content["editors"]["sdedit"] | {"model": "shapes"} == content["editors"]["sdedit"]
    assert (content["editors"]["sdedit"]["skip"], content["editors"]["sdedit"]["rho"]) == (0.0, 1.0)
    assert "3 other edits" in content["tuning"]
    tuned = {prompt for seed, prompts, _ in seen if seed == 8 * 1_000_003 for prompt in prompts}
    assert len(tuned) == 3
    assert content["curves"] == {}
    assert content["rows"]["sdedit, DATE"]["all"]["guide - fixed"][0] == 1.0


if EDITED.is_file():  # made by a command that takes long

    def test_the_committed_comparison_is_large_enough_and_says_how_it_was_made():
        """A smoke run in its place fails here: `make table-edits` makes the real one."""
        content = json.loads(EDITED.read_text())
        assert content["pairs"] >= 200
        assert set(content["editors"]) == set(compare_edits.EDITORS)
        assert f"--pairs {content['pairs']}" in content["command"]
        assert f"--seed {content['seed']}" in content["command"]
        assert {"date", "hardware", "steps", "tuning", "weights"} <= set(content)
        for editor in compare_edits.EDITORS:
            row = content["rows"][f"{editor}, DATE"]
            for kind in ("all", *EDITS):
                assert kind == "all" or row[kind]["edits"] >= 40
                for name in compare_edits.MEASURES:
                    mean, low, high = row[kind][f"{name} - fixed"]
                    assert low <= mean <= high
                    assert mean == pytest.approx(
                        row[kind][name][0] - content["rows"][f"{editor}, fixed"][kind][name][0],
                        abs=3e-4,
                    )


def test_unknown_editors_are_refused(tmp_path, capsys):
    assert main(["compare-edits", "--out", str(tmp_path / "e.json"), "--editors", "ddmp"]) == 2
    assert "Did you mean 'ddpm'" in capsys.readouterr().err


def test_the_trade_off_is_drawn_as_it_stands_in_the_file():
    import matplotlib.pyplot as plt

    points = [
        {
            "skip": skip,
            "rho": rho,
            "background": [skip + rho, skip + rho - 0.1, skip + rho + 0.3],
            "heldout": [2 * skip, 2 * skip - 0.2, 2 * skip + 0.1],
        }
        for skip in (0.4, 0.0, 0.2)
        for rho in (0, 1.5)
    ]
    ax = plt.subplots()[1]
    assert dk.plot.trade_off(points, ax=ax) is ax
    lines = {container.get_label(): container for container in ax.containers}
    np.testing.assert_allclose(
        lines["DATE, rho 1.5"].lines[0].get_xydata(), [[1.5, 0], [1.7, 0.4], [1.9, 0.8]]
    )
    across, up = (bars.get_segments() for bars in lines["fixed"].lines[2])
    np.testing.assert_allclose(across[1], [[0.1, 0.4], [0.5, 0.4]])
    np.testing.assert_allclose(up[1], [[0.2, 0.2], [0.2, 0.5]])
    sizes = ax.collections[-1].get_sizes()
    assert sizes[0] > sizes[1] > sizes[2]  # the first skips least
    assert "fixed: skip 0 at (0, 0), skip 0.2 at (0.2, 0.4)" in dk.plot.alt_text(ax)
    plt.close(ax.figure)
