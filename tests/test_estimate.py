"""The memory that is predicted is the memory that is taken, as PyTorch's own profiler counts it."""

from __future__ import annotations

import gc

import families
import pipelines
import pytest
import torch
from studies import architectures
from studies.cheap_decoders import Resized
from studies.cost import flops
from studies.fullsize import FusedAttention
from test_architectures import SMALLER
from torch.profiler import ProfilerActivity, profile

import datekit as dk
from datekit.estimates import estimate, peak

PROMPT, W = "a red circle left of a blue square", 4.0
UNIVERSAL = dk.UniversalGuidance(pipelines.Brightness(), 3.0)
DATE = dk.DATE(pipelines.Brightness())
BOTH = dk.DATE(pipelines.Brightness(), decoder=Resized()) + UNIVERSAL
FRESH = {"keep_graph": False, "micro_batch": 2}


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
    now = most = 0
    for event in memory:
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(("method", "settings"), [
    (dk.Fixed(), {}), (DATE, {}), (DATE, {"decode_batch": 1}), (DATE, FRESH),
    (DATE, FRESH | {"checkpointing": True}), (UNIVERSAL, {"micro_batch": 2}), (BOTH, {}),
])  # fmt: skip
def test_memory_is_near_what_is_measured(random_backbone, method, settings):
    """Within 15 %. A micro-batch of 1 would show the workspace of a CPU's convolution, which takes
    another kernel for one sample and which is no tensor.
    """
    expected = estimate(random_backbone, method, 4, guidance_scale=W, **settings)
    sampler = dk.Sampler(random_backbone, method, num_steps=6, guidance_scale=W, **settings)
    assert expected.updated == pytest.approx(measure(sampler, 4), rel=0.15)


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm++", "euler", "unipc"])
def test_a_step_without_numbers_does_the_work_of_a_real_one(random_backbone, solver):
    for method in (dk.Fixed(), DATE)[: 2 if solver == "ddim" else 1]:
        sampler = dk.Sampler(random_backbone, method, guidance_scale=W, solver=solver)
        state = sampler.init([PROMPT] * 2, seeds=[0, 1])
        blank = flops(lambda s=sampler, at=state: peak(s.step, at))
        assert blank == flops(lambda s=sampler, at=state: s.step(at))


def test_published_operations():
    """Of SD v1.5 at 512 px, in multiply-adds: the decoder's 1.24 T; the network's 0.34 T without
    attention, which takes 4 L^2 d a block (self) and 4 L 77 d (cross).
    """
    backbone = architectures.build("SD v1.5", device="meta")
    sampler = dk.Sampler(backbone, guidance_scale=1.0)
    state = sampler.init(PROMPT, seeds=[0])
    with FusedAttention():
        decoder = flops(lambda: peak(lambda blank: sampler.decode(blank.xt), state)) / 2
        network = flops(lambda: peak(sampler.step, state)) / 2
    assert decoder == pytest.approx(1.24e12, rel=0.02)
    blocks = ((5, 64**2, 320), (5, 32**2, 640), (5, 16**2, 1280), (1, 8**2, 1280))
    attention = sum(count * 2 * d * length * (length + 77) for count, length, d in blocks)
    assert network - attention == pytest.approx(0.34e12, rel=0.02)


def test_a_published_size_takes_no_memory_here_and_the_settings_are_ordered():
    """On the meta device; the network is narrower. Fused attention holds no (L, L) matrix."""
    backbone = architectures.build("SD v1.5", device="meta", **SMALLER["SD v1.5"])
    settings = ({}, {"keep_graph": False}, {"keep_graph": False, "micro_batch": 1})
    with FusedAttention():
        kept, fresh, single = (estimate(backbone, DATE, 2, **each) for each in settings)
    assert kept.updated > fresh.updated > single.updated > single.plain
    parameters = [p for module in backbone._modules() for p in module.parameters()]
    assert kept.weights == pytest.approx(4 * sum(p.numel() for p in parameters), rel=1e-4)
    assert single.plain < 4 * 8 * 4096**2  # (L, L) of all heads


def test_the_decoder_that_sdxl_copies_is_counted():
    """In half precision it decodes with a copy in float32: four bytes a parameter more."""
    backbone = dk.wrap(families.sdxl().to(torch.float16))
    with_copy, backbone.exact_vae = estimate(backbone).weights, None
    copied = 4 * sum(p.numel() for p in backbone.vae.parameters())
    assert with_copy == estimate(backbone).weights + copied


def test_the_pictures_the_total_and_the_step_that_updates(random_backbone):
    whole, slices = (estimate(random_backbone, None, 8, decode_batch=n) for n in (None, 1))
    assert slices.decoding < whole.decoding / 2
    assert whole.updated == whole.plain
    assert whole.total == whole.weights + max(whole.plain, whole.decoding)
    late = dk.DATE(pipelines.Brightness(), when=dk.late())
    other = dk.UniversalGuidance(pipelines.Brightness(), when=dk.early())  # never with the first
    methods = (DATE, late, other, late + other)
    date, last, first, both = (estimate(random_backbone, m).updated for m in methods)
    assert (last, both) == (date, max(last, first))


def test_what_cannot_be_estimated(random_backbone):
    def needs_numbers(images, prompts):
        means = images.mean((1, 2, 3))
        return means if means.sum().item() > 0 else -means

    with pytest.raises(ValueError, match=r"needs_numbers.* needs numbers: "):
        estimate(random_backbone, dk.DATE(needs_numbers), 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", [{}, {"keep_graph": False}])
def test_within_fifteen_percent_on_a_gpu(settings):
    backbone = architectures.build("SD v1.5", device="cuda", dtype=torch.bfloat16)
    sampler = dk.Sampler(backbone, DATE, num_steps=20, **settings)
    state = sampler.init(["x"] * 4, seeds=range(4))
    expected = estimate(backbone, DATE, 4, **settings)
    sampler.step(state)
    torch.cuda.reset_peak_memory_stats()
    sampler.step(state)
    step = expected.weights + expected.updated
    assert step == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
