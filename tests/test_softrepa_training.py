"""Learning soft tokens: the loss derived again in plain numbers, who gets gradient, resuming."""

from __future__ import annotations

import math

import diffusers
import families
import hypothesis
import numpy as np
import pipelines
import pytest
import torch
from hypothesis import strategies as st
from soft import plain_sd3, plain_unet
from studies import softrepa_sweep

import datekit as dk
from datekit import softrepa
from datekit.softrepa import training
from datekit.softrepa.plan import Batch, Plan

CAPTIONS = ["a red circle", "a blue square", "two green stars", "a triangle", "a cyan star"]
CAPTIONS += ["three red squares"]


def pictures(count=6, seed=0):
    return list(torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))


def pairs():
    wrong = [("a circle", "a green " + text.split()[-1], "two cyan stars") for text in CAPTIONS]
    return softrepa.Pairs(pictures(), CAPTIONS, wrong)


def plan(backbone, **changes):
    contrast = softrepa.Contrast(temperature=0.7)
    settings = {"num_tokens": 3, "steps": 4, "batch": 3, "contrast": contrast, "lr": 0.05}
    return Plan(**(settings | changes)).for_model(backbone)


@pytest.fixture(scope="module", params=["sd", "sd-v", "sd3"])
def backbone(request):
    return families.backbone(request.param)


def trainer_of(backbone, settings=None, **kwargs):
    return training.TokenTrainer(backbone, pairs(), settings or plan(backbone), **kwargs)


def test_the_loss_equals_an_independent_derivation(backbone):
    """One pair at a time, with noise and targets of diffusers' own scheduler (a flow's by hand)."""
    contrast = softrepa.Contrast(3.0, 0.5, True, 2.0)
    for kwargs in ({}, {"negatives": 2}):
        trainer = trainer_of(backbone, plan(backbone, contrast=contrast, time=True, **kwargs))
        trainer.soft.time.data.mul_(20)
        draw = Batch.draw(trainer.pairs, trainer.plan, 5)
        with training.place(backbone, trainer.soft, draw.t), torch.no_grad():
            found, seen = trainer.loss(draw)
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(draw.noise))
        assert draw.texts == Batch.draw(trainer.pairs, trainer.plan, 5).texts
        assert draw.columns.shape == (3, 3)
        total = right = 0.0
        for i, image in enumerate(draw.images.tolist()):
            x0, errors = backbone.encode_images(pictures()[image][None]).detach(), []
            for j in draw.columns[i].tolist():
                cond = backbone.encode([draw.texts[j]])
                errors.append(plain_error(backbone, trainer.soft, x0, cond, noise, draw.t))
            line = {draw.texts[j] for j in draw.columns[i].tolist()} - {CAPTIONS[image]}
            assert len(line) == 2
            assert line <= set(trainer.pairs.negatives[image] if kwargs else CAPTIONS)
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
            network = plain_unet(backbone.pipe, tokens, t)
            out = network(xt, t, encoder_hidden_states=cond.sequence).sample
    return ((out - aim) ** 2).mean().item()


@hypothesis.given(st.integers(0, 9999), st.floats(0.5, 8), st.floats(0.02, 2))
def test_what_sharpening_means(seed, scale, temperature):
    rng = np.random.default_rng(seed)
    columns, rows = rng.integers(2, 7), rng.integers(1, 6)
    errors = torch.tensor(rng.uniform(0, 1, (rows, columns)))
    own = torch.tensor(rng.integers(columns, size=rows))
    sharp = softrepa.Contrast(scale, temperature)
    raw = softrepa.Contrast(scale, temperature, exponential=False)
    assert (sharp.logits(errors) >= 0).all()
    assert (sharp.logits(errors) <= scale).all()
    for contrast in (sharp, raw):
        best = errors.scatter(1, own[:, None], 0.0)
        assert contrast.loss(best, own) <= contrast.loss(errors, own) + 1e-12
    leaf = errors.clone().requires_grad_()
    sharp.entropy(leaf, own).backward()
    assert leaf.grad.abs().max() <= scale / temperature / rows + 1e-9  # no pair pulls harder
    weighted = softrepa.Contrast(scale, temperature, dweight=3.0)
    more = 3.0 * errors[torch.arange(rows), own].mean()
    torch.testing.assert_close(weighted.loss(errors, own) - sharp.loss(errors, own), more)


def test_only_the_tokens_receive_gradient(backbone):
    named = backbone.pipe.components.values()
    parts = [part for part in named if isinstance(part, torch.nn.Module)]
    before = [[value.clone() for value in part.state_dict().values()] for part in parts]
    settings = plan(backbone, time=True, t_range=(640, 650))
    trainer = trainer_of(backbone, settings, checkpointing=True)
    start = trainer.soft.tokens.detach().clone()
    trainer.advance()
    for part in parts:
        assert not part.training
        for parameter in part.parameters():
            assert parameter.grad is None
            assert not parameter.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.network.modules())
    assert not backbone.network.is_gradient_checkpointing
    assert (trainer.soft.tokens.grad.flatten(2).norm(dim=2) > 0).all()
    assert trainer.soft.time.grad.flatten(1).norm(dim=1).nonzero().flatten().tolist() == [64]
    assert not torch.equal(trainer.soft.tokens, start)
    kept = trainer_of(backbone, settings)  # nothing is recomputed
    kept.advance()
    for found, expected in zip(trainer.parameters, kept.parameters, strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-7)
    for values, part in zip(before, parts, strict=True):
        after = part.state_dict().values()
        assert all(torch.equal(a, b) for a, b in zip(values, after, strict=True))


def trained(backbone, pairs, **kwargs):
    settings = {"steps": 5, "batch": 2, "time": True, "lr": 0.05}
    return softrepa.train(backbone, pairs, **(settings | kwargs))


def test_interrupted_and_resumed_equals_uninterrupted(backbone, tmp_path, monkeypatch):
    learnt_from = pairs()
    whole = trained(backbone, learnt_from)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    advance, path, steps = training.TokenTrainer.advance, tmp_path / "deep" / "c.pt", []

    def stop(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(training.TokenTrainer, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(backbone, learnt_from, checkpoint=path)

    def count(self):
        steps.append(self.step)
        return advance(self)

    monkeypatch.setattr(training.TokenTrainer, "advance", count)
    resumed = trained(backbone, learnt_from, checkpoint=path)
    assert steps == [3, 4]
    assert torch.equal(resumed.tokens, whole.tokens)
    assert torch.equal(resumed.time, whole.time)
    assert resumed.config["curve"] == whole.config["curve"]
    assert torch.equal(trained(backbone, learnt_from, checkpoint=path).tokens, whole.tokens)
    assert len(steps) == 2  # nothing was left to do
    with pytest.raises(ValueError, match=r"c\.pt is the checkpoint of .*: lr was 0\.05, now 0\.1"):
        trained(backbone, learnt_from, checkpoint=path, lr=0.1)
    with pytest.raises(ValueError, match="another training: data was"):
        trained(backbone, softrepa.Pairs(pictures(seed=1), CAPTIONS), checkpoint=path)
    bias = backbone.pipe.vae.encoder.conv_in.bias
    with monkeypatch.context() as patch:
        patch.setattr(bias, "data", bias.data + 1)  # another model of the same name
        with pytest.raises(ValueError, match="another training: weights was"):
            trained(backbone, learnt_from, checkpoint=path)
    (tmp_path / "no.pt").write_text("nothing")
    with pytest.raises(ValueError, match=r"no\.pt is .* SoftREPA training saved by"):
        trained(backbone, learnt_from, checkpoint=tmp_path / "no.pt")


def test_it_learns(random_backbone):
    """On one timestep, tokens of a random network lower its loss."""
    contrast = softrepa.Contrast(temperature=0.001, exponential=False, dweight=1.0)
    settings = {"layers": "all", "steps": 20, "batch": 3, "lr": 0.2, "t_range": (300, 301)}
    learnt_from = softrepa.Pairs(pictures(3), CAPTIONS[:3])
    tokens = softrepa.train(random_backbone, learnt_from, contrast=contrast, **settings)
    first, *_, last = tokens.config["curve"]
    assert last["loss"] < first["loss"]
    assert (tokens.config["layers"], last["step"]) == (["down", "mid", "up"], 20)


def test_what_cannot_be_trained(random_backbone):
    trainer = trainer_of(random_backbone)
    trainer.soft.tokens.data.fill_(1e38)
    before = trainer.soft.tokens.detach().clone()
    with pytest.raises(dk.NonFiniteError, match="at step 0"):
        trainer.advance()
    assert torch.equal(trainer.soft.tokens, before)
    bare = softrepa.Pairs(pictures(), CAPTIONS)
    for settings, says in (
        ({"negatives": 2}, "pairs has not 2 false captions of each image"),
        ({"batch": 1}, "batch must be at least 2"),
        ({"lr": float("nan")}, "lr must be"),
        ({"layers": 3}, r"layers of random-epsilon are some of \('down', 'mid', 'up'\)"),
        ({"t_range": (5, 2000)}, "within 0 to 1000"),
    ):
        with pytest.raises(ValueError, match=says):
            softrepa.train(random_backbone, bare, steps=1, **settings)
    with pytest.raises(ValueError, match="6 images, 5 captions"):
        softrepa.Pairs(pictures(), CAPTIONS[:5])
    with pytest.raises(ValueError, match="neither"):
        softrepa.train(dk.load("gaussian"), bare)
    pipe = pipelines.stable_diffusion()
    pipe.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(ValueError, match="EDMEulerScheduler; train them on a model"):
        softrepa.train(pipe, bare, steps=1)


@pytest.mark.parametrize("model", ["shapes", "shapes-flow"])
def test_the_settings_of_the_sweep_fit_their_model(model):
    backbone = dk.load(model, device="cpu")
    for settings in softrepa_sweep.variants(model).values():
        assert Plan(**settings).for_model(backbone).layers
