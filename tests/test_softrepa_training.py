"""Learning soft tokens: the loss derived again in plain numbers, who gets gradient, resuming, several processes, the sweep."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys

import families
import hypothesis
import numpy as np
import pipelines
import pytest
import torch
from hypothesis import strategies as st
from soft import plain_sd3, plain_unet

import datekit as dk
from datekit import softrepa
from datekit.cli import main
from datekit.softrepa import training
from studies import softrepa_sweep as sweeping
from datekit.softrepa.loss import level, target
from datekit.softrepa.plan import Batch, Plan

CAPTIONS = [
    "a red circle",
    "a blue square",
    "two green stars",
    "a triangle",
    "a cyan star",
    "three red squares",
]


def pictures(count=6, seed=0):
    return list(torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))


def pairs(negatives=True):
    wrong = (
        [("a circle", "a green " + c.split()[-1], "two cyan stars") for c in CAPTIONS]
        if negatives
        else None
    )
    return softrepa.Pairs.of(pictures(), CAPTIONS, wrong)


def plan(backbone, **changes):
    joint = backbone.name == "sd3"
    settings = dict(
        num_tokens=3,
        layers=softrepa.training.layers_of(backbone, None),
        time=joint,
        steps=4,
        batch=3,
        negatives=None,
        hard=False,
        contrast=softrepa.Contrast(temperature=0.7),
        lr=0.05,
        weight_decay=1e-4,
        restart=4,
        accumulate=1,
        precision=None,
        t_range=(0, 1000),
        seed=0,
    )
    return Plan(**(settings | changes))


@pytest.fixture(scope="module", params=["sd", "sd-v", "sd3"])
def school(request):
    """A random model and its encoded pairs."""
    backbone = families.backbone(request.param)
    return backbone, softrepa.encode(backbone, pairs())


def test_the_loss_equals_an_independent_derivation(school):
    """Noise added and targets formed by diffusers' own scheduler (a flow's by hand), one pair at a time, logarithms in Python's numbers."""
    backbone, encoded = school
    for kwargs in ({}, {"negatives": 2}, {"negatives": 2, "hard": True}):
        settings = plan(
            backbone, contrast=softrepa.Contrast(3.0, 0.5, True, 2.0), time=True, **kwargs
        )
        learner = training.Learner(encoded, settings)
        learner.soft.time.data.mul_(20)
        draw = Batch.draw(encoded.pairs, settings, 5)
        with softrepa.training.placed(backbone, learner.soft, draw.t), torch.no_grad():
            found, seen = learner.loss(draw)
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(draw.noise))
        assert draw.columns.shape == (3, 3)
        total = right = 0.0
        for i, image in enumerate(draw.images.tolist()):
            x0, errors = backbone.encode_images(encoded.pairs.images[image][None]).detach(), []
            for j in draw.columns[i].tolist():
                errors.append(
                    plain_error(
                        backbone, learner.soft, x0, backbone.encode([draw.texts[j]]), noise, draw.t
                    )
                )
            own = draw.positive[i].item()
            assert draw.texts[draw.columns[i, own]] == CAPTIONS[image]
            logits = [3.0 * math.exp(-e / 0.5) for e in errors]
            total += math.log(sum(map(math.exp, logits))) - logits[own] + 2.0 * errors[own]
            right += errors[own] == min(errors)
        assert found.item() == pytest.approx(total / 3, rel=1e-4)
        assert seen["accuracy"] == pytest.approx(right / 3)


def plain_error(backbone, tokens, x0, cond, noise, t):
    with torch.no_grad():
        if backbone.name == "sd3":
            xt, aim = (1 - t / 1000) * x0 + t / 1000 * noise, noise - x0
            out = plain_sd3(backbone.network, tokens, xt, t, cond.sequence, cond.pooled)
        else:
            scheduler = backbone.scheduler
            xt = scheduler.add_noise(x0, noise, torch.tensor([t]))
            velocity = scheduler.config.prediction_type == "v_prediction"
            aim = scheduler.get_velocity(x0, noise, torch.tensor([t])) if velocity else noise
            out = plain_unet(backbone.pipe, tokens, t)(
                xt, t, encoder_hidden_states=cond.sequence
            ).sample
    return ((out - aim) ** 2).mean().item()


@hypothesis.given(
    st.integers(2, 6),
    st.integers(1, 5),
    st.integers(0, 10**6),
    st.floats(0.5, 8),
    st.floats(0.02, 2),
)
def test_what_sharpening_means(columns, rows, seed, scale, temperature):
    rng = np.random.default_rng(seed)
    errors, own = (
        torch.tensor(rng.uniform(0, 1, (rows, columns))),
        torch.tensor(rng.integers(columns, size=rows)),
    )
    sharp, raw = (
        softrepa.Contrast(scale, temperature),
        softrepa.Contrast(scale, temperature, exponential=False),
    )
    assert (sharp.logits(errors) >= 0).all()
    assert (sharp.logits(errors) <= scale).all()
    for contrast in (sharp, raw):
        best = errors.scatter(1, own[:, None], 0.0)
        assert contrast.loss(best, own) <= contrast.loss(errors, own) + 1e-12
        assert contrast.information(errors, own) <= math.log(columns)
        shuffled = torch.tensor(rng.permutation(columns))
        where = torch.tensor([(shuffled == p).nonzero().item() for p in own])
        torch.testing.assert_close(
            contrast.loss(errors[:, shuffled], where), contrast.loss(errors, own)
        )
    leaf = errors.clone().requires_grad_()
    sharp.entropy(leaf, own).backward()
    assert leaf.grad.abs().max() <= scale / temperature / rows + 1e-9  # no pair pulls harder
    weighted = softrepa.Contrast(scale, temperature, dweight=3.0)
    more = 3.0 * errors[torch.arange(rows), own].mean()
    torch.testing.assert_close(weighted.loss(errors, own) - sharp.loss(errors, own), more)


def test_only_the_tokens_receive_gradient(school):
    backbone, encoded = school
    before = {
        name: [value.clone() for value in part.state_dict().values()]
        for name, part in backbone.pipe.components.items()
        if isinstance(part, torch.nn.Module)
    }
    learner = training.Learner(encoded, plan(backbone, time=True, t_range=(640, 650)))
    start = learner.soft.tokens.detach().clone()
    learner.advance()
    for part in backbone.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            assert not part.training
            for name, parameter in part.named_parameters():
                assert parameter.grad is None, name
                assert not parameter.requires_grad, name
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in backbone.network.modules()
    )
    assert (learner.soft.tokens.grad.flatten(2).norm(dim=2) > 0).all()
    assert learner.soft.time.grad.flatten(1).norm(dim=1).nonzero().flatten().tolist() == [64]
    assert not torch.equal(learner.soft.tokens, start)
    for name, values in before.items():
        after = backbone.pipe.components[name].state_dict().values()
        assert all(torch.equal(a, b) for a, b in zip(values, after, strict=True)), name


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_a_pipeline_is_bitwise_what_it_was(name):
    """After training and sampling: weights, configuration, and the picture that diffusers' own pipeline makes."""
    pipe = families.FAMILIES[name]()
    pipe.set_progress_bar_config(disable=True)
    extra = {"max_sequence_length": 20} if name == "sd3" else {}
    draw = lambda: (
        pipe(
            CAPTIONS[:1],
            num_inference_steps=2,
            output_type="latent",
            height=64,
            width=64,
            generator=torch.Generator().manual_seed(0),
            **extra,
        ).images
    )
    backbone = dk.wrap(pipe, **({"text_length": 20} if name == "sd3" else {}))
    before, config = draw(), dict(backbone.network.config)
    tokens = softrepa.train(backbone, (pictures(), CAPTIONS), steps=2, batch=2, checkpointing=True)
    dk.Sampler(backbone, dk.SoftREPA(tokens), num_steps=2).start(
        CAPTIONS[:2], seeds=[0, 1]
    ).finish()
    assert torch.equal(draw(), before)
    assert dict(backbone.network.config) == config
    assert not backbone.network.is_gradient_checkpointing


def trained(encoded, **kwargs):
    return softrepa.train(
        encoded.backbone,
        encoded,
        **({"steps": 5, "batch": 2, "time": True, "accumulate": 2, "lr": 0.05} | kwargs),
    )


def test_interrupted_and_resumed_equals_uninterrupted(school, tmp_path, monkeypatch):
    backbone, encoded = school
    whole = trained(encoded)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    advance, path = training.Learner.advance, tmp_path / "deep" / "c.pt"

    def stop(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(training.Learner, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(encoded, checkpoint=path)
    monkeypatch.setattr(training.Learner, "advance", advance)
    steps = []
    monkeypatch.setattr(
        training.Learner, "advance", lambda self: (steps.append(self.step), advance(self))[1]
    )
    resumed = trained(encoded, checkpoint=path)
    assert steps == [3, 4]
    assert torch.equal(resumed.tokens, whole.tokens)
    assert torch.equal(resumed.time, whole.time)
    assert resumed.config["curve"] == whole.config["curve"]
    assert torch.equal(trained(encoded, checkpoint=path).tokens, whole.tokens)
    assert len(steps) == 2  # nothing was left to do
    with pytest.raises(
        ValueError, match=r"c\.pt is the checkpoint of another training: lr was 0\.05, now 0\.1"
    ):
        trained(encoded, checkpoint=path, lr=0.1)
    other = softrepa.encode(backbone, softrepa.Pairs.of(pictures(seed=1), CAPTIONS))
    with pytest.raises(ValueError, match="the images or captions were others"):
        trained(other, checkpoint=path)
    (tmp_path / "no.pt").write_text("nothing")
    with pytest.raises(ValueError, match=r"no\.pt is not a SoftREPA training saved by datekit"):
        trained(encoded, checkpoint=tmp_path / "no.pt")


def test_accumulation_is_the_mean_of_its_batches(school):
    """Two batches a step have the mean gradient of the two, however they are cut up or recomputed; so would two processes."""
    backbone, encoded = school
    settings = plan(backbone, accumulate=2)

    def gradients(number=None, **kwargs):
        learner = training.Learner(
            encoded, settings if number is None else plan(backbone), **kwargs
        )
        learner.step = number or 0
        learner.advance()
        return [parameter.grad for parameter in learner.parameters]

    both = gradients()
    for found, first, second in zip(both, gradients(0), gradients(1), strict=True):
        torch.testing.assert_close(found, (first + second) / 2, rtol=1e-5, atol=1e-8)
    for kwargs in ({"chunk": 2}, {"checkpointing": True}):
        for found, expected in zip(gradients(**kwargs), both, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_two_processes_are_two_batches_a_step(tmp_path):
    """`accelerate launch` in all but name: ranks 0 and 1 over gloo, the same command; the tokens are those of accumulate=2."""
    backbone = dk.load("shapes", device="cpu")
    backbone.pipe.save_pretrained(tmp_path / "model")
    args = [
        "softrepa",
        "train",
        "--model",
        str(tmp_path / "model"),
        "--pairs",
        "shapes:8",
        "--steps",
        "2",
        "--batch",
        "2",
        "--device",
        "cpu",
    ]
    with socket.socket() as denoiser:
        denoiser.bind(("127.0.0.1", 0))
        port = str(denoiser.getsockname()[1])
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    out = tmp_path / "two.safetensors"
    code = "import sys, torch; torch.set_num_threads(1); from datekit.cli import main; sys.exit(main(sys.argv[1:]))"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, *args, "--out", str(out)],
            env={**common, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in (0, 1)
    ]
    try:
        done = [rank.communicate(timeout=500) for rank in ranks]
    finally:  # where one failed, the other waits for it
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], done
    assert main([*args, "--accumulate", "2", "--out", str(tmp_path / "one.safetensors")]) == 0
    two, one = (softrepa.load(path) for path in (out, tmp_path / "one.safetensors"))
    torch.testing.assert_close(two.tokens, one.tokens, rtol=1e-4, atol=1e-5)
    assert two.config["world"] == 2
    assert not list(tmp_path.glob("*.checkpoint"))


def test_it_learns(random_backbone):
    """On one timestep, tokens of a random network lower its denoising error, and the raw logits find their captions."""
    pairs_ = softrepa.Pairs.of(pictures(3), CAPTIONS[:3])
    contrast = softrepa.Contrast(temperature=0.001, exponential=False, dweight=1.0)
    tokens = softrepa.train(
        random_backbone,
        pairs_,
        layers="all",
        steps=20,
        batch=3,
        lr=0.2,
        contrast=contrast,
        t_range=(300, 301),
    )
    first, last = tokens.config["curve"][0], tokens.config["curve"][-1]
    assert last["loss"] < first["loss"]
    assert tokens.config["layers"] == ["down", "mid", "up"]
    assert last["step"] == 20


def test_mixed_precision_is_near(random_backbone):
    encoded = softrepa.encode(random_backbone, pairs())
    contrast = softrepa.Contrast(
        dweight=10.0
    )  # the difference between captions alone drowns in bfloat16, on a random network
    exact, mixed = (
        training.Learner(encoded, plan(random_backbone, precision=p, contrast=contrast))
        for p in (None, "bfloat16")
    )
    a, b = exact.advance(), mixed.advance()
    assert a["loss"] == pytest.approx(b["loss"], rel=0.02)
    assert mixed.soft.tokens.dtype == torch.float32
    similar = torch.nn.functional.cosine_similarity(
        exact.soft.tokens.grad.flatten(), mixed.soft.tokens.grad.flatten(), dim=0
    )
    assert similar > 0.9


@pytest.mark.parametrize("t", [0, 1, 500, 999])
@pytest.mark.parametrize("name", ["sd", "sd-v", "sd3"])
def test_the_target_brings_back_the_latent(name, t):
    """x0 = what the solver's x0bar makes of a network that answers the target, at each level."""
    backbone, (alpha, sigma) = families.backbone(name), level(families.backbone(name), t)
    x0, eps = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(t))
    xt, out = alpha * x0 + sigma * eps, target(backbone, x0, eps, t)
    found = {
        "sd": lambda: (xt - sigma * out) / alpha,
        "sd-v": lambda: alpha * xt - sigma * out,
        "sd3": lambda: xt - sigma * out,
    }[name]()
    torch.testing.assert_close(found, x0, rtol=1e-3, atol=1e-3)


def test_latents_and_texts_are_computed_once(tmp_path, monkeypatch):
    backbone, calls = dk.wrap(pipelines.stable_diffusion(seed=4)), []
    for name in ("encode", "encode_images"):
        real = getattr(backbone, name)
        monkeypatch.setattr(
            backbone, name, lambda *a, real=real, **kw: (calls.append(1), real(*a, **kw))[1]
        )
    first = softrepa.encode(backbone, pairs(), cache=tmp_path / "c.pt")
    learner = training.Learner(first, plan(backbone))
    assert calls
    calls.clear()
    learner.advance()
    again = softrepa.encode(backbone, pairs(), cache=tmp_path / "c.pt")
    assert not calls
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.texts(["a circle"]).sequence, again.texts(["a circle"]).sequence)
    torch.testing.assert_close(
        first.texts(CAPTIONS[:2]).sequence,
        backbone.encode(CAPTIONS[:2]).sequence,
        rtol=1e-5,
        atol=1e-5,
    )
    unkept = softrepa.encode(backbone, pairs(), text_limit=0.0)
    assert unkept.cond is None
    torch.testing.assert_close(
        unkept.texts(CAPTIONS[:2]).sequence,
        first.texts(CAPTIONS[:2]).sequence,
        rtol=1e-5,
        atol=1e-5,
    )
    calls.clear()
    softrepa.encode(backbone, pairs(negatives=False), cache=tmp_path / "c.pt")  # other texts
    assert calls
    calls.clear()
    backbone.pipe.vae.encoder.conv_in.bias.data += 1  # another model
    changed = softrepa.encode(backbone, pairs(negatives=False), cache=tmp_path / "c.pt")
    assert calls
    assert not torch.equal(changed.latents, first.latents)


def test_the_batches_are_what_they_say(school):
    _, encoded = school
    for number in range(20):
        for kwargs in ({}, {"negatives": 2}, {"negatives": 2, "hard": True}):
            draw = Batch.draw(encoded.pairs, plan(school[0], **kwargs), number)
            lines = [[draw.texts[j] for j in row] for row in draw.columns.tolist()]
            own = [encoded.pairs.captions[n] for n in draw.images.tolist()]
            assert len(set(own)) == 3
            assert [line[p] for line, p in zip(lines, draw.positive.tolist(), strict=True)] == own
            assert all(len(set(line)) == 3 for line in lines)
            if kwargs.get("hard"):
                assert all(
                    set(line[1:]) <= set(encoded.pairs.negatives[n])
                    for line, n in zip(lines, draw.images.tolist(), strict=True)
                )
            assert draw.texts == Batch.draw(encoded.pairs, plan(school[0], **kwargs), number).texts


def test_what_cannot_be_trained(random_backbone, school):
    encoded = softrepa.encode(random_backbone, pairs(negatives=False))
    learner = training.Learner(encoded, plan(random_backbone))
    learner.soft.tokens.data.fill_(1e38)
    before = learner.soft.tokens.detach().clone()
    with pytest.raises(dk.NonFiniteError, match="at step 0"):
        learner.advance()
    assert torch.equal(learner.soft.tokens, before)
    for kwargs, error, says in (
        ({"hard": True, "negatives": 2}, ValueError, "hard negatives need 2 false captions for each caption"),
        ({"hard": True}, ValueError, "say how many an image"), ({"batch": 1}, ValueError, "batch must be at least 2"),
        ({"num_tokens": 0}, ValueError, "num_tokens must be a whole number from 1"), ({"lr": float("nan")}, ValueError, "lr must be"),
        ({"layers": 3}, ValueError, r"layers of random-epsilon are some of \('down', 'mid', 'up'\)"),
        ({"precision": "int8"}, ValueError, "precision"),
        ({"layers": "dwon"}, ValueError, "got 'dwon'"), ({"t_range": (5, 2000)}, ValueError, "within 0 to 1000"),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            softrepa.train(random_backbone, encoded, steps=1, **kwargs)
    with pytest.raises(ValueError, match="6 images and 5 captions; each image needs one caption"):
        softrepa.train(random_backbone, (pictures(), CAPTIONS[:5]), steps=1)
    with pytest.raises(TypeError, match=r"softrepa\.Pairs"):
        softrepa.train(random_backbone, 3)
    with pytest.raises(ValueError, match="neither"):
        softrepa.train(dk.load("gaussian"), encoded)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        softrepa.Contrast(temperature=0)
    if school[0] is not random_backbone:
        with pytest.raises(ValueError, match="these pairs were encoded by"):
            softrepa.train(random_backbone, school[1])


def test_the_sweep_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    few = {
        name: kwargs
        for name, kwargs in sweeping.variants("shapes").items()
        if name in ("base", "hard negatives")
    }
    monkeypatch.setattr(sweeping, "variants", lambda model: few)
    monkeypatch.setattr(sweeping, "COUNTING_PAIRS", 2)
    settings = dict(
        tokens=tmp_path / "t.safetensors",
        steps=2,
        pairs=3,
        tuning_pairs=3,
        train_steps=1,
        final_steps=2,
        scenes=8,
    )
    judge, calls = sweeping.Trials.judge, []

    def stop(self, draw):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return judge(self, draw)

    monkeypatch.setattr(sweeping.Trials, "judge", stop)
    with pytest.raises(KeyboardInterrupt):
        sweeping.sweep(tmp_path / "s.json", **settings)
    content = sweeping.sweep(tmp_path / "s.json", **settings)
    assert len(calls) == 3 + 6 + 2 + 1  # each row once, and the one that was interrupted again
    assert json.loads((tmp_path / "s.json").read_text()) == json.loads(json.dumps(content))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.json", "t.safetensors"]
    assert softrepa.load(tmp_path / "t.safetensors").digest == content["final"]["digest"]
    assert set(content["tuning"]) == {"fixed", "base", "hard negatives"}
    assert list(content["rows"])[:4] == ["fixed", "SoftREPA", "DATE", "SoftREPA + DATE"]
    assert "| SoftREPA + DATE |" in sweeping.markdown(content)
    assert content["command"].startswith("datekit softrepa sweep --model shapes --steps 2")


@pytest.mark.parametrize("model", ["shapes", "shapes-flow"])
def test_the_settings_of_the_sweep_fit_their_model(model):
    backbone = dk.load(model, device="cpu")
    for kwargs in sweeping.variants(model).values():
        told = sweeping._told(backbone, kwargs)
        assert told["tokens"] in (1, 4, 16)
        assert told["layers"]
