"""Memory beyond one gradient: pictures in slices, compositions, what runs out in a plain prediction, and what the errors say."""

from __future__ import annotations

from pathlib import Path

import pipelines
import pytest
import torch
from test_estimate import W, measured

import datekit as dk
from datekit import memory
from datekit.advice import advice
from datekit.estimates import estimate, flops

PROMPTS = ["a red circle", "a green star", "a blue square"]


def crowded(monkeypatch, backbone, part: str, rows: int, error: Exception) -> list[int]:
    """From here on a part of a backbone fails for more than so many rows; returns the list of what it was asked for."""
    asked, own = [], getattr(backbone, part)

    def call(x, *args, **kwargs):
        asked.append(len(x))
        if len(x) > rows:
            raise error
        return own(x, *args, **kwargs)

    monkeypatch.setattr(backbone, part, call)
    return asked


def test_free_memory_is_what_the_system_calls_available():
    own = Path("/proc/meminfo")
    told = lambda: (
        1024
        * int(
            dict(line.split(":") for line in own.read_text().splitlines())["MemAvailable"].split()[
                0
            ]
        )
    )
    linux = own.is_file()
    before, found, after = (
        (told() if linux else 0),
        memory.free_bytes("cpu"),
        (told() if linux else 2**50),
    )
    assert 0.95 * min(before, after) <= found <= 1.05 * max(before, after)
    assert found > 2**27


def test_pictures_are_decoded_in_slices_where_memory_runs_out(
    monkeypatch, random_backbone, brightness
):
    start = lambda **settings: dk.Sampler(
        random_backbone, dk.DATE(brightness), num_steps=2, **settings
    ).start(PROMPTS, seeds=[0, 1, 2])
    run, set_beforehand = start().finish(), start(decode_batch=2).finish()
    pixels, rewards = run.pixels, run.rewards()
    with monkeypatch.context() as patch:
        asked = crowded(patch, random_backbone, "decode", 1, torch.OutOfMemoryError("no room"))
        torch.testing.assert_close(run.pixels, pixels)
        assert asked == [3, 2, 1, 1, 1]
        torch.testing.assert_close(run.rewards(), rewards)
    with monkeypatch.context() as patch:
        asked = crowded(patch, random_backbone, "decode", 0, torch.OutOfMemoryError("no room"))
        with pytest.raises(
            torch.OutOfMemoryError, match=r"cannot be decoded even one at a time .*height, width"
        ):
            set_beforehand.images  # noqa: B018
        assert asked == [2, 1]
    asked = crowded(monkeypatch, random_backbone, "decode", 2, torch.OutOfMemoryError("no room"))
    torch.testing.assert_close(set_beforehand.pixels, pixels)
    assert asked == [2, 1]


def test_a_rule_for_rho_decodes_in_slices_too(monkeypatch, random_backbone, brightness):
    method = dk.DATE(brightness, rho=dk.rho_rules.Taylor(0.5))
    start = lambda: dk.Sampler(random_backbone, method, num_steps=3, decode_batch=1).start(
        PROMPTS, seeds=[0, 1, 2]
    )
    expected = start().step()
    asked = crowded(monkeypatch, random_backbone, "decode", 1, torch.OutOfMemoryError("no room"))
    torch.testing.assert_close(start().step().c, expected.c)
    assert set(asked) == {1}


@pytest.mark.parametrize(
    "settings", [{"micro_batch": 1}, {"micro_batch": 2}, {"decode_batch": 2}, {}], ids=str
)
def test_pictures_come_whatever_bounds_the_update(
    monkeypatch, random_backbone, brightness, settings
):
    run = (
        dk.Sampler(random_backbone, dk.DATE(brightness), num_steps=2, **settings)
        .start(PROMPTS, seeds=[0, 1, 2])
        .finish()
    )
    pixels, before = run.pixels, str(run.sampler.limits(run.state))
    crowded(monkeypatch, random_backbone, "decode", 1, torch.OutOfMemoryError("no room"))
    torch.testing.assert_close(run.pixels, pixels)
    assert str(run.sampler.limits(run.state)) == before  # the update is bounded as it was


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no room"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
@pytest.mark.parametrize(
    "method",
    [lambda h: dk.Fixed(), lambda h: dk.DATE(h, when=dk.steps(2))],
    ids=["fixed", "no update yet"],
)
def test_a_plain_prediction_that_does_not_fit_says_what_it_needs(
    monkeypatch, random_backbone, brightness, method, error
):
    run = dk.Sampler(random_backbone, method(brightness), num_steps=3).start(
        PROMPTS, seeds=[0, 1, 2]
    )
    with monkeypatch.context() as patch:
        crowded(patch, random_backbone, "predict", 0, error)
        for ask in (run.step, lambda: run.sampler.predict(run.state)):
            with pytest.raises(
                torch.OutOfMemoryError, match=r"a batch of 3 does not fit: .* free .*"
            ) as caught:
                ask()
            assert caught.value.__cause__ is error
    assert run.state.i == 0
    run.step()


def test_another_error_of_the_same_class_is_itself(monkeypatch, random_backbone):
    crowded(monkeypatch, random_backbone, "predict", 0, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"):
        dk.Sampler(random_backbone, num_steps=3).start(PROMPTS).step()


def test_graphs_weigh_the_same_before_the_run_and_in_it(random_backbone):
    """Weights, which wait for backward too, are there anyway and count in neither."""
    brightness = (
        pipelines.Brightness()
    )  # of its own: what graphs of another one weigh is known from elsewhere, with EBCA among them
    method = dk.DATE(brightness)
    found = estimate(random_backbone, method, 2, guidance_scale=W)
    sampler = dk.Sampler(random_backbone, method, num_steps=3, guidance_scale=W)
    state = sampler.init(PROMPTS[:2], seeds=[0, 1])
    sampler.step(state)
    sizes = memory.GraphSizes.of(random_backbone, state.xt, brightness, False)
    assert sizes.network == pytest.approx(found.network_graph, rel=0.15)


def test_the_pictures_at_the_end_are_in_the_estimate(random_backbone, brightness):
    whole, slices = (estimate(random_backbone, None, 8, decode_batch=n) for n in (None, 1))
    assert whole.total == whole.weights + max(whole.plain, whole.decoding)
    assert slices.decoding < whole.decoding / 2
    latents = torch.zeros(8, *random_backbone.latent_shape())
    with torch.no_grad(), memory.Alive() as alive:
        held = random_backbone.decode(latents)
    assert whole.decoding == pytest.approx(alive.peak, rel=0.15)
    assert len(held) == 8


def test_each_part_of_a_composition_is_estimated_with_its_own_reward(random_backbone, brightness):
    """DATE through a cheap decoder beside Universal Guidance through the real one takes what the latter takes."""
    cheap, dear = (
        dk.DATE(brightness, decoder=dk.decoders.Resized(0.25), keep_graph=False),
        dk.UniversalGuidance(brightness, 3.0),
    )
    found = estimate(random_backbone, cheap + dear, 4, guidance_scale=W)
    taken = measured(dk.Sampler(random_backbone, cheap + dear, num_steps=6, guidance_scale=W), 4)
    assert found.updated == pytest.approx(taken, rel=0.15)
    assert found.updated >= 0.99 * estimate(random_backbone, dear, 4, guidance_scale=W).updated


def test_advice_offers_only_what_is_not_in_force(random_backbone, brightness):
    words = lambda method, **settings: [
        part.split(":")[0] for part in advice(random_backbone, method, 2, **settings).split("; ")
    ]
    assert words(dk.DATE(brightness)) == [
        "as it is",
        "decode_batch=1",
        "that and keep_graph=False in dk.DATE",
        "that and micro_batch=1",
        "that and checkpointing=True",
        "that and one prompt at a time",
    ]
    everything = {"micro_batch": 1, "decode_batch": 1, "checkpointing": True}
    assert words(dk.DATE(brightness, keep_graph=False), **everything) == [
        "as it is",
        "one prompt at a time",
    ]
    assert words(dk.UniversalGuidance(brightness), micro_batch=1) == [
        "as it is",
        "checkpointing=True",
        "that and one prompt at a time",
    ]
    assert words(dk.DATE(brightness, keep_graph=True), checkpointing=True) == [
        "as it is",
        "decode_batch=1",
        "that and keep_graph=False in dk.DATE",
        "that and micro_batch=1",
        "that and one prompt at a time",
    ]
    assert words(dk.Fixed()) == ["batch 2", "batch 1"]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_on_a_cpu_is_counted(masked):
    """softmax(q k') v and its backward: two products of matrices forward, and five backward, of 2 L L D each; one head."""
    length, width = 64, 32
    q, k, v = (torch.randn(1, 1, length, width, requires_grad=True) for _ in range(3))
    mask = torch.zeros(length, length) if masked else None
    attention = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    one = 2 * length * length * width
    assert flops(lambda: attention().detach()) == 2 * one
    assert flops(lambda: attention().sum().backward()) in (
        (2 + 5) * one,
        (2 + 4) * one,
    )  # fused kernels compute the scores again


@pytest.mark.parametrize(("wrong", "error", "said"), [
    (lambda b, h: dk.Sampler(b, checkpointing="no"), ValueError, "checkpointing must be True, False or None"),
    (lambda b, h: estimate(b, dk.DATE(h), micro_batch=0), ValueError, "micro_batch must be a whole number from 1"),
    (lambda b, h: estimate(b, dk.DATE(h), decode_batch=-1), ValueError, "decode_batch must be"),
    (lambda b, h: estimate(b, dk.DATE(h), checkpointing="no"), ValueError, "checkpointing must be True or False"),
    (lambda b, h: estimate(b, dk.DATE), TypeError, "method must be a method"),
    (lambda b, h: estimate(b, h), TypeError, "method must be a method"),
    (lambda b, h: estimate(h, dk.DATE(h)), TypeError, "takes a backbone"),
    (lambda b, h: dk.DATE(h, decoder=dk.decoders.Tiny), TypeError, "a decoder is one of"),
    (lambda b, h: dk.decoders.Linear(side=2), ValueError, "side is odd"),
    (lambda b, h: dk.decoders.Linear(steps=1), ValueError, "steps must be a whole number from 2"),
    (lambda b, h: dk.Sampler(b, dk.DATE(h, decoder=dk.decoders.Tiny("no/such"))), OSError, r"Tiny\(folder\)"),
])  # fmt: skip
def test_bad_values_are_told_apart(random_backbone, brightness, wrong, error, said):
    with pytest.raises(error, match=said):
        wrong(random_backbone, brightness)


def test_a_small_autoencoder_of_other_latents_is_refused_before_the_run(
    tmp_path, random_backbone, brightness
):
    from diffusers import AutoencoderTiny

    small = AutoencoderTiny(
        latent_channels=16,
        encoder_block_out_channels=(8,) * 2,
        decoder_block_out_channels=(8,) * 2,
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    small.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes latents of 16 channels"):
        dk.Sampler(random_backbone, dk.DATE(brightness, decoder=dk.decoders.Tiny(str(tmp_path))))


def test_an_estimate_takes_a_pipeline(random_backbone):
    assert estimate(random_backbone.pipe, None, 1).plain == estimate(random_backbone, None, 1).plain
