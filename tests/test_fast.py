"""Cheaper decoders for the reward: exact where they should be, approximate where they say so, and never in the pictures."""

from __future__ import annotations

import copy

import families
import pipelines
import pytest
import torch
from diffusers import AutoencoderTiny

import datekit as dk
from datekit.rewards import decoders
from datekit.rewards.decoders import Linear, Resized, Tiny, through

PROMPTS, SEEDS, W = ["a red circle", "a green star on red"], [0, 1], 4.0


def looked(backbone, decoder, reward=None, **kw):
    reward = reward or pipelines.Brightness()
    return (
        dk.Sampler(backbone, dk.DATE(reward, rho=0.5, decoder=decoder), num_steps=6, **kw)
        .start(PROMPTS, seeds=SEEDS)
        .step()
    )


def test_off_by_default(brightness):
    method = dk.DATE(brightness)
    assert method.decoder is None
    assert method.reward is brightness


def test_a_linear_decoder_is_found_exactly(target):
    """The closed form's decoder is linear in a cell and its neighbours: least squares gives it back."""
    model = dk.load("gaussian")
    latents = torch.randn(
        2, *model.latent_shape(), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    found = Linear(steps=4, ridge=1e-12).fitted(model)(latents)
    torch.testing.assert_close(found, model.decode(latents), rtol=1e-5, atol=1e-6)
    exact, fast = (looked(model, d, target) for d in (None, Linear(steps=4, ridge=1e-12)))
    assert (
        torch.nn.functional.cosine_similarity(exact.grad.flatten(1), fast.grad.flatten(1)) > 0.99999
    ).all()


def test_the_fit_is_the_least_squares_solution(random_backbone):
    """Against torch's own solver, on the same pictures, cell by cell."""
    kind = Linear(captions=("a red circle", "a star"), steps=2, side=1, ridge=0.0)
    weight, factor = kind.fit(random_backbone)
    latents = kind.draw(random_backbone)
    with torch.no_grad():
        images = random_backbone.decode(latents)
    cells = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    n, _, h, w = latents.shape
    blocks = (
        images.view(n, 3, h, factor, w, factor).permute(0, 2, 4, 1, 3, 5).reshape(n * h * w, -1)
    )
    rows = torch.cat([cells, torch.ones(len(cells), 1)], 1).double()
    expected = torch.linalg.lstsq(rows, blocks.double()).solution
    torch.testing.assert_close(weight.T.double(), expected, rtol=1e-3, atol=1e-4)
    assert factor == 4


def test_the_fit_is_the_same_every_time_and_disturbs_no_random_state(random_backbone):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (
        Linear(captions=("a star",), steps=2).fit(random_backbone)[0] for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_the_backbones_own_decoder_as_a_function_is_exact(random_backbone):
    exact = looked(random_backbone, None)
    for decoder in (random_backbone.decode, Resized(1.0)):
        assert torch.equal(looked(random_backbone, decoder).grad, exact.grad)


def test_resized_decodes_a_smaller_latent(random_backbone, brightness):
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    small = through(brightness, Resized(0.5)).decoder(random_backbone)(latents)
    assert small.shape == (2, 3, 32, 32)
    resized = torch.nn.functional.interpolate(latents, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(small, random_backbone.decode(resized))


class Seeing(dk.rewards.Reward):
    """Brightness of a size, that notes what it is shown."""

    def __init__(self, side: int | None) -> None:
        self.seen, self.size = [], None if side is None else (side, side)

    def forward(self, images, prompts):
        self.seen.append(tuple(images.shape[-2:]))
        return images.mean(dim=(1, 2, 3))


@pytest.mark.parametrize("wrapped", [
    lambda r: r, lambda r: 0.5 * r, lambda r: r + Seeing(16), lambda r: dk.rewards.per_concept(r, lambda p: [p, p], "sum"),
    lambda r: r.standardised(torch.rand(3, 3, 8, 8), ["a", "b", "c"]),
], ids=["itself", "weighted", "sum", "parts", "standardised"])  # fmt: skip
def test_resized_takes_the_size_that_the_reward_takes(random_backbone, wrapped):
    reward = Seeing(32)
    sampler = dk.Sampler(random_backbone, dk.DATE(wrapped(reward), decoder="resized"), num_steps=3)
    sampler.start(PROMPTS, seeds=SEEDS).peek()
    assert reward.seen[-1] == (32, 32)


def test_resized_takes_the_size_that_a_plain_function_says(random_backbone):
    seen = []

    def plain(images, prompts):
        seen.append(tuple(images.shape[-2:]))
        return images.mean(dim=(1, 2, 3))

    for size, wanted in ((None, (64, 64)), ((32, 32), (32, 32))):
        plain.size = size
        sampler = dk.Sampler(random_backbone, dk.DATE(plain, decoder="resized"), num_steps=3)
        sampler.start(PROMPTS, seeds=SEEDS).peek()
        assert seen[-1] == wanted
    mixed = Seeing(32) + Seeing(None)
    assert mixed.size is None  # one of them may want it all


def test_a_tiny_autoencoder_is_scaled_as_diffusers_does(random_backbone, brightness):
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        scaling_factor=0.5,
    )
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found = through(brightness, tiny).decoder(random_backbone)(latents)
    torch.testing.assert_close(found, tiny.decode(latents / 0.5).sample / 2 + 0.5)
    assert looked(random_backbone, tiny).updated
    assert not any(p.requires_grad for p in tiny.parameters())


def test_pictures_and_peeks(random_backbone, brightness):
    """Pictures are decoded by the backbone; a peek shows the gradient that the step takes."""
    run = dk.Sampler(random_backbone, dk.DATE(brightness, decoder=Resized(0.5)), num_steps=3).start(
        PROMPTS, seeds=SEEDS
    )
    look = run.peek()
    assert torch.equal(look.grad, run.step().grad)
    run.finish()
    torch.testing.assert_close(run.pixels, random_backbone.decode(run.state.xt).clamp(0, 1))
    with torch.no_grad():
        expected = brightness(random_backbone.decode(run.history[0].x0bar_hat), PROMPTS)
    torch.testing.assert_close(run.rewards()[0], expected)


def test_a_saved_run_goes_on(random_backbone, brightness, tmp_path):
    sampler = dk.Sampler(random_backbone, dk.DATE(brightness, decoder=Resized(0.5)), num_steps=3)
    run = sampler.start(PROMPTS, seeds=SEEDS)
    run.step()
    loaded = dk.Run.load(run.save(tmp_path / "run.pt"), sampler)
    assert torch.equal(loaded.finish().state.xt, run.finish().state.xt)


@pytest.mark.parametrize("decoder", ["linear", "tiny"])
def test_cheap_decoders_point_where_the_exact_gradient_does(shapes, reward, decoder):
    """In 16 x 96 dimensions a random direction has a cosine of 0.026 in size; these are far from random, and not exact."""
    exact, fast = (
        dk.Sampler(shapes, dk.DATE(reward, rho=0.0, decoder=kind), num_steps=6)
        .start(PROMPTS, seeds=SEEDS)
        .finish()
        for kind in (None, decoder)
    )
    cosine = torch.nn.functional.cosine_similarity(
        exact.history.stack("grad").flatten(2), fast.history.stack("grad").flatten(2), dim=2
    )
    assert cosine.shape == (6, 2)
    assert 0.2 < cosine[1:].mean() < 0.9999


def test_bad_decoders(shapes, brightness):
    with pytest.raises(ValueError, match="linear"):
        dk.DATE(brightness, decoder="linaer")
    with pytest.raises(TypeError, match="decoder"):
        dk.DATE(brightness, decoder=3)
    with pytest.raises(ValueError, match="scale"):
        Resized(1.5)
    with pytest.raises(ValueError, match="no small autoencoder"):
        dk.Sampler(families.backbone("sd3"), dk.DATE(brightness, decoder="tiny"))
    assert Tiny("folder").source == "folder"


@pytest.mark.parametrize(
    "decoder", ["resized", Resized(0.5), Linear(steps=2, captions=("a red circle",))], ids=str
)
def test_a_run_is_loaded_by_its_file_alone(tmp_path, decoder):
    reward = dk.rewards.load("shapes-clip")
    for method in (dk.DATE(0.5 * reward, decoder=decoder), dk.DATE(through(reward, decoder))):
        run = dk.Sampler(dk.load("shapes"), method, num_steps=3).start(PROMPTS, seeds=SEEDS)
        run.step(1)
        run.save(tmp_path / "run.pt")
        again = dk.Run.load(tmp_path / "run.pt")
        assert repr(again.sampler.method) == repr(method)
        assert torch.equal(again.step().grad, run.step().grad)
    run = dk.Sampler(
        dk.load("shapes"), dk.DATE(reward, decoder=torch.nn.Identity()), num_steps=3
    ).start(PROMPTS, seeds=SEEDS)
    run.save(tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"Run\.load"):
        dk.Run.load(tmp_path / "run.pt")


@pytest.mark.parametrize(
    ("source", "theirs"),
    [("shapes", True), ("folder", True), ("shapeshifter/sd-finetune", False), (None, False)],
)
def test_which_decoder_and_captions_a_model_of_the_shapes_world_gets(
    tmp_path, random_backbone, source, theirs
):
    """Shipped or trained by the recipe, whatever its folder is called; not by how the name of another model begins."""
    if source == "folder":
        (tmp_path / "pipeline").mkdir()
        (tmp_path / "tiny").mkdir()
        (tmp_path / "pipeline" / "datekit.json").write_text("{}")
        source = str(tmp_path / "pipeline")
    backbone = copy.copy(random_backbone)
    backbone.source = source
    assert (decoders._shapes_folder(backbone) is not None) == theirs
    assert decoders._published(backbone).endswith("tiny") == theirs
