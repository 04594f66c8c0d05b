"""What holds on the CPU holds on a GPU, in half precision too.

DATEKIT_TEST_DEVICE=cpu runs the same lines where there is none.
"""

from __future__ import annotations

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # matrix products repeat their bits

import families
import pipelines
import pytest
import torch
from studies import architectures, fullsize
from test_families import PROMPTS, STEPS, begin, pipeline_latents
from torch.nn.attention import SDPBackend, sdpa_kernel

import datekit as dk
from datekit.tensors import norm

DEVICE = os.environ.get("DATEKIT_TEST_DEVICE", "cuda")
HALVES = [torch.float16, torch.bfloat16]
MISSING = DEVICE == "cuda" and not torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(MISSING, reason="needs a CUDA device")]


@pytest.fixture
def deterministic():
    """Kernels that add up in one order, where there are such."""
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.use_deterministic_algorithms(before, warn_only=warned)


def make(device, prompts, method=None, dtype=None, num_steps=20, **settings):
    if method is None:
        reward = dk.rewards.load("shapes-clip", device=device)
        method = dk.DATE(reward, rho=1.0, when=dk.every(5))
    backbone = dk.load("shapes", device=device, dtype=dtype)
    sampler = dk.Sampler(backbone, method, num_steps=num_steps, **settings)
    return sampler.start(prompts, seeds=[0, 1, 2])


def assert_near(xt, theirs):
    """The same latents to the pipeline's own rounding, which the steps add up."""
    assert (xt.dtype, xt.device) == (theirs.dtype, theirs.device)
    bound = 4 * torch.finfo(xt.dtype).eps * theirs.float().abs().max()
    assert (xt.float() - theirs.float()).abs().max() <= bound


def test_the_pictures_are_those_of_the_cpu(prompts):
    fixed = [make(device, prompts, dk.Fixed()).finish().pixels.cpu() for device in (DEVICE, "cpu")]
    assert (fixed[0] - fixed[1]).abs().max() < 0.02
    looks = [make(device, prompts).peek().direction.cpu() for device in (DEVICE, "cpu")]
    assert (torch.cosine_similarity(*[look.flatten(1) for look in looks]) > 0.999).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("w", [1.5, 3.0])
@pytest.mark.parametrize("name", ["sd", "sd-v", "sdxl", "sd3", "flux"])
def test_fixed_equals_the_pipeline_in_half_precision(name, w, dtype):
    backbone = families.fresh(name, dtype, DEVICE)
    assert (backbone.device.type, backbone.dtype) == (torch.device(DEVICE).type, dtype)
    theirs = pipeline_latents(backbone, "own", PROMPTS, [0, 1, 2], w)
    assert_near(begin(backbone, 3, w).finish().state.xt, theirs)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_shipped_model_equals_its_pipeline_in_half_precision(prompts, dtype):
    run = make(DEVICE, prompts, dk.Fixed(), dtype, num_steps=STEPS).finish()
    pipe, w = run.sampler.backbone.pipe, run.sampler.guidance_scale
    pipe.set_progress_bar_config(disable=True)
    told = {"num_inference_steps": STEPS, "guidance_scale": w, "output_type": "latent"}
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (0, 1, 2)]
    assert_near(run.state.xt, pipe(list(prompts), generator=generators, **told).images)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_date_moves_c_by_rho_and_stays_finite(prompts, dtype):
    """A reward in float32 on a network in any precision; c in float32, all on the device."""
    reward = dk.rewards.load("shapes-clip", device=DEVICE)
    run = make(DEVICE, prompts, dk.DATE(reward, rho=0.7), dtype, num_steps=4)
    for info in run:
        xt, c = run.state.xt, run.state.c
        for x in (info.h, info.grad, info.x0bar, info.x0bar_hat, xt, c):
            assert x.isfinite().all()
            assert x.device.type == torch.device(DEVICE).type
        distance = norm(c - run.state.c_org)
        assert torch.allclose(distance, torch.full_like(distance, 0.7), rtol=1e-3)
    assert run.state.c.dtype == torch.float32
    assert run.pixels.isfinite().all()


def test_saved_on_one_device_and_loaded_on_another(prompts, tmp_path):
    """Every number of the past comes along, and the rest of the run is nearly the same there."""
    run = make(DEVICE, prompts)
    run.step(5)
    path = run.save(tmp_path / "run.pt")
    there = dk.Run.load(path, make("cpu", prompts).sampler)
    pairs = [(there.state.xt, run.state.xt), (there.state.c, run.state.c)]
    pairs += [(there.history[0].grad, run.history[0].grad)]
    for loaded, saved in pairs:
        assert loaded.device.type == "cpu"
        assert torch.equal(loaded, saved.cpu())
    again = dk.Run.load(path, run.sampler)
    assert again.state.xt.device == run.state.xt.device
    assert torch.equal(again.state.xt, run.state.xt)
    assert (there.finish().pixels - run.finish().pixels.cpu()).abs().mean() < 0.02


@pytest.mark.parametrize("method", ["fixed", "date", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rewinding_repeats_the_bits(prompts, deterministic, method, dtype):
    """Within one process: a rewound run, and a fork, come to the same end, to the last bit."""
    chosen = dk.Fixed()
    if method == "date":
        chosen = dk.DATE(pipelines.Brightness(), rho=0.5, when=dk.every(2))
    eta = 1.0 if method == "stochastic" else 0.0
    run = make(DEVICE, prompts, chosen, dtype, num_steps=6, solver="ddim", eta=eta)
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
    """Random weights, half precision, the published size: the price of one step to ten."""
    row = fullsize.bench(tmp_path / "full.json", names=(name,))["rows"][0]
    assert 1 < row["updated"]["seconds"] / row["fixed"]["seconds"] < 10
