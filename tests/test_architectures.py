"""The published architectures: as large as published, and ready to sample when made smaller."""

from __future__ import annotations

import pytest
import torch
from studies import architectures, cost, fullsize

import datekit as dk

PUBLISHED = {
    "SD v1.5": 0.86,
    "SDXL": 2.57,
    "PixArt-alpha": 0.61,
    "SD3 medium": 2.03,
    "FLUX.1-dev": 11.9,
}  # billion parameters of the network
SMALLER = {
    "SD v1.5": {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
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
    """The benchmark that a GPU runs at full size, on a narrow network and small images.

    A kind that fails leaves the others, and says why; memory that runs out says so.
    """

    def full(*args):
        raise torch.OutOfMemoryError("no room")

    def broken(latents):
        raise FloatingPointError("broken")

    variants, kept = fullsize.variants, ("fixed", "updated", "fast", "tiny", "plain")
    monkeypatch.setattr(fullsize, "STEPS", 1)
    monkeypatch.setattr(fullsize, "plain_step", full)
    monkeypatch.setattr(
        fullsize,
        "variants",
        lambda backbone: (
            {kind: variants(backbone)[kind] for kind in kept}
            | {"fast": (dk.DATE(fullsize.mean_colour, decoder=broken), {})}
        ),
    )
    row = fullsize.measure("SD v1.5", torch.float32, 2, "cpu", pixels=64, **SMALLER["SD v1.5"])
    assert row["plain"] == {"not measured": "out of memory", "why": "no room"}
    assert row["fast"] == {"not measured": "FloatingPointError: broken"}
    assert row["fixed"]["GFLOP"] < row["tiny"]["GFLOP"] < row["updated"]["GFLOP"]
    for kind in ("fixed", "updated", "tiny"):
        assert row[kind]["seconds"] > 0
        assert row[kind]["share of the matrix rate"] >= 0
    for phase in cost.PHASES:
        assert row["tiny"]["phases"][phase] > 0
    rows = [{"model": "SD v1.5", "dtype": "fp32", "batch": 2, **row}]
    cells = fullsize.markdown({"rows": rows}).splitlines()[-1].split(" | ")
    assert {"out of memory", "FloatingPointError: broken"} <= set(cells)


def test_rows_that_are_there_already_stay(tmp_path, monkeypatch):
    """Of this machine and these versions, in the table's order; times elsewhere are not lost."""
    asked, out = [], tmp_path / "full.json"
    monkeypatch.setattr(
        fullsize,
        "measure",
        lambda name, *rest: asked.append(name) or {"fixed": {"seconds": len(asked)}},
    )
    fullsize.run(out, names=("SDXL", "SD v1.5"), cases=(("fp32", 1),))
    content = fullsize.run(out, names=("SD v1.5",), cases=(("bf16", 1), ("fp32", 1), ("fp32", 4)))
    assert asked == ["SDXL", "SD v1.5", "SD v1.5", "SD v1.5"]
    found = [(r["model"], r["dtype"], r["batch"], r["fixed"]["seconds"]) for r in content["rows"]]
    assert found == [
        ("SD v1.5", "bf16", 1, 3),
        ("SD v1.5", "fp32", 1, 2),
        ("SD v1.5", "fp32", 4, 4),
        ("SDXL", "fp32", 1, 1),
    ]
    facts = fullsize.facts() | {"hardware": "another"}
    monkeypatch.setattr(fullsize, "facts", lambda device: facts)
    with pytest.raises(ValueError, match=r"holds times of .*; give another --out"):
        fullsize.run(out, names=("SDXL",))


def test_without_a_gpu_memory_and_operations_are_counted(monkeypatch):
    variants, kinds = fullsize.variants, ("fixed", "updated")
    monkeypatch.setattr(
        fullsize, "variants", lambda backbone: {kind: variants(backbone)[kind] for kind in kinds}
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    row = fullsize.measure("SD v1.5", torch.float32, 2, "cuda", **SMALLER["SD v1.5"])
    fixed, updated = (row["counted"][kind] for kind in kinds)
    assert fixed["GiB"] < updated["GiB"]
    assert fixed["TFLOP"] < updated["TFLOP"]
    table = fullsize.markdown({"rows": [{"model": "SD v1.5", "dtype": "fp32", "batch": 2, **row}]})
    assert table.endswith("| not measured: no CUDA device |")
    assert table.splitlines()[0].count("GiB (estimated)") == len(row["counted"])
