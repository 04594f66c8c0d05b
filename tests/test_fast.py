"""Cheaper decoders for the reward: exact where they should be, and never in the pictures."""

from __future__ import annotations

import copy
import shutil

import pipelines
import pytest
import torch
from diffusers import AutoencoderTiny
from studies.cheap_decoders import Linear, Resized

import datekit as dk
from datekit.files import weights_path
from datekit.rewards.decoders import Tiny, through

PROMPTS, SEEDS = ["a red circle", "a green star on red"], [0, 1]


def begin(backbone, decoder, reward=None, num_steps=6, rho=0.5):
    method = dk.DATE(reward or pipelines.Brightness(), rho=rho, decoder=decoder)
    return dk.Sampler(backbone, method, num_steps=num_steps).start(PROMPTS, seeds=SEEDS)


def noise(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_a_linear_decoder_is_found_exactly(target):
    """The closed form's decoder is linear in a cell and its neighbours: the fit gives it back."""
    model = dk.load("gaussian")
    latents = noise(2, *model.latent_shape(), dtype=torch.float64)
    before = torch.get_rng_state()
    decoded = Linear().fit(model)(latents)
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(decoded, model.decode(latents), rtol=1e-9, atol=1e-9)
    exact, fast = (begin(model, decoder, target).step().grad for decoder in (None, "linear"))
    torch.testing.assert_close(fast, exact, rtol=1e-6, atol=1e-9)


def test_the_backbones_own_decoder_as_a_function_is_exact(random_backbone):
    exact = begin(random_backbone, None).step().grad
    for decoder in (random_backbone.decode, Resized(1.0)):
        torch.testing.assert_close(begin(random_backbone, decoder).step().grad, exact)


def test_resized_decodes_a_smaller_latent_for_the_reward_alone(random_backbone, brightness):
    latents = noise(2, 4, 16, 16)
    small = through(brightness, "resized").decoder(random_backbone)(latents)
    resized = torch.nn.functional.interpolate(latents, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(small, random_backbone.decode(resized))
    run = begin(random_backbone, "resized", num_steps=3).finish()
    torch.testing.assert_close(run.pixels, random_backbone.decode(run.state.xt).clamp(0, 1))


def test_a_tiny_autoencoder_is_scaled_as_diffusers_does(random_backbone, tmp_path):
    torch.manual_seed(0)
    channels = {f"{part}_block_out_channels": (8, 8, 8) for part in ("encoder", "decoder")}
    blocks = {f"num_{part}_blocks": (1, 1, 1) for part in ("encoder", "decoder")}
    tiny = AutoencoderTiny(**channels, **blocks, scaling_factor=0.5, shift_factor=0.1)
    tiny.save_pretrained(tmp_path)
    backbone, latents = copy.copy(random_backbone), noise(2, 4, 16, 16)
    backbone.tiny = str(tmp_path)
    decoded = Tiny().make(backbone)(latents)
    torch.testing.assert_close(decoded, tiny.decode(latents / 0.5 + 0.1).sample / 2 + 0.5)
    assert begin(backbone, "tiny").step().updated


@pytest.mark.parametrize(("decoder", "least"), [("linear", 0.1), ("tiny", 0.5)])
def test_cheap_decoders_point_where_the_exact_gradient_does(shapes, reward, decoder, least):
    """The mean of 40 random cosines would be 0 with a deviation of 0.004."""
    prompts = dk.shapes.prompts("heldout", 8, seed=1)
    grads = []
    for kind in (None, decoder):
        method = dk.DATE(reward, rho=0.0, decoder=kind)
        run = dk.Sampler(shapes, method, num_steps=6).start(prompts, seeds=range(8)).finish()
        grads.append(run.history.stack("grad").flatten(2))
    cosine = torch.cosine_similarity(*grads, dim=2)
    assert least < cosine[1:].mean() < 0.9999


def test_bad_decoders(brightness):
    with pytest.raises(ValueError, match="Did you mean 'tiny'"):
        dk.DATE(brightness, decoder="tyni")
    with pytest.raises(TypeError, match="a function of latents to images, got int"):
        dk.DATE(brightness, decoder=3)
    with pytest.raises(ValueError, match="no small autoencoder for gaussian"):
        dk.Sampler(dk.load("gaussian"), dk.DATE(brightness, decoder="tiny"))


def test_a_decoder_is_fitted_before_a_method_patches_the_network(shapes, brightness, monkeypatch):
    """However the reward came by it: inside a step, a fit would see the patched network."""
    fitted, own = [], Linear.make
    monkeypatch.setattr(Linear, "make", lambda self, b: fitted.append(b) or own(self, b))
    backbone = copy.copy(shapes)
    sampler = dk.Sampler(backbone, dk.DATE(through(brightness, Linear())) + dk.EBCA())
    assert fitted == [backbone]
    sampler.start(PROMPTS, seeds=SEEDS).step()
    assert fitted == [backbone]


@pytest.mark.parametrize("decoder", ["linear", Resized(0.4)], ids=str)
def test_a_run_is_loaded_by_its_file_alone(tmp_path, decoder):
    reward = dk.rewards.load("shapes-clip")
    for method in (dk.DATE(0.5 * reward, decoder=decoder), dk.DATE(through(reward, decoder))):
        run = dk.Sampler(dk.load("shapes"), method, num_steps=3).start(PROMPTS, seeds=SEEDS)
        run.step(1)
        again = dk.Run.load(run.save(tmp_path / "run.pt"))
        assert repr(again.sampler.method) == repr(method)
        assert torch.equal(again.step().grad, run.step().grad)


def test_a_run_with_a_function_for_a_decoder_needs_its_sampler(tmp_path):
    run = begin(dk.load("shapes"), lambda x: x[:, :3], dk.rewards.load("shapes-clip"), 3)
    with pytest.raises(ValueError, match=r"Run\.load"):
        dk.Run.load(run.save(tmp_path / "run.pt"))


def test_which_tiny_decoder_a_model_gets(tmp_path, random_backbone):
    """That of the shapes world for what its recipe made, whatever the folder is called."""
    assert dk.load("shapes").tiny == dk.load("shapes-flow").tiny == str(weights_path("tiny"))
    shutil.copytree(weights_path("pipeline"), tmp_path / "mine")
    assert dk.load(tmp_path / "mine").tiny == str(tmp_path / "tiny")
    assert random_backbone.tiny == "madebyollin/taesd"
