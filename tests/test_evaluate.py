"""`datekit evaluate`: distance and intervals against formulas, the oracle, paired tables."""

from __future__ import annotations

import functools
import json
import re

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import datekit as dk
from datekit.cli import main
from datekit.evaluation import bootstrap, metrics
from datekit.evaluation.evaluate import HELDOUT, SHAPES, evaluate
from datekit.evaluation.folders import Pictures, images, manifest_of
from datekit.evaluation.metrics import frechet_distance
from datekit.evaluation.prompts import Row, read_prompts
from datekit.evaluation.results import Evaluation, Scores
from datekit.shapes import judge
from datekit.types import to_pil


@given(st.integers(0, 10_000))
def test_frechet_distance_against_a_matrix_square_root(seed):
    rng = np.random.default_rng(seed)
    sets = [rng.normal(size=(20 + n, 5)) @ rng.normal(size=(5, 5)) for n in range(2)]
    (mu_a, sigma_a), (mu_b, sigma_b) = ((x.mean(0), np.cov(x.T)) for x in sets)
    root = scipy.linalg.sqrtm(sigma_a)
    cross = scipy.linalg.sqrtm(root @ sigma_b @ root)  # similar to (sigma_a sigma_b)^(1/2)
    expected = ((mu_a - mu_b) ** 2).sum() + np.trace(sigma_a + sigma_b - 2 * cross.real)
    a, b = map(torch.from_numpy, sets)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="two pictures"):
        frechet_distance(a[:1], b)


def test_the_standard_inception_network_runs_behind_the_same_door(monkeypatch):
    """Random weights, as nothing is downloaded here; features as that library gives for bytes."""
    import torch_fidelity.feature_extractor_inceptionv3 as library

    network = library.FeatureExtractorInceptionV3
    monkeypatch.setattr(network, "load_state_dict", lambda self, weights: None)
    monkeypatch.setattr(library, "load_state_dict_from_url", lambda *a, **k: {})
    torch.manual_seed(0)
    own = network("x", ["2048"])
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    found = metrics.inception("cpu")(pictures)
    assert found.shape == (2, 2048)
    assert torch.equal(found, own((pictures * 255).round().byte())[0])


def test_real_pictures_are_right_for_the_oracle_in_every_family():
    prompts = [row.prompt for row in read_prompts("shapes:3")]
    pictures = torch.cat(list(metrics.real_pictures(prompts, least=2 * len(prompts))))
    assert len(pictures) == 2 * len(prompts)
    assert metrics.oracle(pictures, prompts * 2).mean() == 1
    assert metrics.oracle(pictures, prompts[1:] * 2 + prompts[:1] * 2).mean() < 0.5


def folder(path, pictures, rows, model=None):
    path.mkdir()
    for n, image in enumerate(to_pil(pictures)):
        image.save(path / f"{n:05d}.png")
    (path / "metadata.jsonl").write_text(manifest_of(rows))
    if model:
        (path / "settings.json").write_text(json.dumps({"settings": {"model": model}}))
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """True pictures, and the same with every second one drawn for another prompt."""
    root = tmp_path_factory.mktemp("folders")
    rows = read_prompts("shapes:4")
    true = torch.cat(list(metrics.real_pictures([row.prompt for row in rows], least=1)))
    wrong = true.clone()
    wrong[::2] = true.flip(0)[::2]
    folders = [folder(root / "true", true, rows, "shapes")]
    folders.append(folder(root / "half", wrong, rows, "shapes"))
    return *folders, rows, wrong


def test_folders_of_the_shapes_world(two, tmp_path, capsys, monkeypatch):
    true, half, rows, wrong = two
    drawn = functools.partial(metrics.real_pictures, least=64)
    monkeypatch.setattr(metrics, "real_pictures", drawn)
    out = tmp_path / "r.json"
    found = evaluate([true, half], metrics=["oracle", "fid", HELDOUT], device="cpu")
    found.write(out)
    first, second = found.folders
    prompts = [row.prompt for row in rows]
    right = [float(v.right) for v in judge(to_pil(wrong), prompts)]
    assert first.values["oracle"] == [1.0] * len(rows)
    assert second.values["oracle"] == right
    arrays = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in to_pil(wrong)]
    with torch.no_grad():
        expected = dk.rewards.load(HELDOUT, device="cpu")(torch.stack(arrays) / 255, prompts)
    assert second.values[HELDOUT] == pytest.approx(expected.tolist(), abs=1e-4)
    assert first.fid > 0
    assert Evaluation.read(out) == found
    assert found.frame().loc[("half", "oracle: position"), "mean"] == np.mean(right[16:20])
    text = found.table()
    assert f"{np.mean(right):.1%} ({np.mean(right) - 1:+.1%} [" in text
    assert "biased upwards" in text
    assert main(["evaluate", str(half), "--metrics", "oracle", "--device", "cpu"]) == 0
    assert "28 prompt-seed pairs." in capsys.readouterr().out


def test_fid_of_a_folder_with_itself_is_zero_and_grows_with_noise(two, tmp_path, monkeypatch):
    true, half, rows, _ = two
    noisy = torch.cat(list(images(Pictures.read(true).files, 8)))
    folder(tmp_path / "noisy", (noisy + 0.3 * torch.randn_like(noisy)).clamp(0, 1), rows, "shapes")
    extract = lambda x: x[..., ::16, ::32].flatten(1)[:, :6]  # noqa: E731
    monkeypatch.setattr(metrics, "inception", lambda device: extract)
    monkeypatch.setattr("datekit.evaluation.evaluate.SHIPPED", ())
    sets = [true, half, tmp_path / "noisy"]
    found = evaluate(sets, metrics=["fid"], fid_reference=true, batch_size=5)
    distances = [scores.fid for scores in found.folders]
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances[2] > distances[1] > 1e-5
    assert f"{distances[2]:.3f} ({distances[2] - distances[0]:+.3f})" in found.table()


def test_folders_that_cannot_be_judged(two, tmp_path):
    true, _, rows, wrong = two
    other = folder(tmp_path / "other", wrong, [*rows[:-1], Row(rows[-1].prompt, 99)])
    fewer = folder(tmp_path / "fewer", wrong[:2], rows[:2])
    oracle = {"metrics": ["oracle"]}
    for folders, settings, message in (
        ([true, other], oracle, "other prompts or seeds than"),
        ([true, fewer], oracle, "other prompts or seeds than"),
        ([true], {"metrics": ["beauty"]}, "unknown reward"),
        ([true, true], oracle, "named twice"),
        ([true], {"batch_size": 0}, "batch_size"),
        ([true], {"metrics": "oracle"}, "metrics must be a list of names, one at least, got 'ora"),
        ([true], {"metrics": []}, "metrics must be a list of names, one at least"),
        ([true], {"metrics": [metrics.oracle]}, "metrics must be a list of names, one at least"),
        (str(true), {}, "folders must be a list of names, one at least"),
        ([], oracle, "folders must be a list of names, one at least"),
        ([true], {"metrics": ["fid"], "fid_reference": tmp_path / "none"}, "holds no pictures"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(folders, **settings)
    with pytest.raises(ValueError, match="FID needs a reference"):
        evaluate([other], metrics=["fid"], device="cpu")
    (fewer / "00001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"names .*00001\.png, which is not there"):
        evaluate([fewer])
    with pytest.raises(FileNotFoundError, match=r"metadata\.jsonl"):
        evaluate([tmp_path])
    assert main(["evaluate", str(tmp_path)]) == 2


def test_prompts_from_outside_of_the_grammar(two, tmp_path):
    """Who knows the shapes world alone is asked by nobody, or refused; the others judge."""
    _, _, rows, wrong = two
    rows = [rows[0], Row("a photo of a cat", 0)]
    foreign = folder(tmp_path / "foreign", wrong[:2], rows, "shapes")
    for name in ("oracle", "fid"):
        with pytest.raises(
            ValueError, match=f"{name} knows the shapes world .* 'a photo of a cat'"
        ):
            evaluate([foreign], metrics=["shapes-clip", name], device="cpu")
    (scores,) = evaluate([foreign], device="cpu").folders
    assert set(scores.values) == set(SHAPES) - {"oracle", "fid"}
    h = dk.rewards.load("shapes-clip", device="cpu")(wrong[:2], [row.prompt for row in rows])
    assert scores.values["shapes-clip"] == pytest.approx(h.tolist(), abs=1e-2)


def test_a_folder_that_something_else_made(tmp_path):
    red = torch.cat(list(metrics.real_pictures(["a red circle"], least=2)))
    for n, image in enumerate(to_pil(red)):
        image.save(tmp_path / f"{n}.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a red circle\n1.png,a star\n")
    found = evaluate([tmp_path], metrics=["oracle"], device="cpu")
    assert found.folders[0].values["oracle"] == [1.0, 0.0]
    assert found.frame().loc[(tmp_path.name, "oracle"), "mean"] == 0.5


def test_pictures_of_different_sizes_keep_their_order(tmp_path):
    sizes = [8, 8, 8, 6, 6, 8]
    for n, size in enumerate(sizes):
        Image.new("RGB", (size, size), (n, 0, 255)).save(tmp_path / f"{n}.png")
    batches = list(images(sorted(tmp_path.glob("*.png")), 2))
    assert [(len(b), b.shape[-1]) for b in batches] == [(2, 8), (1, 8), (2, 6), (1, 8)]
    assert [round(v * 255) for b in batches for v in b[:, 0, 0, 0].tolist()] == list(range(6))


def test_both_tables_say_the_same_and_escape_what_means_something():
    values = {"a_b|c": [0.1, 0.2], "oracle": [0.0, 1.0]}
    folders = [Scores(label, "", values, 20.0) for label in ("p_1 & 50%", "#2 | {x} $y$ ~^\\")]
    found = Evaluation(folders, 2)
    lines = found.table().splitlines()[:4]
    table = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    table = [[cell.strip().replace(r"\|", "|") for cell in line] for line in table]
    latex, rows = found.table("latex"), []
    for line in latex.splitlines():
        if line.endswith(r" \\"):
            cells = re.split(r"(?<!\\) & ", line.removesuffix(r" \\"))
            rows.append([re.sub(r"\\([%_&#${}])", r"\1", cell) for cell in cells])
    names = [["textasciitilde ", "~"], ["textasciicircum ", "^"], ["textbackslash ", "\\"]]
    for name, sign in names:
        rows[2][0] = rows[2][0].replace("\\" + name, sign)
    assert rows == [table[0], *table[2:]]
    assert re.findall(r"\\\w+rule", latex) == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert latex.splitlines()[-1].startswith("% 2 prompt-seed pairs; in brackets")


def test_a_table_of_paired_results():
    base = np.random.default_rng(0).normal(0.5, 0.1, 60)
    folders = (
        Scores("fixed", "", {"a_b": base.tolist(), "oracle": [0.0] * 60}, 20.0),
        Scores("DATE", "", {"a_b": (base + 0.05).tolist(), "oracle": [1.0] * 60}, 18.5),
    )
    found = Evaluation(folders, 60)
    result = found.frame()
    row = result.loc[("DATE", "a_b")]
    assert tuple(row[["mean", "low", "high"]]) == tuple(bootstrap(base + 0.05))
    assert row.tolist()[4:] == pytest.approx([0.05] * 3)
    assert row["pairs"] == 60
    assert np.isnan(result.loc[("fixed", "a_b"), "difference"])
    mean, date = f"{base.mean():.3f}", f"{base.mean() + 0.05:.3f} (+0.050 [+0.050, +0.050])"
    assert found.table().splitlines()[:4] == [
        "| method | a_b | oracle | FID |",
        "| --- | --- | --- | --- |",
        f"| fixed | {mean} | 0.0% | 20.000 |",
        f"| DATE | {date} | 100.0% (+100.0% [+100.0%, +100.0%]) | 18.500 (-1.500) |",
    ]
    other = Scores("DATE", "", {"a_b": [1.0], "oracle": [1.0]})
    with pytest.raises(ValueError, match="same length"):
        Evaluation((folders[0], other), 60).frame()


def test_bootstrap_of_a_normal_sample_is_the_textbook_interval():
    values = np.random.default_rng(0).normal(2, 3, 400)
    mean, low, high = bootstrap(values)
    half = 1.96 * values.std() / 20
    assert mean == pytest.approx(values.mean())
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.06)


def test_paired_differences_cancel_what_pairs_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 100, 200)
    interval = bootstrap(shared + 1 + rng.normal(0, 0.1, 200), minus=shared)
    assert 0.95 < interval.low < interval.high < 1.05


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")]])
def test_bootstrap_refuses(bad):
    with pytest.raises(ValueError, match="non-empty row of finite"):
        bootstrap(bad)
    with pytest.raises(ValueError, match="same length"):
        bootstrap([1.0], minus=[1.0, 2.0])
