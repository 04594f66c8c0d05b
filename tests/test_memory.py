"""Every way to bound memory leaves the update as it was, and does bound what autograd holds."""

from __future__ import annotations

import contextlib
import gc

import families
import pipelines
import pytest
import torch

import datekit as dk
from datekit.memory import MemorySettings

PROMPTS, SEEDS, W = ["a red circle", "a green star on red"], [0, 1], 4.0
OPTIONS = [
    {"keep_graph": True}, {"keep_graph": False}, {"micro_batch": 1}, {"decode_batch": 1},
    {"checkpointing": True}, {"keep_graph": False, "micro_batch": 1},
    {"keep_graph": False, "checkpointing": True},
]  # fmt: skip


def begin(backbone, rho=0.5, num_steps=6, **settings):
    method = dk.DATE(pipelines.Brightness(), rho=rho)
    sampler = dk.Sampler(backbone, method, num_steps=num_steps, guidance_scale=W, **settings)
    return sampler.start(PROMPTS, seeds=SEEDS)


def plain_gradient(backbone):
    """grad_c h_t by one graph from the embedding to the reward, the whole batch at once."""
    sampler = dk.Sampler(backbone, num_steps=6, guidance_scale=W)
    state = sampler.init(PROMPTS, seeds=SEEDS)
    c = state.c.clone().requires_grad_()
    h = pipelines.Brightness()(backbone.decode(sampler.predict(state, c).x0bar), PROMPTS)
    (grad,) = torch.autograd.grad(h.sum(), c)
    return grad if state.cond.mask is None else grad * state.cond.mask[..., None]


def distance(grad, expected):
    return ((grad - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).max()


@pytest.mark.parametrize("family", families.KINDS)
def test_no_setting_changes_the_update(family):
    backbone = families.backbone(family)
    expected = plain_gradient(backbone)
    infos = [begin(backbone, **settings).step() for settings in OPTIONS]
    for info, settings in zip(infos, OPTIONS, strict=True):
        assert distance(info.grad, expected) <= 1e-4, settings
    kept, fresh = infos[:2]  # these two agree to the bit
    for name in ("h", "x0bar", "grad", "grad_x0bar", "c", "x0bar_hat"):
        assert torch.equal(getattr(kept, name), getattr(fresh, name)), name


@pytest.mark.parametrize("settings", OPTIONS, ids=str)
def test_the_split_gradient_in_double_precision(float64_backbone, settings):
    grad = begin(float64_backbone, **settings).step().grad
    assert distance(grad, plain_gradient(float64_backbone)) <= 1e-10


def test_tuning_changes_no_update():
    """By a backend of `torch.compile` that needs no compiler."""
    expected = begin(families.backbone("sd")).step().grad
    backbone = families.fresh("sd")
    assert backbone.tune(compile="aot_eager") is backbone
    assert distance(begin(backbone).step().grad, expected) <= 1e-4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()


class Saved:
    """A tensor that waits for backward, and is counted while it does."""

    def __init__(self, tensor, counts):
        self.tensor, self.counts = tensor.detach(), counts
        self.size = tensor.numel() * tensor.element_size()
        counts["now"] += self.size

    def __del__(self):
        self.counts["now"] -= self.size


def backwards(monkeypatch, backbone, **settings) -> list[int]:
    """The bytes that autograd held when each backward of a step began."""
    counts, at_backward, own = {"now": 0}, [], torch.autograd.grad

    def grad(*args, **kwargs):
        at_backward.append(counts["now"])
        return own(*args, **kwargs)

    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda x: Saved(x, counts), lambda saved: saved.tensor
    )
    with monkeypatch.context() as patch, hooks:
        patch.setattr(torch.autograd, "grad", grad)
        begin(backbone, **settings).step()
    assert counts["now"] == 0
    return at_backward


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_what_autograd_holds_in_the_two_backwards(monkeypatch, family):
    """The reward's graph is gone before the network's backward; each setting lowers what it may."""
    backbone = families.backbone(family)
    reward, network = backwards(monkeypatch, backbone, keep_graph=False)
    together, alone = backwards(monkeypatch, backbone, keep_graph=True)
    assert min(reward, network) > 10_000
    assert alone == network
    assert together == reward + network
    decoded, _ = backwards(monkeypatch, backbone, keep_graph=False, checkpointing=True)
    assert decoded < 0.9 * reward
    half = backwards(monkeypatch, backbone, keep_graph=False, micro_batch=1)
    assert len(half) == 4
    assert max(half) < 0.9 * max(reward, network)
    for module in backbone._modules():
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())
        assert not getattr(module, "is_gradient_checkpointing", False)


def test_checkpointing_is_off_again_after_an_interrupt():
    backbone = families.fresh("sd")
    with contextlib.suppress(KeyboardInterrupt), backbone.checkpointing():
        assert backbone.network.is_gradient_checkpointing
        raise KeyboardInterrupt
    assert not backbone.network.is_gradient_checkpointing
    assert not backbone.vae.is_gradient_checkpointing


@pytest.mark.parametrize("part", ["predict", "decode"])
def test_memory_that_is_used_up_names_the_four_settings(monkeypatch, random_backbone, part):
    """Wherever it happens; the run stays paused where it was. Other errors are themselves."""
    settings = "decode_batch.*keep_graph=False.*micro_batch.*checkpointing=True"
    run = begin(random_backbone)
    for error, says in (
        (torch.OutOfMemoryError("no room"), settings),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), settings),
        (RuntimeError("shapes do not fit"), "^shapes do not fit$"),
    ):

        def fail(*args, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(random_backbone, part, fail)
            for ask in (run.step, run.peek):
                with pytest.raises(RuntimeError, match=says) as caught:
                    ask()
                assert isinstance(caught.value, torch.OutOfMemoryError) == (says == settings)
    assert run.state.i == 0
    assert run.step().updated
    assert run.sampler.memory == MemorySettings()  # nobody changed them


def test_pictures_and_rules_for_rho_are_decoded_in_slices(monkeypatch, random_backbone):
    sizes, decode = [], random_backbone.decode

    def note(latents):
        sizes.append(len(latents))
        return decode(latents)

    rule = dk.methods.rho_rules.Taylor(0.5)
    whole, slices = (begin(random_backbone, rule, 3, decode_batch=size) for size in (None, 1))
    expected, pixels = whole.step(), whole.pixels
    monkeypatch.setattr(random_backbone, "decode", note)
    torch.testing.assert_close(slices.step().c, expected.c)
    torch.testing.assert_close(slices.pixels, pixels)
    assert set(sizes) == {1}


@pytest.mark.parametrize("patched", [False, True])
def test_a_failed_step_keeps_nothing(random_backbone, patched):
    """The storage of what the reward saw is gone, with the graph that led to it."""
    seen = []

    def broken(images, prompts):
        seen.append(images.untyped_storage()._weak_ref())
        return images.mean((1, 2, 3)) * torch.nan

    date = dk.DATE(broken)
    method = dk.EBCA(0.1, 0.1) + date if patched else date
    run = dk.Sampler(random_backbone, method, num_steps=2).start("a", seeds=[0])
    for _ in range(3):
        with pytest.raises(dk.errors.NonFiniteError):
            run.step()
    gc.collect()
    assert len(seen) == 3
    assert all(torch.UntypedStorage._expired(one) for one in seen)
