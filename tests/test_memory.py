"""Every way to bound memory leaves the update as it was, on all families, and does bound what autograd holds."""

from __future__ import annotations

import families
import pipelines
import pytest
import torch

import datekit as dk
from datekit import memory

PROMPTS, SEEDS, W = ["a red circle", "a green star on red"], [0, 1], 4.0
OPTIONS = {
    "graph kept": ({"keep_graph": True}, {}), "two graphs": ({"keep_graph": False}, {}), "one sample at a time": ({}, {"micro_batch": 1}),
    "one at a time, kept": ({"keep_graph": True}, {"micro_batch": 1}), "checkpointing": ({}, {"checkpointing": True}),
    "pictures one at a time": ({}, {"decode_batch": 1}), "pictures one at a time, kept": ({"keep_graph": True}, {"decode_batch": 1}),
    "checkpointing, kept": ({"keep_graph": True}, {"checkpointing": True}),
}  # fmt: skip


def taken(backbone, date=None, sampler=None, rho=0.5, reward=None):
    """One updated step under some options."""
    method = dk.DATE(reward or pipelines.Brightness(), rho=rho, **(date or {}))
    made = dk.Sampler(backbone, method, num_steps=6, guidance_scale=W, **(sampler or {}))
    return made.start(PROMPTS, seeds=SEEDS).step()


def plain_gradient(backbone):
    """grad_c h_t by one graph from the embedding to the reward, the whole batch at once."""
    sampler = dk.Sampler(backbone, num_steps=6, guidance_scale=W)
    state = sampler.init(PROMPTS, seeds=SEEDS)
    c = state.c.clone().requires_grad_()
    (grad,) = torch.autograd.grad(
        pipelines.Brightness()(backbone.decode(sampler.predict(state, c).x0bar), PROMPTS).sum(), c
    )
    return grad if state.cond.mask is None else grad * state.cond.mask[..., None]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_no_option_changes_the_update(family):
    backbone = families.backbone(family)
    expected = plain_gradient(backbone).flatten(1)
    for name, options in OPTIONS.items():
        grad = taken(backbone, *options).grad.flatten(1)
        assert (torch.nn.functional.cosine_similarity(grad, expected) >= 0.9999).all(), name
        assert ((grad - expected).norm(dim=1) <= 1e-4 * expected.norm(dim=1)).all(), name


@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize(
    "tuning", [{"channels_last": True}, {"compile": "eager"}, {"compile": "aot_eager"}], ids=str
)
def test_tuning_changes_no_update(family, tuning):
    """The layout of convolutions, and graphs that `torch.compile` captured, run by its backends that need no compiler."""
    expected = taken(families.backbone(family)).grad.flatten(1)
    backbone = families.fresh(family)
    assert backbone.tuned(**tuning) is backbone
    grad = taken(backbone).grad.flatten(1)
    assert ((grad - expected).norm(dim=1) <= 1e-4 * expected.norm(dim=1)).all()
    if "compile" in tuning:
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        torch._dynamo.reset()
    else:
        assert backbone.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("family", ["sd", "sdxl", "pixart-alpha", "sd3", "flux"])
def test_keeping_the_graph_changes_no_bit(family):
    backbone = families.backbone(family)
    kept, fresh = (taken(backbone, {"keep_graph": keep}) for keep in (True, False))
    for name in ("h", "x0bar", "grad", "grad_x0bar", "c", "x0bar_hat"):
        assert torch.equal(getattr(kept, name), getattr(fresh, name)), name


@pytest.mark.parametrize("family", ["sd", "flux"])
@pytest.mark.parametrize("keep", [True, False])
def test_rho_zero_stays_fixed_bit_for_bit(family, keep):
    backbone = families.backbone(family)
    fixed = dk.Sampler(backbone, num_steps=6, guidance_scale=W).start(PROMPTS, seeds=SEEDS).step()
    assert torch.equal(taken(backbone, {"keep_graph": keep}, rho=0.0).x0bar_hat, fixed.x0bar_hat)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_split_gradient_in_double_precision(float64_backbone, options):
    expected = plain_gradient(float64_backbone)
    grad = taken(float64_backbone, *options).grad
    assert ((grad - expected).norm() / expected.norm()).item() <= 1e-10


class Held:
    """Live bytes that autograd saved, and what they were when each backward began."""

    def __init__(self, monkeypatch):
        self.now, self.at_backward = 0, []
        backward = torch.autograd.grad
        monkeypatch.setattr(
            torch.autograd,
            "grad",
            lambda *a, **kw: (self.at_backward.append(self.now), backward(*a, **kw))[1],
        )

    def __call__(self, tensor):
        outer, size = self, tensor.numel() * tensor.element_size()

        class Saved:
            def __del__(self):
                outer.now -= size

        saved = Saved()
        saved.tensor, outer.now = tensor, outer.now + size
        return saved


def backwards(monkeypatch, backbone, **date):
    with monkeypatch.context() as patch:
        held = Held(patch)
        with torch.autograd.graph.saved_tensors_hooks(held, lambda saved: saved.tensor):
            taken(backbone, date)
    return held.at_backward


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_the_rewards_graph_is_gone_before_the_networks_backward(monkeypatch, family):
    backbone = families.backbone(family)
    reward, network = backwards(monkeypatch, backbone, keep_graph=False)
    together, alone = backwards(monkeypatch, backbone, keep_graph=True)
    assert min(reward, network) > 10_000
    assert alone == network  # nothing of decoder and reward is left, in either order
    assert together == reward + network
    weights = [p for m in backbone._modules() for p in m.parameters()]
    assert weights
    assert all(p.grad is None and not p.requires_grad for p in weights)


def test_free_memory_decides(monkeypatch):
    """Two graphs while nothing is known or there is no room; the kept one, a forward pass less, where there is."""
    backbone = dk.wrap(pipelines.stable_diffusion(seed=9))
    calls, predict, reward = [], backbone.predict, pipelines.Brightness()
    monkeypatch.setattr(backbone, "predict", lambda *args: (calls.append(1), predict(*args))[1])
    passes = lambda: (calls.clear(), taken(backbone, reward=reward), len(calls))[2]
    assert (
        passes() == 4
    )  # uncond, cond, cond with a graph, the moved cond; this measures both graphs
    sizes = memory.GraphSizes.of(backbone, torch.empty(2, 4, 16, 16), reward, False)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 * (sizes.network + sizes.reward))
    assert passes() == 3
    monkeypatch.setattr(memory, "free_bytes", lambda device: sizes.network)
    assert passes() == 4


def test_saved_bytes_counts_what_is_saved_once(monkeypatch):
    x, y = torch.ones(1000, requires_grad=True), torch.ones(1000)
    with memory.SavedBytes() as saved:
        z = (x * y) + (x * 2 * y)
        assert saved.now == 4000  # y, saved twice
        z.sum().backward()
    assert saved.now == 0
    assert saved.peak == 4000
    with memory.SavedBytes({y.untyped_storage().data_ptr()}) as known:
        _ = x * y
    assert known.peak == 0


def test_bad_settings(brightness):
    with pytest.raises(ValueError, match="keep_graph"):
        dk.DATE(brightness, keep_graph="sometimes")
