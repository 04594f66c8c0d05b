"""The memory that is predicted is the memory that is taken, as PyTorch's own profiler counts it."""

from __future__ import annotations

import gc

import families
import pipelines
import pytest
import torch
from studies import architectures
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

import datekit as dk
from datekit.estimates import estimate, flops

PROMPT, W = "a red circle left of a blue square", 4.0
UNIVERSAL = dk.UniversalGuidance(pipelines.Brightness(), 3.0)
DATE = dk.DATE(pipelines.Brightness())
BOTH = dk.DATE(pipelines.Brightness(), decoder="resized") + UNIVERSAL


def measure(sampler, batch: int) -> int:
    """The most bytes that PyTorch had given out during a step, above those before."""
    state = sampler.init([PROMPT] * batch, seeds=range(batch))
    sampler.step(state)
    gc.collect()  # what an earlier test left, freed in between, would count as room
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            sampler.step(state)
    finally:
        gc.enable()
    events = profiler.profiler.kineto_results.events()
    memory = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    now = peak = 0
    for event in memory:
        now += event.nbytes()
        peak = max(peak, now)
    return peak


FRESH = {"keep_graph": False, "micro_batch": 2}


@pytest.mark.parametrize(("method", "settings"), [
    (dk.Fixed(), {}), (DATE, {}), (DATE, {"keep_graph": False}), (DATE, {"decode_batch": 1}),
    (DATE, FRESH), (DATE, FRESH | {"checkpointing": True}),
    (UNIVERSAL, {}), (UNIVERSAL, {"micro_batch": 2}), (BOTH, {}),
])  # fmt: skip
def test_memory_is_near_what_is_measured(random_backbone, method, settings):
    """Within 15 %. A micro-batch of 1 would show the workspace of a CPU's convolution, which takes
    another kernel for one sample and which is no tensor.
    """
    expected = estimate(random_backbone, method, 4, guidance_scale=W, **settings)
    sampler = dk.Sampler(random_backbone, method, num_steps=6, guidance_scale=W, **settings)
    assert expected.updated == pytest.approx(measure(sampler, 4), rel=0.15)


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm++", "euler", "unipc"])
def test_operations_are_those_of_a_step(random_backbone, solver):
    """Counted on tensors without numbers, and on a step that is taken."""
    expected = estimate(random_backbone, DATE, 2, guidance_scale=W, solver=solver)
    counts = (expected.plain_operations, expected.updated_operations)
    for method, count in zip((dk.Fixed(), DATE), counts, strict=True):
        sampler = dk.Sampler(random_backbone, method, guidance_scale=W, solver=solver)
        state = sampler.init([PROMPT] * 2, seeds=[0, 1])
        assert count == flops(lambda sampler=sampler, state=state: sampler.step(state))


def test_published_operations():
    """Of SD v1.5 at 512 px, in multiply-adds: the decoder's 1.24 T; the network's 0.34 T without
    attention, which takes 4 L^2 d a block (self) and 4 L 77 d (cross).
    """
    backbone = architectures.build("SD v1.5", device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        decoder = flops(lambda: backbone.decode(torch.zeros(1, 4, 64, 64, device="meta"))) / 2
    network = estimate(backbone, guidance_scale=1.0).plain_operations / 2
    assert decoder == pytest.approx(1.24e12, rel=0.02)
    blocks = ((5, 64**2, 320), (5, 32**2, 640), (5, 16**2, 1280), (1, 8**2, 1280))
    attention = sum(count * 2 * d * length * (length + 77) for count, length, d in blocks)
    assert network - attention == pytest.approx(0.34e12, rel=0.02)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_on_a_cpu_is_counted(masked):
    """Two products of matrices forward and five (or four) backward, of 2 L L D each; one head."""
    length, width = 64, 32
    q, k, v = (torch.randn(1, 1, length, width, requires_grad=True) for _ in range(3))
    mask = torch.zeros(length, length) if masked else None

    def attention():
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    one = 2 * length * length * width
    assert flops(lambda: attention().detach()) == 2 * one
    assert flops(lambda: attention().sum().backward()) in (7 * one, 6 * one)


def test_a_published_size_takes_no_memory_here_and_the_settings_are_ordered():
    """On the meta device, where attention holds no (L, L) matrix; the network is narrower."""
    backbone = architectures.build("SD v1.5", device="meta", block_out_channels=(32, 32, 64, 64))
    settings = ({}, {"keep_graph": False}, {"keep_graph": False, "micro_batch": 1})
    kept, fresh, single = (estimate(backbone, DATE, 2, **each) for each in settings)
    assert kept.updated > fresh.updated > single.updated > single.plain
    parameters = [p for module in backbone._modules() for p in module.parameters()]
    assert kept.weights == pytest.approx(4 * sum(p.numel() for p in parameters), rel=1e-4)
    narrow = architectures.build("SD v1.5", device="meta", block_out_channels=(32,) * 4)
    one_matrix = 4 * 8 * 4096**2  # (L, L) of all heads
    assert estimate(narrow, guidance_scale=1.0).plain < one_matrix


def test_the_decoder_that_sdxl_copies_is_counted():
    """In half precision it decodes with a copy in float32: four bytes a parameter more."""
    backbone = dk.wrap(families.sdxl().to(torch.float16))
    with_copy = estimate(backbone).weights
    copied = sum(p.numel() for p in backbone.vae.parameters())
    backbone.vae = backbone.pipe.vae
    assert with_copy - estimate(backbone).weights == 4 * copied


def test_the_pictures_the_total_and_the_step_that_updates(random_backbone):
    whole, slices = (estimate(random_backbone, None, 8, decode_batch=n) for n in (None, 1))
    assert slices.decoding < whole.decoding / 2
    assert whole.updated == whole.plain
    assert whole.total == whole.weights + max(whole.plain, whole.decoding)
    late = dk.DATE(pipelines.Brightness(), when=dk.late())
    assert estimate(random_backbone, late).updated == estimate(random_backbone, DATE).updated


def test_what_cannot_be_estimated(random_backbone):
    def needs_numbers(images, prompts):
        means = images.mean((1, 2, 3))
        return means if means.sum().item() > 0 else -means

    with pytest.raises(ValueError, match="needs_numbers cannot be computed without numbers"):
        estimate(random_backbone, dk.DATE(needs_numbers), 2)
    with pytest.raises(ValueError, match="batch must be a whole number from 1"):
        estimate(random_backbone, DATE, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("keep", [True, False])
def test_within_fifteen_percent_on_a_gpu(batch, keep):
    backbone = architectures.build("SD v1.5", device="cuda", dtype=torch.bfloat16)
    sampler = dk.Sampler(backbone, DATE, num_steps=20, keep_graph=keep)
    state = sampler.init(["x"] * batch, seeds=range(batch))
    expected = estimate(backbone, DATE, batch, keep_graph=keep)
    sampler.step(state)
    torch.cuda.reset_peak_memory_stats()
    sampler.step(state)
    step = expected.weights + max(expected.plain, expected.updated)
    assert step == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
