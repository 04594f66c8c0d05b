"""`datekit evaluate`: the Frechet distance against formulas, the oracle per family, paired tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import datekit as dk
from datekit.cli import main
from datekit.evaluation import bootstrap, metrics, tables
from datekit.evaluation.evaluate import HELDOUT, Pictures, automatic, evaluate, images, table
from datekit.evaluation.metrics import Statistics, frechet_distance
from datekit.shapes import captions, judge
from datekit.types import to_pil


def gaussian_statistics(seed: int, width: int = 5) -> Statistics:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(width, width))
    return Statistics(rng.normal(size=width), root @ root.T)


@given(st.integers(0, 10_000))
def test_frechet_distance_of_diagonal_covariances_is_the_formula(seed):
    rng = np.random.default_rng(seed)
    (mu, nu), (s, t) = rng.normal(size=(2, 7)), rng.uniform(0.01, 3, size=(2, 7))
    expected = ((mu - nu) ** 2).sum() + ((np.sqrt(s) - np.sqrt(t)) ** 2).sum()
    assert frechet_distance(
        Statistics(mu, np.diag(s)), Statistics(nu, np.diag(t))
    ) == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 10_000))
def test_frechet_distance_against_a_matrix_square_root(seed):
    a, b = gaussian_statistics(seed), gaussian_statistics(seed + 1)
    root = scipy.linalg.sqrtm(a.sigma)
    cross = scipy.linalg.sqrtm(
        root @ b.sigma @ root
    )  # similar to (sigma_a sigma_b)^(1/2), and symmetric
    expected = ((a.mu - b.mu) ** 2).sum() + np.trace(a.sigma + b.sigma - 2 * cross.real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_statistics_are_mean_and_covariance_and_survive_their_file(tmp_path):
    features = np.random.default_rng(0).normal(size=(50, 4))
    found = Statistics.of(features)
    centred = features - features.mean(0)
    assert np.allclose(found.sigma, centred.T @ centred / 49)
    found.write(tmp_path / "own.npz")
    again = Statistics.read(tmp_path / "own.npz")
    assert np.array_equal(again.mu, found.mu)
    assert np.array_equal(again.sigma, found.sigma)
    assert again.count == 50
    np.savez(
        tmp_path / "field.npz", mu=found.mu.astype(np.float32), sigma=found.sigma.astype(np.float32)
    )  # as others write it
    assert frechet_distance(Statistics.read(tmp_path / "field.npz"), found) == pytest.approx(
        0, abs=1e-5
    )


def test_bad_statistics(tmp_path):
    good, path = gaussian_statistics(0), tmp_path / "bad.npz"
    for arrays, message in (
        ({"mean": good.mu, "sigma": good.sigma}, "arrays 'mu' and 'sigma'"), ({"mu": good.mu, "sigma": good.mu}, r"sigma \(F, F\)"),
        ({"mu": good.mu * np.nan, "sigma": good.sigma}, "NaN"), ({"mu": good.mu, "sigma": np.triu(good.sigma)}, "not symmetric"),
    ):  # fmt: skip
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=message):
            Statistics.read(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"no \.npz of arrays mu and sigma"):
        Statistics.read(path)
    np.save(tmp_path / "one.npy", good.mu)
    with pytest.raises(ValueError, match="holds one array"):
        Statistics.read(tmp_path / "one.npy")
    with pytest.raises(FileNotFoundError, match="no reference statistics"):
        Statistics.read(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="same feature extractor"):
        frechet_distance(good, gaussian_statistics(0, width=4))
    with pytest.raises(ValueError, match="at least two"):
        Statistics.of(np.zeros((1, 3)))


def test_the_standard_inception_network_runs_behind_the_same_door(tmp_path, monkeypatch):
    """Random weights in torch-fidelity's layout; features as if asked of that library, with bytes."""
    import torch_fidelity.feature_extractor_inceptionv3 as library

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(
            library.FeatureExtractorInceptionV3, "load_state_dict", lambda self, weights: None
        )
        patch.setattr(library, "load_state_dict_from_url", lambda *a, **k: {})
        own = library.FeatureExtractorInceptionV3("x", ["2048"])
    torch.save(own.state_dict(), tmp_path / "weights.pth")
    pictures = torch.rand(2, 3, 40, 40)
    found = metrics.extractor("inception", device="cpu", weights=tmp_path / "weights.pth")(pictures)
    assert found.shape == (2, 2048)
    assert torch.equal(found, own((pictures * 255).round().byte())[0])


def test_any_function_extracts_features():
    batches = [torch.rand(3, 3, 8, 8), torch.rand(2, 3, 8, 8)]
    found = metrics.features(batches, lambda x: x.mean((2, 3)))
    assert np.allclose(found, torch.cat(batches).mean((2, 3)).numpy())
    assert metrics.extractor(HELDOUT, device="cpu")(batches[0]).norm(
        dim=1
    ).tolist() == pytest.approx([1] * 3, abs=1e-5)
    with pytest.raises(ValueError, match="no image features"):
        metrics.extractor("target")


def test_the_family_of_every_prompt_of_the_world():
    for family in captions.FAMILIES:
        assert {
            metrics.family(prompt) for prompt in captions.prompts("heldout", family=family)
        } == {family}
    with pytest.raises(ValueError, match="cannot read"):
        metrics.family("a photo of a cat")


def test_real_pictures_are_right_for_the_oracle_in_every_family():
    prompts = [
        prompt
        for family in captions.FAMILIES
        for prompt in captions.prompts("heldout", 3, family=family)
    ]
    batches = list(metrics.real_pictures(prompts, least=2 * len(prompts), batch=16))
    pictures = torch.cat(batches)
    assert len(pictures) == 2 * len(prompts)
    assert np.mean(metrics.oracle(pictures, prompts * 2)) == 1
    assert np.mean(metrics.oracle(pictures, prompts[1:] * 2 + prompts[:1] * 2)) < 0.5


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(0, 9))
def test_equal_weights_make_the_mean_over_families(families, seed):
    values = np.random.default_rng(seed).integers(0, 2, len(families))
    expected = np.mean(
        [np.mean([v for v, f in zip(values, families) if f == name]) for name in set(families)]
    )
    assert (metrics.equal_weights(families) * values).mean() == pytest.approx(expected)


def folder(path, pictures, rows, model=None):
    path.mkdir()
    for n, image in enumerate(to_pil(pictures)):
        image.save(path / f"{n:05d}.png")
    lines = [
        json.dumps({"file_name": f"{n:05d}.png", "prompt": prompt, "seed": seed})
        for n, (prompt, seed) in enumerate(rows)
    ]
    (path / "metadata.jsonl").write_text("\n".join(lines))
    if model:
        (path / "settings.json").write_text(
            json.dumps({"settings": {"sampler": {"backbone": {"backbone": model}}}})
        )
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """True pictures, and the same with every second one drawn for another prompt."""
    root = tmp_path_factory.mktemp("folders")
    prompts = [
        prompt
        for family in captions.FAMILIES
        for prompt in captions.prompts("heldout", 4, family=family)
    ]
    rows = [(prompt, n) for n, prompt in enumerate(prompts)]
    true = torch.cat(list(metrics.real_pictures(prompts, least=1)))
    wrong = true.clone()
    wrong[::2] = true.flip(0)[::2]
    return (
        folder(root / "true", true, rows, "shapes"),
        folder(root / "half", wrong, rows, "shapes"),
        rows,
        wrong,
    )


def test_folders_of_the_shapes_world(two, tmp_path, capsys):
    true, half, rows, wrong = two
    content = evaluate(
        [true, half],
        metrics=["oracle", "fid", HELDOUT],
        device="cpu",
        out=tmp_path / "r.json",
        reference_pictures=64,
    )
    prompts = [prompt for prompt, _ in rows]
    right = [float(v.right) for v in judge(to_pil(wrong), prompts)]
    assert content["values"]["true"]["oracle"] == [1.0] * len(rows)
    assert content["values"]["half"]["oracle"] == right
    assert content["values"]["half"]["oracle: position"] == right[16:20]
    stored = torch.stack(
        [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in to_pil(wrong)]
    )
    with torch.no_grad():
        expected = dk.rewards.load(HELDOUT, device="cpu")(stored, prompts)
    assert content["values"]["half"][HELDOUT] == pytest.approx(expected.tolist(), abs=1e-4)
    assert content["single"]["true"]["FID"] > 0
    assert json.loads((tmp_path / "r.json").read_text())["values"] == content["values"]
    text = table(content)
    assert f"{np.mean(right):.1%} ({np.mean(right) - 1:+.1%} [" in text
    assert "oracle: counting" in text
    assert "biased upwards" in text
    assert table(content, "latex").count(r"\begin{tabular}") == 2
    assert "method,metric,pairs" in table(content, "csv")
    assert main(["evaluate", str(half), "--metrics", "oracle", "--device", "cpu"]) == 0
    assert "28 prompt-seed pairs." in capsys.readouterr().out


def test_all_families_weigh_the_same_and_each_picture_keeps_its_verdict(tmp_path):
    """Three pictures of one thing, all right, and one of two, wrong: half of the families are right."""
    prompts = [("a red circle", n) for n in range(3)] + [("a red circle and a blue square", 3)]
    red = torch.cat(list(metrics.real_pictures(["a red circle"], least=4)))
    found = evaluate(
        [folder(tmp_path / "some", red, prompts, "shapes")], metrics=["oracle"], device="cpu"
    )
    assert found["values"]["some"]["oracle"] == [1.0, 1.0, 1.0, 0.0]
    assert "50.0%" in table(found)


def test_fid_of_a_folder_with_itself_is_zero_and_grows_with_noise(two, tmp_path, monkeypatch):
    true, half, rows, _ = two
    noisy = torch.cat(list(images(Pictures.read(true).files, 8)))
    folder(tmp_path / "noisy", (noisy + 0.3 * torch.randn_like(noisy)).clamp(0, 1), rows, "shapes")
    monkeypatch.setattr(
        metrics, "extractor", lambda name, device: lambda x: x[..., ::16, ::32].flatten(1)[:, :6]
    )
    content = evaluate(
        [true, half, tmp_path / "noisy"], metrics=["fid"], fid_reference=true, batch_size=5
    )
    distances = [row["FID"] for row in content["single"].values()]
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances[2] > distances[1] > 1e-5
    assert f"{distances[2]:.3f} ({distances[2] - distances[0]:+.3f})" in table(content)


def test_metrics_follow_the_model(two, tmp_path, capsys):
    true, _, rows, wrong = two
    assert automatic(Pictures.read(true))[-2:] == ["oracle", "fid"]
    assert HELDOUT in automatic(Pictures.read(true))
    assert automatic(Pictures.read(folder(tmp_path / "closed", wrong, rows, "gaussian"))) == [
        "target"
    ]
    real = Pictures.read(folder(tmp_path / "real", wrong, rows, "owner/name"))
    assert automatic(real) == [
        "CLIPScore:ViT-g-14,laion2b_s12b_b42k",
        "ImageReward",
        "AestheticScore",
    ]
    assert automatic(real, "x.npz")[-1] == "fid"
    free = folder(tmp_path / "free", wrong[:1], [("a photo of a cat", 0)], "shapes")
    assert not {"oracle", "fid"} & set(automatic(Pictures.read(free)))
    assert "without the oracle: cannot read 'a photo of a cat'" in capsys.readouterr().err


def test_folders_that_cannot_be_judged(two, tmp_path):
    true, _, rows, wrong = two
    other = folder(tmp_path / "other", wrong, [*rows[:-1], (rows[-1][0], 99)])
    with pytest.raises(ValueError, match=r"picture 27 is .* there and .*99.* here"):
        evaluate([true, other], metrics=["oracle"])
    fewer = folder(tmp_path / "fewer", wrong[:2], rows[:2])
    with pytest.raises(ValueError, match="picture 2 is"):
        evaluate([true, fewer], metrics=["oracle"])
    with pytest.raises(ValueError, match="named twice"):
        evaluate([true, true], metrics=["oracle"])
    (fewer / "00001.png").unlink()
    with pytest.raises(ValueError, match=r"1 of the 2 pictures .* missing, 00001\.png first"):
        evaluate([fewer])
    with pytest.raises(FileNotFoundError, match=r"no metadata\.jsonl"):
        evaluate([tmp_path])
    with pytest.raises(ValueError, match="batch_size must be"):
        evaluate([true], batch_size=0)
    (fewer / "metadata.jsonl").write_text('{"file_name": "00000.png"}\n')
    with pytest.raises(ValueError, match="line 1, has no file_name or no prompt"):
        evaluate([fewer])
    with pytest.raises(ValueError, match="FID needs a reference"):
        evaluate([folder(tmp_path / "real", wrong, rows)], metrics=["fid"], fid_features=HELDOUT)
    with pytest.raises(ValueError, match="unknown reward"):
        evaluate([true], metrics=["beauty"])
    assert main(["evaluate", str(tmp_path)]) == 2


def test_pictures_of_different_sizes_keep_their_order(tmp_path):
    sizes = [8, 8, 8, 6, 6, 8]
    for n, size in enumerate(sizes):
        Image.new("RGB", (size, size), (n, 0, 255)).save(tmp_path / f"{n}.png")
    batches = list(images(sorted(tmp_path.glob("*.png")), 2))
    assert [tuple(b.shape) for b in batches] == [
        (2, 3, 8, 8),
        (1, 3, 8, 8),
        (2, 3, 6, 6),
        (1, 3, 8, 8),
    ]
    assert [round(v * 255) for b in batches for v in b[:, 0, 0, 0].tolist()] == list(range(6))


def test_a_table_of_paired_results():
    rng = np.random.default_rng(0)
    base = rng.normal(0.5, 0.1, 60)
    values = {
        "fixed": {"a_b": base, "oracle": np.zeros(60)},
        "DATE": {"a_b": base + 0.05, "oracle": np.ones(60)},
    }
    result = tables.frame(values, single={"fixed": {"FID": 20.0}, "DATE": {"FID": 18.5}})
    row = result.loc[("DATE", "a_b")]
    assert tuple(row[["mean", "low", "high"]]) == tuple(bootstrap(values["DATE"]["a_b"]))
    assert row[["difference", "difference low", "difference high"]].tolist() == pytest.approx(
        [0.05] * 3
    )
    assert row["pairs"] == 60
    assert np.isnan(result.loc[("fixed", "a_b"), "difference"])
    mean = base.mean()
    assert tables.markdown(result).splitlines() == [
        "| method | a_b | oracle | FID |",
        "| --- | --- | --- | --- |",
        f"| fixed | {mean:.3f} | 0.0% | 20.000 |",
        f"| DATE | {mean + 0.05:.3f} (+0.050 [+0.050, +0.050]) | 100.0% (+100.0% [+100.0%, +100.0%]) | 18.500 (-1.500) |",
    ]
    assert tables.latex(result, ["a_b", "oracle"]).splitlines() == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"method & a\_b & oracle \\",
        r"\midrule",
        rf"fixed & {mean:.3f} & 0.0\% \\",
        rf"DATE & {mean + 0.05:.3f} (+0.050 [+0.050, +0.050]) & 100.0\% (+100.0\% [+100.0\%, +100.0\%]) \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    with pytest.raises(ValueError, match="baseline 'x' is none"):
        tables.frame(values, "x")
    with pytest.raises(ValueError, match="same length"):
        tables.frame({"fixed": {"a": [1.0, 2.0]}, "DATE": {"a": [1.0]}})


def test_the_committed_comparison_as_the_same_table():
    from pathlib import Path

    content = json.loads(
        (Path(dk.__file__).parent / "evaluation" / "results" / "heldout.json").read_text()
    )
    result = tables.from_comparison(content)
    assert len(result) == 4 * len(content["rows"])  # guide, heldout, preference, oracle
    name = next(name for name in content["rows"] if name.startswith("best of 4"))
    assert result.loc[(name, "oracle"), "difference"] == content["rows"][name]["oracle - fixed"][0]
    assert "best of 4" in tables.markdown(result)
