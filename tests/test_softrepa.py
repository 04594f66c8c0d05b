"""SoftREPA's placement against networks written out block by block; its files; what it leaves behind."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import families
import pipelines
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from soft import plain_sd3, plain_unet, soft

import datekit as dk
from datekit.methods import soft_tokens
from datekit.evaluation.options import check_read, method_from
from datekit.methods.softrepa import placed
from datekit.methods.soft_tokens import SoftTokens, time_bin

PROMPTS = ["a red circle left of a blue square", "a green star"]
W = 4.0
RESULTS = {"shapes": "softrepa-shapes", "shapes-flow": "softrepa-flow"}


def off(found, expected):
    return (
        ((found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).max().item()
    )


def begun(backbone, method=None, w=W, steps=3, **kwargs):
    sampler = dk.Sampler(backbone, method, num_steps=steps, guidance_scale=w, **kwargs)
    return sampler.start(PROMPTS, seeds=[0, 1])


@pytest.mark.parametrize(
    ("layers", "time", "kind"),
    [
        (("down",), False, "epsilon"),
        (("mid",), True, "epsilon"),
        (("down", "mid", "up"), True, "v_prediction"),
        (("up",), False, "v_prediction"),
    ],
)
@pytest.mark.parametrize("w", [W, 1.0])
def test_in_a_unet_equals_the_plain_insertion(layers, time, kind, w):
    pipe, tokens = pipelines.stable_diffusion(kind), soft(layers, 32, time=time)
    run = begun(dk.wrap(pipe), dk.SoftREPA(tokens), w)
    state, x = run.state, run.state.xt
    pipe.scheduler.set_timesteps(3)
    texts = state.c_org if w == 1 else torch.cat([state.uncond.sequence, state.c_org])
    for t in pipe.scheduler.timesteps:
        with torch.no_grad():
            out = plain_unet(pipe, tokens, t)(
                x if w == 1 else torch.cat([x, x]), t, encoder_hidden_states=texts
            ).sample
        out = out if w == 1 else out[:2] + w * (out[2:] - out[:2])
        x = pipe.scheduler.step(out, t, x).prev_sample
    assert off(run.finish().state.xt, x) <= 1e-5
    assert off(x, run.fork(dk.Fixed(), at=0).finish().state.xt) > 0.005
    assert all(torch.equal(info.c, state.c_org) and not info.updated for info in run.history)


def test_in_sdxl_equals_the_plain_insertion():
    pipe, tokens = families.sdxl(), soft(("down", "up"), 64)
    run = begun(dk.wrap(pipe), dk.SoftREPA(tokens))
    state, plain = run.state, copy.copy(pipe)
    plain.unet = plain_unet(pipe, tokens, state.t)
    expected = dk.Sampler(dk.wrap(plain), num_steps=3, guidance_scale=W).predict(state)
    assert off(run.step().x0bar_hat, expected.x0bar) <= 1e-5
    assert off(expected.x0bar, run.fork(dk.Fixed(), at=0).step().x0bar_hat) > 0.005


@pytest.mark.parametrize(
    ("layers", "width", "time"),
    [((0,), 32, True), ((0, 1), 32, True), ((1,), 32, False), ((0, 1), 64, False)],
)
def test_in_sd3_equals_the_blocks_by_hand(layers, width, time):
    backbone, tokens = families.backbone("sd3"), soft(layers, width, time=time)
    if width == 64:  # as wide as the text: through the network's own embedder
        tokens = tokens.replace(
            time=0.5 * torch.randn(100, len(layers), 32, generator=torch.Generator().manual_seed(1))
        )
    run = begun(backbone, dk.SoftREPA(tokens))
    assert run.state.t == 1000  # where a flow starts
    for _ in range(2):
        state = run.state
        with torch.no_grad():
            u, c = (
                plain_sd3(backbone.network, tokens, state.xt, state.t, part.sequence, part.pooled)
                for part in (state.uncond, state.cond)
            )
        expected = state.xt - run.sampler.solver.level(state.i)[1] * (u + W * (c - u))
        info = run.step()
        assert off(info.x0bar_hat, expected) <= 1e-5
        assert (
            off(expected, dk.Sampler(backbone, num_steps=3, guidance_scale=W).predict(state).x0bar)
            > 5e-4
        )


def test_in_flux_equals_the_blocks_by_hand():
    backbone, tokens = families.backbone("flux-schnell"), soft((0,), 32)
    sampler = dk.Sampler(backbone, dk.SoftREPA(tokens), num_steps=3)
    state, network, pipe = sampler.init(PROMPTS, seeds=[0, 1]), backbone.network, backbone.pipe
    b, c, h, w = state.xt.shape
    with torch.no_grad():
        found = sampler.predict(state).out
        hidden = network.x_embedder(pipe._pack_latents(state.xt, b, c, h, w))
        temb, text = (
            network.time_text_embed(torch.full((b,), float(state.t)), state.cond.pooled),
            network.context_embedder(state.c),
        )
        length, image_ids = (
            text.shape[1],
            pipe._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32),
        )
        longer = torch.cat([torch.stack([tokens.tokens[0] + tokens.time[99, 0]] * b), text], 1)
        rotary = lambda n: network.pos_embed(torch.cat([torch.zeros(n, 3), image_ids]))
        text, hidden = network.transformer_blocks[0](hidden, longer, temb, rotary(length + 3))
        for block in network.single_transformer_blocks:
            text, hidden = block(hidden, text[:, -length:], temb, rotary(length))
        out = pipe._unpack_latents(
            network.proj_out(network.norm_out(hidden, temb)), h * 4, w * 4, 4
        )
        assert off(found, out) <= 1e-5
        assert off(found, dk.Sampler(backbone, num_steps=3).predict(state).out) > 5e-4


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_the_negative_branch_may_go_without(name):
    """The unconditional half is then the plain network's, the conditional half that with tokens; both options are put back."""
    backbone = families.backbone(name)
    tokens = soft(("down", "up") if name == "sd" else (0, 1), 32)
    run = begun(backbone)
    run.step()  # from pure noise, where a flow starts, eps would be xt, whatever the network says
    state = run.state
    halves = dk.Sampler(backbone, dk.SoftREPA(tokens), num_steps=3, guidance_scale=W).predict(state)
    found = dk.Sampler(
        backbone, dk.SoftREPA(tokens, negative=False), num_steps=3, guidance_scale=W
    ).predict(state)
    plain = dk.Sampler(backbone, num_steps=3, guidance_scale=W).predict(state)
    assert off(found.eps_u, plain.eps_u) <= 1e-5
    assert off(found.eps_c, halves.eps_c) <= 1e-5
    assert off(found.eps_c, plain.eps_c) > 1e-4
    assert off(halves.eps_u, plain.eps_u) > 1e-4
    assert "one_batch" not in vars(backbone)
    assert backbone.one_batch


@pytest.mark.parametrize("name", ["sd", "sd-v", "sdxl", "sd3"])
@pytest.mark.parametrize("without", ["tokens", "steps"])
def test_no_tokens_are_fixed_to_the_bit(name, without):
    layers, width = (
        ((0, 1), 32) if name == "sd3" else (("down", "mid", "up"), 64 if name == "sdxl" else 32)
    )
    method = (
        dk.SoftREPA(soft(layers, width, m=0))
        if without == "tokens"
        else dk.SoftREPA(soft(layers, width), when=lambda i: False)
    )
    run = begun(families.backbone(name), method, steps=2).finish()
    assert torch.equal(run.state.xt, run.fork(dk.Fixed(), at=0).finish().state.xt)


@pytest.mark.parametrize("name", ["sd", "sd3"])
@pytest.mark.parametrize("raised", [None, RuntimeError("broken"), KeyboardInterrupt()])
def test_the_pipeline_is_untouched_afterwards(name, raised, brightness):
    """No hooks, the same weights to the bit, a run to go on with: after a normal end, an exception, an interrupt."""
    pipe, armed = families.FAMILIES[name](), []
    backbone = dk.wrap(pipe, **({"text_length": 20} if name == "sd3" else {}))
    layers = (0, 1) if name == "sd3" else ("down", "mid", "up")
    before = {key: value.clone() for key, value in backbone.network.state_dict().items()}

    def stop(*_):
        if armed:
            raise raised

    alarm = list(backbone.network.modules())[-1].register_forward_pre_hook(stop)
    run = begun(
        backbone,
        dk.SoftREPA(soft(layers, 32), negative=False) + dk.DATE(brightness, rho=0.1),
        steps=2,
    )
    state = run.state
    if raised is None:
        run.step()
    else:
        armed.append(1)
        with pytest.raises(type(raised)):
            run.step()
        assert run.state is state
    alarm.remove()
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in backbone.network.modules()
    )
    assert all(
        torch.equal(value, before[key]) for key, value in backbone.network.state_dict().items()
    )
    assert backbone.one_batch
    armed.clear()
    assert torch.equal(run.rewind(0).step().x0bar_hat, run.fork(at=0).step().x0bar_hat)


@pytest.mark.parametrize("name", ["sd", "sd3"])
@pytest.mark.parametrize("negative", [True, False])
def test_date_beside_it_differentiates_the_network_with_its_tokens(name, negative):
    """grad_c h against central differences in float64; checkpointing (a block runs again in backward) and micro-batches change nothing."""
    backbone = dk.wrap(
        families.FAMILIES[name]().to(torch.float64),
        **({"text_length": 20} if name == "sd3" else {}),
    )
    reward, method = (
        pipelines.Brightness(),
        dk.SoftREPA(soft((0, 1) if name == "sd3" else ("down", "up"), 32), negative=negative),
    )
    make = lambda **kw: dk.Sampler(
        backbone, method + dk.DATE(reward, rho=0.5), num_steps=4, guidance_scale=W, **kw
    )
    sampler = make()
    state = sampler.init(PROMPTS, seeds=[0, 1])
    look = sampler.look(state)
    along = torch.randn(
        state.c.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    along = along if state.cond.mask is None else along * state.cond.mask[..., None]
    with torch.no_grad():
        up, down = (
            reward(
                backbone.decode(sampler.predict(state, state.c + s * 1e-4 * along).x0bar), PROMPTS
            )
            for s in (1, -1)
        )
    torch.testing.assert_close(
        (look.grad * along).sum((1, 2)), (up - down) / 2e-4, rtol=1e-5, atol=1e-9
    )
    for settings in ({"checkpointing": True}, {"micro_batch": 1}):
        torch.testing.assert_close(
            make(**settings).look(state).grad, look.grad, rtol=1e-9, atol=1e-14
        )
    info = sampler.step(state)[1]
    torch.testing.assert_close(info.distance, torch.full((2,), 0.5, dtype=torch.float64))
    guided = dk.SoftREPA(method.tokens, negative=negative) + dk.UniversalGuidance(
        reward, scale=1.0
    )  # differentiates both branches
    looks = [
        dk.Sampler(backbone, guided, num_steps=4, guidance_scale=W, checkpointing=on)
        .step(state)[0]
        .xt
        for on in (False, True)
    ]
    torch.testing.assert_close(*looks, rtol=1e-9, atol=1e-12)


def test_tokens_get_gradient_through_checkpointed_blocks():
    """d out / d tokens with and without recomputation, against central differences."""
    backbone = dk.wrap(families.sd3().to(torch.float64), text_length=20)
    state = begun(backbone).state
    tokens = soft((0, 1), 32)
    tokens = tokens.replace(
        tokens=tokens.tokens.double().requires_grad_(), time=tokens.time.double().requires_grad_()
    )

    def value(soft_):
        with placed(backbone, soft_, 515.0):
            return backbone.predict(state.xt, 515.0, state.cond).square().sum()

    grads = []
    for on in (False, True):
        with backbone.checkpointing(on), placed(backbone, tokens, 515.0):
            total = backbone.predict(state.xt, 515.0, state.cond).square().sum()
            grads.append(torch.autograd.grad(total, [tokens.tokens, tokens.time]))
    torch.testing.assert_close(*grads)
    assert set(grads[0][1].flatten(1).norm(dim=1).nonzero().flatten().tolist()) == {
        51
    }  # the bin of t = 515, and no other
    way = torch.randn(
        tokens.tokens.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    with torch.no_grad():
        up, down = (value(tokens.replace(tokens=tokens.tokens + s * 1e-5 * way)) for s in (1, -1))
    torch.testing.assert_close((grads[0][0] * way).sum(), (up - down) / 2e-5, rtol=1e-6, atol=1e-9)


@given(st.integers(0, 999))
def test_a_bin_is_ten_timesteps(t):
    assert time_bin(t) == t // 10 == time_bin(float(t)) == time_bin(t + 0.9)


def test_a_flow_starts_in_the_last_bin():
    assert (time_bin(1000), time_bin(1000.0), time_bin(999.99)) == (99, 99, 99)


PUBLISHED = {  # shapes of the authors' files: (tokens, time index), and what they mean
    "sd3": ((5, 4, 1536), (100, 7680), (0, 1, 2, 3, 4)), "sd1.5": ((4, 768), (100, 768), ("down",)), "sdxl": ((4, 2048), None, ("down", "mid")),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_reads_the_authors_files(name, tmp_path):
    """A tensor, a parameter, or the whole table of the time index, in half precision; the index of a layer is its slice of the row."""
    shape, index, layers = PUBLISHED[name]
    tokens = torch.randn(shape).half()
    torch.save(torch.nn.Parameter(tokens) if name == "sd3" else tokens, tmp_path / "dc_tokens.pth")
    assert soft_tokens.load(tmp_path / "dc_tokens.pth").time is None
    if index:
        table = torch.nn.Embedding(*index)
        torch.save(table if name == "sd3" else table.state_dict(), tmp_path / "dc_t_tokens.pth")
    found = soft_tokens.load(tmp_path)
    assert found.layers == layers
    assert torch.equal(found.tokens, tokens.float().reshape(-1, *shape[-2:]))
    assert (found.time is None) == (index is None)
    if index:
        again = soft_tokens.load(tmp_path / "dc_tokens.pth", time=tmp_path / "dc_t_tokens.pth")
        for k, part in enumerate(table.weight.detach().chunk(found.places, dim=-1)):
            assert torch.equal(found.time_at(730.0)[k, 0], part[73])
            assert torch.equal(again.time[:, k], part)
    saved = found.save(tmp_path / "deep" / "mine.safetensors")
    assert soft_tokens.load(saved).digest == found.digest
    assert soft_tokens.load(saved).layers == layers
    assert (
        soft_tokens.load(tmp_path, layers=("up", "mid")).layers == ("mid", "up")
        if name != "sd3"
        else True
    )


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_files_that_are_none(tmp_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"a": Evil()}, tmp_path / "evil2.pth")
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    for name in ("evil.pth", "evil2.pth", "other.safetensors"):
        with pytest.raises(ValueError, match=rf"{name} is not a file of soft tokens"):
            soft_tokens.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"gone\.pth does not exist"):
        soft_tokens.load(tmp_path / "gone.pth")
    torch.save(torch.zeros(4), tmp_path / "flat.pth")
    with pytest.raises(
        ValueError,
        match=r"flat\.pth holds a tensor of shape \(4,\).*\(layers, number, width\).*\(number, width\)",
    ):
        soft_tokens.load(tmp_path / "flat.pth")
    torch.save(torch.zeros(5, 4, 8), tmp_path / "dc_tokens.pth")
    torch.save(torch.zeros(100, 8), tmp_path / "dc_t_tokens.pth")
    with pytest.raises(
        ValueError,
        match=r"dc_t_tokens\.pth holds .*\(100, 8\).*dc_tokens\.pth is of shape \(100, 5 x width\)",
    ):
        soft_tokens.load(tmp_path)
    torch.save(torch.full((4, 8), torch.nan), tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"NaN or infinity \(.*nan\.pth\)"):
        soft_tokens.load(tmp_path / "nan.pth")
    torch.save([torch.zeros(4, 8)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds a list where one tensor was expected"):
        soft_tokens.load(tmp_path / "list.pth")


@pytest.mark.parametrize(
    ("name", "tokens", "says"),
    [
        ("sd", soft((0,), 32), r"another family: sd is a U-Net, which takes \(1, number, 32\)"),
        (
            "sd3",
            soft(("down",), 32),
            r"another family: sd3 is a joint transformer, which takes \(layers, number, 32\)",
        ),
        (
            "sd",
            soft(("down",), 768),
            r"of width 768 and 768, do not fit sd: it takes tokens of width 32",
        ),
        ("sd3", soft((0, 1, 2), 32), r"need the layers \[2\], and sd3 has \(0, 1\)"),
        ("sd3", soft((0, 1), 64), "a time index of width 32"),
        ("pixart-alpha", soft((0,), 24), "pixart-alpha is neither"),
    ],
)
def test_tokens_of_another_model(name, tokens, says, tmp_path):
    saved = soft_tokens.load(tokens.save(tmp_path / "theirs.safetensors"))
    for given_, named in ((tokens, "these soft tokens"), (saved, r"theirs\.safetensors")):
        with pytest.raises(ValueError, match=says) as caught:
            dk.Sampler(families.backbone(name), dk.SoftREPA(given_))
        assert name == "pixart-alpha" or named.replace("\\", "") in str(caught.value)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: dk.SoftREPA(3), TypeError, r"dk\.softrepa\.load"),
        (lambda: dk.SoftREPA("no/such.safetensors"), FileNotFoundError, "does not exist"),
        (
            lambda: dk.SoftREPA(soft(("down",), 8), negative="no"),
            ValueError,
            "negative must be True or False",
        ),
        (
            lambda: SoftTokens(torch.zeros(1, 2, 8), layers=("dwon",)),
            ValueError,
            "Did you mean 'down'",
        ),
        (lambda: SoftTokens(torch.zeros(1, 2, 8), layers=()), ValueError, "each once"),
        (
            lambda: SoftTokens(torch.zeros(2, 8)),
            ValueError,
            r"shape \(1, number, width\), got \(2, 8\)",
        ),
        (
            lambda: SoftTokens(torch.zeros(1, 2, 8), torch.zeros(10, 1, 8)),
            ValueError,
            r"shape \(100, 1, width\), got \(10, 1, 8\)",
        ),
    ],
)
def test_bad_settings(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_a_run_with_it_is_saved_and_goes_on(tmp_path, reward, shapes):
    """The tokens are in the file: nothing else is needed to load it. Other tokens are refused."""
    tokens = soft(("down", "mid"), 96, scale=0.5)
    run = begun(
        shapes, dk.SoftREPA(tokens, when=dk.every(2)) + dk.DATE(reward, rho=0.3, when=dk.steps(1))
    )
    run.step()
    path = run.save(tmp_path / "run.pt")
    again = dk.Run.load(path)
    assert torch.equal(again.finish().state.xt, run.finish().state.xt)
    assert again.sampler.method.parts[0].tokens.layers == ("down", "mid")
    other = dk.Sampler(
        shapes, dk.SoftREPA(soft(("down", "mid"), 96, seed=1)), num_steps=3, guidance_scale=W
    )
    with pytest.raises(ValueError, match="made with another sampler") as caught:
        dk.Run.load(path, other)
    assert len(str(caught.value)) < 3000


def test_it_adds_up_with_what_acts_on_other_things(brightness):
    both = dk.SoftREPA(soft(("down",), 32)) + dk.DATE(brightness, rho=0.5)
    assert [type(part) for part in both.parts] == [dk.SoftREPA, dk.DATE]
    assert [
        type(part) for part in (dk.DATE(brightness) + dk.SoftREPA(soft(("down",), 32))).parts
    ] == [dk.SoftREPA, dk.DATE]
    with pytest.raises(ValueError, match="SoftREPA and EBCA cannot combine"):
        dk.SoftREPA(soft(("down",), 32)) + dk.EBCA()


def test_the_command_line_names_its_tokens(tmp_path, brightness):
    path = soft(("down",), 32).save(tmp_path / "t.safetensors")
    method = method_from("softrepa", {"tokens": str(path), "update_every": 2})
    assert (method.tokens.digest, method.when) == (soft_tokens.load(path).digest, dk.every(2))
    both = method_from("softrepa+date", {"tokens": str(path), "rho": 0.25}, brightness)
    assert both.rho == 0.25
    with pytest.raises(ValueError, match="softrepa needs --tokens"):
        method_from("softrepa", {"model": "somebody/model"})
    with pytest.raises(ValueError, match="--tokens"):
        check_read("date", {"tokens": "x"}, None)


def test_half_precision():
    """bf16 weights, float32 tokens: near what float32 gives."""
    outs = {}
    for dtype in (torch.float32, torch.bfloat16):
        backbone = dk.wrap(pipelines.stable_diffusion().to(dtype=dtype))
        outs[dtype] = begun(backbone, dk.SoftREPA(soft(("down",), 32))).step().x0bar_hat.float()
    assert off(outs[torch.bfloat16], outs[torch.float32]) < 0.1


@pytest.mark.parametrize("name", soft_tokens.SHIPPED_TOKENS)
def test_the_tokens_that_ship_are_those_that_were_measured(name):
    """They come with the file of results that chose them, fit their model, and are described by name."""
    results = Path(dk.__file__).parent / "evaluation" / "results" / f"{RESULTS[name]}.json"
    assert soft_tokens.shipped_file(name).is_file() == results.is_file()
    if results.is_file():
        tokens = soft_tokens.load(name)
        assert tokens.digest == json.loads(results.read_text())["final"]["digest"]
        assert tokens.num_parameters < 1_000_000
        assert "data" not in tokens.describe()
        assert SoftTokens.rebuild(tokens.describe()).digest == tokens.digest
        with pytest.raises(ValueError, match="are not those that were used then"):
            SoftTokens.rebuild(tokens.describe() | {"digest": "0"})
        dk.Sampler(dk.load(name, device="cpu"), dk.SoftREPA(name), num_steps=2)


def test_missing_tokens_of_a_shipped_model_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(soft_tokens, "shipped_file", lambda name: tmp_path / name)
    with pytest.raises(
        FileNotFoundError,
        match=r"'shapes' are missing from this installation .*datekit softrepa sweep --model shapes",
    ):
        dk.SoftREPA("shapes")
