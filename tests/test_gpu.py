"""The shipped model on a GPU: the same noise, nearly the same pictures, the same bits after resuming."""

from __future__ import annotations

import pytest
import torch

import datekit as dk
from datekit.evaluation import architectures, fullsize

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def make(device, prompts, method=None):
    reward = dk.rewards.load("shapes-clip", device=device)
    return dk.Sampler(dk.load("shapes", device=device), method or dk.DATE(reward, rho=1.0, when=dk.every(5)), num_steps=20).start(
        prompts, seeds=[0, 1, 2])


def test_the_pictures_are_those_of_the_cpu(prompts):
    fixed = [make(device, prompts, dk.Fixed()).finish().pixels.cpu() for device in ("cuda", "cpu")]
    assert (fixed[0] - fixed[1]).abs().max() < 0.02
    look = [make(device, prompts).peek() for device in ("cuda", "cpu")]
    cosine = torch.nn.functional.cosine_similarity(look[0].direction.cpu().flatten(1), look[1].direction.flatten(1))
    assert (cosine > 0.999).all()


def test_saved_on_one_device_and_loaded_on_another(prompts, tmp_path):
    run = make("cuda", prompts)
    run.step(5)
    path = run.save(tmp_path / "run.pt")
    there = dk.Run.load(path, make("cpu", prompts).sampler)
    assert there.state.xt.device.type == "cpu"
    assert there.finish().pixels.isfinite().all()


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_three_steps_of_date_at_full_size(name, tmp_path):
    """Random weights, half precision, the published image size: finite, and more than one step's price but not ten."""
    content = fullsize.bench(tmp_path / "full.json", names=(name,))
    row = content["rows"][0]
    assert 1 < row["updated"]["seconds"] / row["fixed"]["seconds"] < 10
