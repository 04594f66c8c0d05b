"""SoftREPA's placement against networks written out by hand; its files; what it leaves behind."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import families
import pipelines
import pytest
import torch
from pipelines import off
from soft import plain_sd3, plain_unet, soft

import datekit as dk
from datekit.methods import soft_tokens
from datekit.methods.soft_tokens import SoftTokens
from datekit.methods.softrepa import place

PROMPTS = ["a red circle left of a blue square", "a green star"]
W = 4.0
RESULTS = Path(__file__).parent.parent / "notebooks" / "studies" / "results"
SHIPPED = {"shapes": "softrepa-shapes.json", "shapes-flow": "softrepa-flow.json"}
LAYERS = {
    "sd": ("down", "up"),
    "sd-v": ("down", "mid", "up"),
    "sdxl": ("down", "mid"),
    "sd3": (0, 1),
}


def begin(backbone, method=None, w=W, steps=3, **kwargs):
    sampler = dk.Sampler(backbone, method, num_steps=steps, guidance_scale=w, **kwargs)
    return sampler.start(PROMPTS, seeds=[0, 1])


def wrap(name, dtype=torch.float32):
    settings = {"text_length": 20} if name == "sd3" else {}
    return dk.wrap(families.FAMILIES[name]().to(dtype), **settings)


@pytest.mark.parametrize(("layers", "time", "kind"), [
    (("down",), False, "epsilon"), (("down", "mid", "up"), True, "v_prediction"),
])  # fmt: skip
@pytest.mark.parametrize("w", [W, 1.0])
def test_in_a_unet_equals_the_plain_insertion(layers, time, kind, w):
    pipe, tokens = pipelines.stable_diffusion(kind), soft(layers, 32, time=time)
    run = begin(dk.wrap(pipe), dk.SoftREPA(tokens), w)
    state, x = run.state, run.state.xt
    pipe.scheduler.set_timesteps(3)
    texts = state.c_org if w == 1 else torch.cat([state.uncond.sequence, state.c_org])
    for t in pipe.scheduler.timesteps:
        unet, both = plain_unet(pipe, tokens, t), x if w == 1 else torch.cat([x, x])
        with torch.no_grad():
            out = unet(both, t, encoder_hidden_states=texts).sample
        out = out if w == 1 else out[:2] + w * (out[2:] - out[:2])
        x = pipe.scheduler.step(out, t, x).prev_sample
    assert off(run.finish().state.xt, x) <= 1e-5
    assert off(x, run.fork(dk.Fixed(), at=0).finish().state.xt) > 0.005
    assert all(torch.equal(info.c, state.c_org) and not info.updated for info in run.history)


def test_in_sdxl_equals_the_plain_insertion():
    pipe, tokens = families.sdxl(), soft(("down", "up"), 64)
    run = begin(dk.wrap(pipe), dk.SoftREPA(tokens))
    state, plain = run.state, copy.copy(pipe)
    plain.unet = plain_unet(pipe, tokens, state.t)
    expected = dk.Sampler(dk.wrap(plain), num_steps=3, guidance_scale=W).predict(state)
    assert off(run.step().x0bar_hat, expected.x0bar) <= 1e-5
    assert off(expected.x0bar, run.fork(dk.Fixed(), at=0).step().x0bar_hat) > 0.005


@pytest.mark.parametrize(("layers", "time"), [((0, 1), True), ((1,), False)])
def test_in_sd3_equals_the_blocks_by_hand(layers, time):
    backbone, tokens = families.backbone("sd3"), soft(layers, 32, time=time)
    run = begin(backbone, dk.SoftREPA(tokens))
    plain = run.sampler.replace(method=dk.Fixed())
    assert run.state.t == 1000  # where a flow starts
    for _ in range(2):
        state, outs = run.state, []
        for part in (state.uncond, state.cond):
            given_ = (state.xt, state.t, part.sequence, part.pooled)
            outs.append(plain_sd3(backbone.network, tokens, *given_).detach())
        guided = outs[0] + W * (outs[1] - outs[0])
        expected = state.xt - run.sampler.solver.level(state.i)[1] * guided
        assert off(run.step().x0bar_hat, expected) <= 1e-5
        assert off(expected, plain.predict(state).x0bar) > 5e-4


@pytest.mark.parametrize("name", LAYERS)
def test_no_tokens_are_fixed_to_the_bit(name):
    tokens = soft(LAYERS[name], 64 if name == "sdxl" else 32, m=0)
    run = begin(families.backbone(name), dk.SoftREPA(tokens), steps=2).finish()
    assert torch.equal(run.state.xt, run.fork(dk.Fixed(), at=0).finish().state.xt)


def test_tokens_get_gradient_through_checkpointed_blocks():
    """d out / d tokens with and without recomputation, against central differences."""
    backbone, tokens = wrap("sd3", torch.float64), soft((0, 1), 32)
    state, leaves = begin(backbone).state, (tokens.tokens.double(), tokens.time.double())
    tokens = tokens.replace(tokens=leaves[0].requires_grad_(), time=leaves[1].requires_grad_())

    def value(soft_):
        with place(backbone, soft_, 515.0):
            return backbone.predict(state.xt, 515.0, state.cond).square().sum()

    grads = []
    for on in (False, True):
        with backbone.checkpointing(on), place(backbone, tokens, 515.0):
            total = backbone.predict(state.xt, 515.0, state.cond).square().sum()
            grads.append(torch.autograd.grad(total, leaves))
    torch.testing.assert_close(*grads)
    touched = grads[0][1].flatten(1).norm(dim=1).nonzero().flatten()
    assert touched.tolist() == [51]  # the bin of t = 515, and no other
    way = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        up, down = (value(tokens.replace(tokens=leaves[0] + s * 1e-5 * way)) for s in (1, -1))
    torch.testing.assert_close((grads[0][0] * way).sum(), (up - down) / 2e-5, rtol=1e-6, atol=1e-9)


PUBLISHED = {  # shapes of the authors' files: (tokens, time index), and what they mean
    "sd3": ((5, 4, 1536), (100, 7680), (0, 1, 2, 3, 4)),
    "sd1.5": ((4, 768), (100, 768), ("down",)),
    "sdxl": ((4, 2048), None, ("down", "mid")),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_reads_the_authors_files(name, tmp_path):
    """A tensor, a parameter, or a whole table, in half precision."""
    shape, index, layers = PUBLISHED[name]
    tokens = torch.randn(shape).half()
    torch.save(torch.nn.Parameter(tokens) if name == "sd3" else tokens, tmp_path / "dc_tokens.pth")
    assert soft_tokens.load(tmp_path / "dc_tokens.pth").time is None
    if index:
        table = torch.nn.Embedding(*index)
        torch.save(table if name == "sd3" else table.state_dict(), tmp_path / "dc_t_tokens.pth")
    loaded = soft_tokens.load(tmp_path)
    assert loaded.layers == layers
    assert torch.equal(loaded.tokens, tokens.float().reshape(-1, *shape[-2:]))
    assert (loaded.time is None) == (index is None)
    if index:
        for k, part in enumerate(table.weight.detach().chunk(len(loaded.tokens), dim=-1)):
            assert torch.equal(loaded.time[:, k], part)
            assert torch.equal(loaded.at(730.0)[k], loaded.tokens[k] + part[73])
    saved = soft_tokens.load(loaded.save(tmp_path / "deep" / "mine.safetensors"))
    assert (saved.digest, saved.layers) == (loaded.digest, layers)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize(("content", "error", "says"), [
    ({"a": Evil()}, ValueError, "Weights only load failed"),
    (torch.zeros(5, 4, 8), RuntimeError, "unflatten"),  # of the time index
    (torch.full((4, 8), torch.nan), ValueError, "are finite numbers"),
    ([torch.zeros(4, 8)], ValueError, r"dc_tokens\.pth holds a list where one tensor was expected"),
])  # fmt: skip
def test_files_that_are_none(tmp_path, content, error, says):
    torch.save(content, tmp_path / "dc_tokens.pth")
    torch.save(torch.zeros(100, 8), tmp_path / "dc_t_tokens.pth")
    with pytest.raises(error, match=says):
        soft_tokens.load(tmp_path)
    for name in ("gone.pth", "gone.safetensors"):
        with pytest.raises(FileNotFoundError, match="gone"):
            soft_tokens.load(tmp_path / name)


@pytest.mark.parametrize(("name", "tokens", "says"), [
    ("sd", soft((0,), 32), r"does not fit sd, .* of \('down'"),
    ("sd", soft(("dwon",), 32), r"layers=\('dwon',\).* does not fit sd"),
    ("sd", soft(("down",), 768), r"of width \[768, 768\] does not fit sd, which takes width 32 "),
    ("sd3", soft((0, 1, 2), 32), r"does not fit sd3, .* of \(0, 1\)"),
    ("flux-schnell", soft((0,), 32), "flux-schnell is neither"),
])  # fmt: skip
def test_tokens_of_another_model(name, tokens, says):
    with pytest.raises(ValueError, match=says):
        dk.Sampler(families.backbone(name), dk.SoftREPA(tokens))


@pytest.mark.parametrize("shapes", [[(2, 8)], [(2, 2, 8)], [(1, 2, 8), (1, 2, 8)]])
def test_bad_tokens(shapes):
    with pytest.raises(ValueError, match=r"finite numbers \(1, number, width\)"):
        SoftTokens(*map(torch.zeros, shapes))
    with pytest.raises(TypeError, match=r"dk\.softrepa\.load"):
        dk.SoftREPA(3)


def test_a_run_with_it_is_saved_and_goes_on(tmp_path, reward, shapes):
    """The run names the file of its tokens. Other tokens are refused, also in the same place."""
    tokens, date = soft(("down", "mid"), 96, scale=0.5), dk.DATE(reward, rho=0.3, when=dk.steps(1))
    run = begin(shapes, dk.SoftREPA(tokens, when=dk.every(2)) + date)
    run.step()
    path = run.save(tmp_path / "run.pt")
    with pytest.raises(ValueError, match="soft tokens that were never saved"):
        dk.Run.load(path)
    assert torch.equal(dk.Run.load(path, run.sampler).state.xt, run.state.xt)
    saved = soft_tokens.load(tokens.save(tmp_path / "tokens.safetensors"))
    run = run.fork(dk.SoftREPA(saved, when=dk.every(2)) + date)
    path = run.save(tmp_path / "run.pt")
    again = dk.Run.load(path)
    assert torch.equal(again.finish().state.xt, run.finish().state.xt)
    soft(("down", "mid"), 96, seed=1).save(saved.source)
    with pytest.raises(ValueError, match="are not those that were used then"):
        dk.Run.load(path)
    other = dk.SoftREPA(soft_tokens.load(saved.source), when=dk.every(2)) + date
    with pytest.raises(ValueError, match="made with another sampler"):
        dk.Run.load(path, run.sampler.replace(method=other))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_tokens_that_ship_are_those_that_were_measured(name):
    """The file of results that chose them has their digest."""
    tokens = soft_tokens.load(name)
    results = json.loads((RESULTS / SHIPPED[name]).read_text())
    assert tokens.digest == results["final"]["digest"]
    assert sum(x.numel() for x in tokens.numbers.values()) < 1_000_000
    assert SoftTokens.rebuild(tokens.describe()).digest == tokens.digest
    dk.Sampler(dk.load(name, device="cpu"), dk.SoftREPA(name), num_steps=2)
