"""The published architectures: as large as published, and ready to sample when made smaller."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import datekit as dk
from studies import architectures, fullsize

PUBLISHED = {
    "SD v1.5": 0.86,
    "SDXL": 2.57,
    "PixArt-alpha": 0.61,
    "SD3 medium": 2.03,
    "FLUX.1-dev": 11.9,
}  # billion parameters of the network
SMALLER = {
    "SD v1.5": {"block_out_channels": (32, 32, 64, 64)},
    "SDXL": {
        "block_out_channels": (32, 64, 64),
        "transformer_layers_per_block": 1,
        "attention_head_dim": (2, 4, 4),
    },
    "PixArt-alpha": {"num_layers": 2, "num_attention_heads": 2, "cross_attention_dim": 144},
    "SD3 medium": {"num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128},
    "FLUX.1-dev": {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2},
}


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_is_as_large_as_published(name):
    assert architectures.sizes(name)["network"] == pytest.approx(PUBLISHED[name], rel=0.01)
    assert architectures.sizes(name)["decoder"] == pytest.approx(0.0495, rel=0.01)


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_takes_a_step_of_date(name, brightness):
    """With a narrower network and small images, the same code as at full size."""
    backbone = architectures.build(name, **SMALLER[name])
    sampler = dk.Sampler(backbone, dk.DATE(brightness, rho=0.5), num_steps=4)
    run = sampler.start(["a", "b"], seeds=[0, 1], height=64, width=64)
    info = run.step()
    assert info.updated
    assert torch.allclose(info.distance, torch.full((2,), 0.5), rtol=1e-4)
    assert run.state.xt.isfinite().all()


def test_measuring_a_step(tmp_path, monkeypatch):
    """The benchmark that a GPU runs at full size, on a narrow network and small images."""
    monkeypatch.setattr(fullsize, "STEPS", 1)
    row = fullsize._row("SD v1.5", torch.float32, 1, "cpu", pixels=64, **SMALLER["SD v1.5"])
    assert min(row["fixed"]["seconds"], row["updated"]["seconds"]) > 0
    assert row["fixed"]["GFLOP"] < row["updated"]["GFLOP"]
    monkeypatch.setattr(
        fullsize, "_row", lambda *args: row | {"fixed": row["fixed"] | {"peak GiB": 1.0}}
    )
    content = fullsize.bench(tmp_path / "full.json", names=("SD v1.5", "SDXL"))
    assert json.loads((tmp_path / "full.json").read_text()) == content
    assert fullsize.markdown(content).count("\n") == 3
    assert "estimated" not in fullsize.markdown(content)


def test_rows_that_are_there_already_stay(tmp_path, monkeypatch):
    """Of this machine and these versions; the table keeps its order. Another machine starts afresh."""
    asked, out = [], tmp_path / "full.json"
    monkeypatch.setattr(
        fullsize,
        "_row",
        lambda name, *rest: asked.append(name) or {"not measured": f"call {len(asked)}"},
    )
    fullsize.bench(out, names=("SDXL", "SD v1.5"), cases=(("fp32", 1),))
    content = fullsize.bench(out, names=("SD v1.5",), cases=(("bf16", 1), ("fp32", 1), ("fp32", 4)))
    assert asked == ["SDXL", "SD v1.5", "SD v1.5", "SD v1.5"]
    assert [
        (row["model"], row["dtype"], row["batch"], row["not measured"]) for row in content["rows"]
    ] == [
        ("SD v1.5", "bf16", 1, "call 3"),
        ("SD v1.5", "fp32", 1, "call 2"),
        ("SD v1.5", "fp32", 4, "call 4"),
        ("SDXL", "fp32", 1, "call 1"),
    ]
    assert json.loads(out.read_text()) == content
    facts = fullsize.facts() | {"hardware": "another"}
    monkeypatch.setattr(fullsize, "facts", lambda device: facts)
    assert [row["not measured"] for row in fullsize.bench(out, names=("SDXL",))["rows"]] == [
        "call 5"
    ]


def test_the_table_that_ships_says_what_is_estimated():
    """Every published architecture in 16 bits too, which takes less; what no GPU measured is called an estimate at the head of its column."""
    path = Path(fullsize.__file__).parent / "results" / "full-size.json"
    content = json.loads(path.read_text())
    rows = {(row["model"], row["dtype"], row["batch"]): row for row in content["rows"]}
    head = fullsize.markdown(content).splitlines()[0]
    for name in architectures.ARCHITECTURES:
        half, single = rows[name, "bf16", 1], rows[name, "fp32", 1]
        if "counted" in half:
            assert half["counted"]["fixed"]["GiB"] == pytest.approx(
                single["counted"]["fixed"]["GiB"] / 2, rel=0.1
            )
            assert head.count("GiB (estimated)") == len(half["counted"]) == head.count("GiB")


def test_without_a_gpu_memory_and_operations_are_counted(monkeypatch):
    kinds, variants = ("fixed", "updated", "pictures one at a time", "fast"), fullsize._variants
    monkeypatch.setattr(
        fullsize, "_variants", lambda backbone: {kind: variants(backbone)[kind] for kind in kinds}
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    row = fullsize._row("SD v1.5", torch.float32, 2, "cuda", **SMALLER["SD v1.5"])
    found = row["counted"]
    assert (
        found["fixed"]["GiB"]
        < found["fast"]["GiB"]
        < found["pictures one at a time"]["GiB"]
        < found["updated"]["GiB"]
    )
    assert found["fixed"]["TFLOP"] < found["fast"]["TFLOP"] < found["updated"]["TFLOP"]
    table = fullsize.markdown({"rows": [{"model": "SD v1.5", "dtype": "fp32", "batch": 2, **row}]})
    assert table.endswith("| not measured: no CUDA device |")
    assert (
        f"| {found['updated']['GiB']:.1f}, {found['updated']['TFLOP'] / found['fixed']['TFLOP']:.2f} |"
        in table
    )


def test_out_of_memory_is_a_row_that_says_so(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(fullsize.architectures, "build", full)
    row = fullsize._row("SDXL", torch.float32, 1, "cpu")
    assert row == {"not measured": "out of memory", "why": "no room"}
    assert "out of memory" in fullsize.markdown(
        {"rows": [{"model": "SDXL", "dtype": "fp32", "batch": 1, **row}]}
    )


def test_a_kind_that_fails_leaves_the_others(monkeypatch):
    """Memory that runs out in the plain implementation, anything else in a fast one: both say so, and the rest is measured as named."""

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("no room")

    def broken(latents):
        raise FloatingPointError("broken")

    variants, asked = fullsize._variants, []
    monkeypatch.setattr(fullsize, "plain_step", full)
    kept = ("fixed", "fast", "tiny", "plain")
    monkeypatch.setattr(fullsize, "STEPS", 1)
    monkeypatch.setattr(
        fullsize,
        "_variants",
        lambda backbone: {
            kind: (dk.DATE(fullsize._mean_colour, decoder=broken), {})
            if kind == "fast"
            else variants(backbone)[kind]
            for kind in kept
        },
    )
    sampler = fullsize.Sampler
    monkeypatch.setattr(
        fullsize,
        "Sampler",
        lambda *args, **settings: asked.append(settings) or sampler(*args, **settings),
    )
    row = fullsize._row("SD v1.5", torch.float32, 2, "cpu", pixels=64, **SMALLER["SD v1.5"])
    assert row["plain"] == {"not measured": "out of memory", "why": "no room"}
    assert row["fast"] == {"not measured": "FloatingPointError: broken"}
    for kind in ("fixed", "tiny"):
        assert 0 <= row[kind]["share of the matrix rate"] <= 1
    assert row["tiny"]["phases"]["decode"] > 0
    assert all(
        None not in settings.values() for settings in asked
    )  # nothing is chosen by free memory
    cells = (
        fullsize.markdown({"rows": [{"model": "SD v1.5", "dtype": "fp32", "batch": 2, **row}]})
        .splitlines()[-1]
        .split(" | ")
    )
    assert "out of memory" in cells
    assert "FloatingPointError: broken" in cells


def test_times_of_another_machine_are_not_thrown_away(tmp_path, monkeypatch):
    out, times = tmp_path / "full.json", {"fixed": {"seconds": 1.0, "peak GiB": 1.0}}
    monkeypatch.setattr(fullsize, "_row", lambda *args: times)
    fullsize.bench(out, names=("SDXL",))
    facts = fullsize.facts() | {"hardware": "another"}
    monkeypatch.setattr(fullsize, "facts", lambda device: facts)
    with pytest.raises(ValueError, match=r"holds times of .*; give another --out"):
        fullsize.bench(out, names=("SDXL",))


def test_unknown_architecture():
    with pytest.raises(ValueError, match="SDXL"):
        architectures.build("SD XL")
