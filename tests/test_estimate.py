"""The memory that is predicted is the memory that is taken: as PyTorch's own profiler counts it."""

from __future__ import annotations

import gc

import families
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

import datekit as dk
from datekit import advice as advising
from datekit.advice import advice
from datekit.estimates import estimate, flops, weight_bytes
from studies import architectures
from datekit.memory import Alive, fused_attention

PROMPT, W = "a red circle left of a blue square", 4.0


def measured(sampler, batch: int) -> int:
    """The highest number of bytes that PyTorch's CPU allocator had given out during a step, above what there was before."""
    state = sampler.init([PROMPT] * batch, seeds=range(batch))
    sampler.step(state)
    gc.collect()  # what an earlier test left, freed in between, would count as room
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            sampler.step(state)
    finally:
        gc.enable()
    events = sorted(
        (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    )
    now = peak = 0
    for event in events:
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("date", "settings"),
    [
        ({"keep_graph": True}, {}),
        ({"keep_graph": False}, {}),
        ({"keep_graph": False}, {"micro_batch": 1}),
        ({"keep_graph": True}, {"decode_batch": 1}),
        ({"keep_graph": False}, {"micro_batch": 1, "checkpointing": True}),
    ],
)
def test_within_fifteen_percent_of_what_is_measured(random_backbone, brightness, date, settings):
    method = dk.DATE(brightness, **date)
    found = estimate(random_backbone, method, 4, guidance_scale=W, **settings)
    taken = max(
        measured(dk.Sampler(random_backbone, m, num_steps=6, guidance_scale=W, **settings), 4)
        for m in (method, dk.Fixed())
    )
    assert found.updated == pytest.approx(taken, rel=0.15)
    assert found.keep_graph is date["keep_graph"]


@pytest.mark.parametrize("settings", [{}, {"micro_batch": 1}])
def test_universal_guidance_is_estimated_as_what_it_is(random_backbone, brightness, settings):
    """Its gradient goes through both branches, and two graphs never wait together."""
    method = dk.UniversalGuidance(brightness, 3.0)
    found = estimate(random_backbone, method, 4, guidance_scale=W, **settings)
    assert found.updated == pytest.approx(
        measured(dk.Sampler(random_backbone, method, num_steps=6, guidance_scale=W, **settings), 4),
        rel=0.15,
    )


def test_the_decoder_that_sdxl_copies_is_counted():
    """In half precision it decodes with a copy in float32: four bytes a parameter more."""
    backbone = dk.wrap(families.sdxl().to(torch.float16))
    assert backbone.vae.dtype == torch.float32
    with_copy, copied = (
        weight_bytes(backbone, None),
        sum(p.numel() for p in backbone.vae.parameters()),
    )
    backbone.vae = backbone.pipe.vae
    assert with_copy - weight_bytes(backbone, None) == 4 * copied


@pytest.mark.parametrize(
    "made",
    [
        lambda h: dk.DATE(h, keep_graph=True),
        lambda h: dk.DATE(h, keep_graph=False),
        lambda h: dk.UniversalGuidance(h, 3.0),
        lambda h: dk.DATE(h, keep_graph=False) + dk.UniversalGuidance(h, 3.0),
    ],
)
def test_operations_are_those_of_a_step(random_backbone, brightness, made):
    """Counted on tensors without numbers, and on a step that is taken."""
    acting = made(brightness)
    found = estimate(random_backbone, acting, 2, guidance_scale=W)
    for method, count in ((dk.Fixed(), found.plain_operations), (acting, found.updated_operations)):
        sampler = dk.Sampler(random_backbone, method, num_steps=6, guidance_scale=W)
        state = sampler.init([PROMPT] * 2, seeds=[0, 1])
        assert count == flops(lambda sampler=sampler, state=state: sampler.step(state))


def test_published_operations():
    """Of SD v1.5 at 512 px, in multiply-adds: the decoder's 1.24 T; the network's 0.34 T of convolutions and linear layers, as
    published, and its attention, 4 L^2 d a block (self) and 4 L 77 d (cross) in multiply-adds of both products."""
    backbone = architectures.build("SD v1.5", device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        decoder = flops(lambda: backbone.decode(torch.zeros(1, 4, 64, 64, device="meta"))) / 2
    network = estimate(backbone, guidance_scale=1.0).plain_operations / 2
    assert decoder == pytest.approx(1.24e12, rel=0.02)
    blocks = ((5, 64**2, 320), (5, 32**2, 640), (5, 16**2, 1280), (1, 8**2, 1280))
    attention = sum(count * 2 * d * length * (length + 77) for count, length, d in blocks)
    assert network - attention == pytest.approx(0.34e12, rel=0.02)


@pytest.mark.parametrize("mask", [False, True])
def test_attention_without_numbers_is_the_fused_one(mask):
    """On the meta device no (L, L) matrix is held, forward or for backward; operations are those of both products."""
    length, width = 256, 8
    with FakeTensorMode(), fused_attention(torch.device("meta")), Alive() as alive:
        q, k, v = (
            torch.empty(1, 2, length, width, device="meta", requires_grad=True) for _ in range(3)
        )
        bias = torch.zeros(1, 1, 1, length, device="meta") if mask else None
        before = alive.now
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        held = alive.peak - before
        grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert out.shape == q.shape
    assert [g.shape for g in grads] == [q.shape] * 3
    matrix = 4 * 2 * length**2
    assert held < matrix / 4 + (matrix if mask else 0)
    usual = torch.nn.functional.scaled_dot_product_attention
    assert usual(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).sum() == 4


def test_it_takes_no_memory_and_orders_the_options(brightness):
    """On the meta device, where no tensor has any, at the published image size; the network is narrower, to be quick."""
    backbone = architectures.build("SD v1.5", device="meta", block_out_channels=(32, 32, 64, 64))
    kept, fresh, single = (
        estimate(backbone, dk.DATE(brightness, keep_graph=keep), 2, micro_batch=part)
        for keep, part in ((True, None), (False, None), (False, 1))
    )
    assert kept.updated > fresh.updated > single.updated > single.plain
    assert kept.weights == 4 * sum(
        p.numel() for module in backbone._modules() for p in module.parameters()
    )


class Full:
    """A device that has room for `rows` pictures at a time, and says so as a GPU does."""

    def __init__(self, reward, rows: int) -> None:
        self.reward, self.rows, self.seen = reward, rows, []

    def __call__(self, images, prompts):
        if type(images) is torch.Tensor:  # not when an estimate walks through it
            self.seen.append(len(images))
        if type(images) is torch.Tensor and len(images) > self.rows:
            raise torch.OutOfMemoryError("no room")
        return self.reward(images, prompts)


ALL_SET = {"micro_batch": 2, "decode_batch": 2, "checkpointing": False}


def test_out_of_memory_names_the_options(random_backbone, brightness):
    """Where nothing is left to be chosen: in the middle of an update; the run stays paused where it was."""
    full = Full(brightness, 1)
    run = dk.Sampler(random_backbone, dk.DATE(full), num_steps=3, **ALL_SET).start(
        ["a", "b"], seeds=[0, 1]
    )
    with pytest.raises(
        torch.OutOfMemoryError,
        match=r"batch of 2 does not fit.*micro_batch=1.*checkpointing=True.*GiB",
    ) as caught:
        run.step()
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert run.state.i == 0
    full.rows = 2
    assert run.step().updated


@pytest.mark.parametrize(
    "method",
    [lambda h: dk.DATE(h, rho=0.5), lambda h: dk.UniversalGuidance(h, 3.0)],
    ids=["DATE", "guidance"],
)
def test_what_is_not_set_is_chosen_by_what_fits(random_backbone, brightness, method):
    """Pictures are halved until they fit, the update stays as it was, and the next step knows."""
    expected = (
        dk.Sampler(random_backbone, method(brightness), num_steps=3)
        .start(["a", "b", "c"], seeds=[0, 1, 2])
        .step(2)
    )
    full = Full(brightness, 1)
    run = dk.Sampler(random_backbone, method(full), num_steps=3).start(
        ["a", "b", "c"], seeds=[0, 1, 2]
    )
    run.step()
    assert full.seen == [3, 2, 1, 1, 1]
    found = run.step()
    assert full.seen[5:] == [1, 1, 1]
    assert (
        run.sampler.limits(run.state).decode_batch,
        run.sampler.limits(run.state).micro_batch,
    ) == (1, None)
    torch.testing.assert_close(found.c, expected.c, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.x0bar_hat, expected.x0bar_hat, rtol=0, atol=1e-4)


def test_a_network_that_does_not_fit_takes_less_of_the_batch(
    monkeypatch, random_backbone, brightness
):
    """With everything else lowered in vain, samples are halved; at the end the error tells what would be needed."""
    predict, room = random_backbone.predict, [1]

    def crowded(xt, t, cond):
        if cond.sequence.requires_grad and len(xt) > room[0]:
            raise torch.OutOfMemoryError("no room")
        return predict(xt, t, cond)

    monkeypatch.setattr(random_backbone, "predict", crowded)
    run = dk.Sampler(random_backbone, dk.DATE(brightness), num_steps=3).start(
        ["a", "b"], seeds=[0, 1]
    )
    assert run.step().updated
    limits = run.sampler.limits(run.state)
    assert (limits.decode_batch, limits.micro_batch, limits.checkpointing) == (1, 1, False)
    room[0] = 0
    with pytest.raises(torch.OutOfMemoryError, match="batch of 2 does not fit"):
        run.step()
    assert limits.checkpointing
    room[0] = 1
    assert run.step().updated


def test_on_a_cpu_the_choice_is_made_beforehand(monkeypatch, random_backbone, brightness):
    """There, running out of memory ends the process: the step is estimated first, and only where it might not fit."""
    method = dk.DATE(brightness, keep_graph=False)
    start = lambda **settings: dk.Sampler(
        random_backbone, method, num_steps=3, guidance_scale=W, **settings
    ).start(["a"] * 4, seeds=range(4))
    limits = lambda run: (
        lambda found: (found.decode_batch, found.micro_batch, found.checkpointing)
    )(run.sampler.limits(run.state))
    with monkeypatch.context() as patch:
        patch.setattr(advising, "Walk", None)  # not asked for
        assert limits(start()) == (None, None, False)
    room = estimate(random_backbone, method, 4, guidance_scale=W, decode_batch=1).updated
    monkeypatch.setattr(advising, "free_bytes", lambda device: room)
    decode, micro, checkpointing = limits(start())
    assert (decode or 4) <= 2
    assert (
        estimate(
            random_backbone,
            method,
            4,
            guidance_scale=W,
            decode_batch=decode,
            micro_batch=micro,
            checkpointing=checkpointing,
        ).updated
        <= room
    )
    monkeypatch.setattr(advising, "free_bytes", lambda device: 1)
    assert limits(start()) == (1, 1, True)
    assert limits(start(micro_batch=3, checkpointing=False)) == (1, 3, False)  # what is set stays


def test_the_advice_is_in_the_order_of_what_it_brings(random_backbone, brightness):
    told = advice(random_backbone, dk.DATE(brightness), 2, height=512, width=512)
    needs = [float(part.split()[-2]) for part in told.split("; ")]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] > 2 * needs[-1]


def test_a_reward_that_needs_numbers_is_an_error(random_backbone):
    choosy = lambda images, prompts: (
        images.mean((1, 2, 3)) if images.mean().item() > 0 else -images.mean((1, 2, 3))
    )
    with pytest.raises(ValueError, match="without numbers"):
        estimate(random_backbone, dk.DATE(choosy), 2)


def test_fixed_needs_less(random_backbone, brightness):
    fixed, date = (estimate(random_backbone, method, 2) for method in (None, dk.DATE(brightness)))
    assert fixed.updated is None
    assert fixed.plain == date.plain
    assert fixed.step < date.step
    assert str(date).count("GiB") == 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("batch", [1, 4])
def test_within_fifteen_percent_on_a_gpu(batch, brightness):
    backbone = architectures.build("SD v1.5", device="cuda", dtype=torch.bfloat16)
    for keep in (True, False):
        method = dk.DATE(brightness, keep_graph=keep)
        sampler = dk.Sampler(backbone, method, num_steps=20)
        state = sampler.init(["x"] * batch, seeds=range(batch))
        found = estimate(backbone, method, batch)
        sampler.step(state)
        torch.cuda.reset_peak_memory_stats()
        sampler.step(state)
        assert found.weights + found.step == pytest.approx(
            torch.cuda.max_memory_allocated(), rel=0.15
        )
