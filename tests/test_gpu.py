"""What holds on the CPU holds on a GPU, in half precision too. DATEKIT_TEST_DEVICE=cpu runs the same lines where there is none."""

from __future__ import annotations

import os

os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # read when CUDA starts: matrix products then repeat their bits

import families
import pipelines
import pytest
import torch
from test_families import PROMPTS, STEPS, pipeline_latents
from torch.nn.attention import SDPBackend, sdpa_kernel

import datekit as dk
from studies import architectures, fullsize
from datekit.types import norm

DEVICE = os.environ.get("DATEKIT_TEST_DEVICE", "cuda")
HALVES = [torch.float16, torch.bfloat16]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"
    ),
]


@pytest.fixture
def deterministic():
    """Kernels that add up in one order, where there are such."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def make(device, prompts, method=None, dtype=None, num_steps=20):
    reward = dk.rewards.load("shapes-clip", device=device)
    backbone = dk.load("shapes", device=device, dtype=dtype)
    return dk.Sampler(
        backbone, method or dk.DATE(reward, rho=1.0, when=dk.every(5)), num_steps=num_steps
    ).start(prompts, seeds=[0, 1, 2])


def test_the_pictures_are_those_of_the_cpu(prompts):
    fixed = [make(device, prompts, dk.Fixed()).finish().pixels.cpu() for device in (DEVICE, "cpu")]
    assert (fixed[0] - fixed[1]).abs().max() < 0.02
    look = [make(device, prompts).peek() for device in (DEVICE, "cpu")]
    cosine = torch.nn.functional.cosine_similarity(
        look[0].direction.cpu().flatten(1), look[1].direction.flatten(1)
    )
    assert (cosine > 0.999).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("w", [1.5, 3.0])
@pytest.mark.parametrize("name", ["sd", "sd-v", "sdxl", "sd3", "flux"])
def test_fixed_equals_the_pipeline_in_half_precision(name, w, dtype):
    """The same latents to the pipeline's own rounding, which the steps add up."""
    backbone = families.fresh(name, dtype, DEVICE)
    assert (backbone.device.type, backbone.dtype) == (torch.device(DEVICE).type, dtype)
    run = (
        dk.Sampler(backbone, num_steps=STEPS, guidance_scale=w, solver="own")
        .start(PROMPTS, seeds=[0, 1, 2])
        .finish()
    )
    theirs = pipeline_latents(backbone, "own", PROMPTS, [0, 1, 2], w)
    assert run.state.xt.dtype == dtype
    assert run.state.xt.device == theirs.device
    assert (run.state.xt.float() - theirs.float()).abs().max() <= 4 * torch.finfo(
        dtype
    ).eps * theirs.float().abs().max()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_shipped_model_equals_its_pipeline_in_half_precision(prompts, dtype):
    run = make(DEVICE, prompts, dk.Fixed(), dtype, num_steps=STEPS).finish()
    pipe, w = run.sampler.backbone.pipe, run.sampler.guidance_scale
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (0, 1, 2)]
    theirs = pipe(
        list(prompts),
        num_inference_steps=STEPS,
        guidance_scale=w,
        generator=generators,
        output_type="latent",
    ).images
    assert (run.state.xt.float() - theirs.float()).abs().max() <= 4 * torch.finfo(
        dtype
    ).eps * theirs.float().abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_date_moves_c_by_rho_and_stays_finite(prompts, dtype):
    """A reward in float32 on a network in any precision; c stays in float32, and everything on the device."""
    reward = dk.rewards.load("shapes-clip", device=DEVICE)
    run = make(DEVICE, prompts, dk.DATE(reward, rho=0.7), dtype, num_steps=4)
    for info in run:
        assert all(
            x.isfinite().all()
            for x in (info.h, info.grad, info.x0bar, info.x0bar_hat, run.state.xt)
        )
        assert torch.allclose(
            norm(run.state.c - run.state.c_org),
            torch.full((3,), 0.7, device=run.state.c.device),
            rtol=1e-3,
        )
        assert {x.device.type for x in (run.state.xt, run.state.c, info.h, info.grad)} == {
            torch.device(DEVICE).type
        }
    assert run.state.c.dtype == torch.float32
    assert run.pixels.isfinite().all()


def test_saved_on_one_device_and_loaded_on_another(prompts, tmp_path):
    """Every number of the past comes along, and the rest of the run is nearly the same there."""
    run = make(DEVICE, prompts)
    run.step(5)
    path = run.save(tmp_path / "run.pt")
    there = dk.Run.load(path, make("cpu", prompts).sampler)
    assert {x.device.type for x in (there.state.xt, there.state.c, there.history[3].x0bar)} == {
        "cpu"
    }
    assert torch.equal(there.state.xt, run.state.xt.cpu())
    assert torch.equal(there.state.c, run.state.c.cpu())
    assert torch.equal(there.history[0].grad, run.history[0].grad.cpu())
    again = dk.Run.load(path, run.sampler)
    assert again.state.xt.device == run.state.xt.device
    assert torch.equal(again.state.xt, run.state.xt)
    assert (there.finish().pixels - run.finish().pixels.cpu()).abs().mean() < 0.02


@pytest.mark.parametrize("method", ["fixed", "date", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rewinding_repeats_the_bits(prompts, deterministic, method, dtype):
    """Within one process: a rewound run, and a fork, come to the same end, to the last bit."""
    eta = 1.0 if method == "stochastic" else 0.0
    chosen = (
        dk.DATE(pipelines.Brightness(), rho=0.5, when=dk.every(2))
        if method == "date"
        else dk.Fixed()
    )
    sampler = dk.Sampler(
        dk.load("shapes", device=DEVICE, dtype=dtype), chosen, num_steps=6, solver="ddim", eta=eta
    )
    run = sampler.start(prompts, seeds=[0, 1, 2])
    run.step(3)
    fork, end = run.fork(), run.finish().state
    assert torch.equal(fork.finish().state.xt, end.xt)
    for to in (4, 1, 0):
        state = run.rewind(to=to).finish().state
        assert torch.equal(state.xt, end.xt)
        assert torch.equal(state.c, end.c)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_three_steps_of_date_at_full_size(name, tmp_path):
    """Random weights, half precision, the published image size: finite, and more than one step's price but not ten."""
    content = fullsize.bench(tmp_path / "full.json", names=(name,))
    row = content["rows"][0]
    assert 1 < row["updated"]["seconds"] / row["fixed"]["seconds"] < 10
