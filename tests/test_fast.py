"""Cheaper decoders for the reward: exact where they should be, and never in the pictures."""

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
    linear = Linear(steps=4, ridge=1e-12)
    decoded = linear.fitted(model)(latents)
    torch.testing.assert_close(decoded, model.decode(latents), rtol=1e-5, atol=1e-6)
    exact, fast = (begin(model, decoder, target).step().grad for decoder in (None, linear))
    assert (torch.cosine_similarity(exact.flatten(1), fast.flatten(1)) > 0.99999).all()


def test_the_fit_is_the_least_squares_solution(random_backbone):
    """Against torch's own solver, on the same pictures; and no random state is disturbed."""
    kind = Linear(captions=("a red circle", "a star"), steps=2, side=1, ridge=0.0)
    before = torch.get_rng_state()
    weight, factor = kind.fit(random_backbone)
    assert torch.equal(weight, kind.fit(random_backbone)[0])
    assert torch.equal(before, torch.get_rng_state())
    latents = kind.draw(random_backbone)
    with torch.no_grad():
        images = random_backbone.decode(latents)
    cells = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    n, _, h, w = latents.shape
    blocks = images.view(n, 3, h, factor, w, factor).permute(0, 2, 4, 1, 3, 5)
    rows = torch.cat([cells, torch.ones(len(cells), 1)], 1).double()
    solution = torch.linalg.lstsq(rows, blocks.reshape(n * h * w, -1).double()).solution
    torch.testing.assert_close(weight.T.double(), solution, rtol=1e-3, atol=1e-4)
    assert factor == 4


def test_the_backbones_own_decoder_as_a_function_is_exact(random_backbone):
    assert dk.DATE(pipelines.Brightness()).decoder is None
    exact = begin(random_backbone, None).step().grad
    for decoder in (random_backbone.decode, Resized(1.0)):
        assert torch.equal(begin(random_backbone, decoder).step().grad, exact)


def test_resized_decodes_a_smaller_latent(random_backbone, brightness):
    latents = noise(2, 4, 16, 16)
    small = through(brightness, Resized(0.5)).decoder(random_backbone)(latents)
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
    lambda r: r, lambda r: 0.5 * r, lambda r: r + Seeing(16),
    lambda r: dk.rewards.per_concept(r, lambda p: [p, p], "sum"),
    lambda r: r.standardised(torch.rand(3, 3, 8, 8), ["a", "b", "c"]),
], ids=["itself", "weighted", "sum", "parts", "standardised"])  # fmt: skip
def test_resized_takes_the_size_that_the_reward_takes(random_backbone, wrapped):
    reward = Seeing(32)
    begin(random_backbone, "resized", wrapped(reward)).peek()
    assert reward.seen[-1] == (32, 32)


def test_resized_takes_the_size_that_a_plain_function_says(random_backbone):
    seen = []

    def plain(images, prompts):
        seen.append(tuple(images.shape[-2:]))
        return images.mean(dim=(1, 2, 3))

    for size, wanted in ((None, (64, 64)), ((32, 32), (32, 32))):
        plain.size = size
        begin(random_backbone, "resized", plain).peek()
        assert seen[-1] == wanted
    assert (Seeing(32) + Seeing(None)).size is None  # one of them may want it all


def test_a_tiny_autoencoder_is_scaled_as_diffusers_does(random_backbone, brightness):
    torch.manual_seed(0)
    channels = {f"{part}_block_out_channels": (8, 8, 8) for part in ("encoder", "decoder")}
    blocks = {f"num_{part}_blocks": (1, 1, 1) for part in ("encoder", "decoder")}
    tiny = AutoencoderTiny(**channels, **blocks, scaling_factor=0.5)
    latents = noise(2, 4, 16, 16)
    decoded = through(brightness, tiny).decoder(random_backbone)(latents)
    torch.testing.assert_close(decoded, tiny.decode(latents / 0.5).sample / 2 + 0.5)
    assert begin(random_backbone, tiny).step().updated
    assert not any(p.requires_grad for p in tiny.parameters())


def test_pictures_peeks_and_saved_runs(random_backbone, brightness, tmp_path):
    """Pictures are decoded by the backbone; a peek shows the gradient that the step takes."""
    run = begin(random_backbone, Resized(0.5), num_steps=3)
    look = run.peek()
    assert torch.equal(look.grad, run.step().grad)
    loaded = dk.Run.load(run.save(tmp_path / "run.pt"), run.sampler)
    assert torch.equal(loaded.finish().state.xt, run.finish().state.xt)
    torch.testing.assert_close(run.pixels, random_backbone.decode(run.state.xt).clamp(0, 1))
    with torch.no_grad():
        h = brightness(random_backbone.decode(run.history[0].x0bar_hat), PROMPTS)
    torch.testing.assert_close(run.rewards()[0], h)


@pytest.mark.parametrize("decoder", ["linear", "tiny"])
def test_cheap_decoders_point_where_the_exact_gradient_does(shapes, reward, decoder):
    """A random direction has a cosine of about 0.026; these are far from random, and not exact."""
    runs = [begin(shapes, kind, reward, rho=0.0).finish() for kind in (None, decoder)]
    exact, fast = (run.history.stack("grad").flatten(2) for run in runs)
    cosine = torch.cosine_similarity(exact, fast, dim=2)
    assert cosine.shape == (6, 2)
    assert 0.2 < cosine[1:].mean() < 0.9999


def test_bad_decoders(brightness):
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
        again = dk.Run.load(run.save(tmp_path / "run.pt"))
        assert repr(again.sampler.method) == repr(method)
        assert torch.equal(again.step().grad, run.step().grad)


def test_a_run_with_a_module_for_a_decoder_needs_its_sampler(tmp_path):
    run = begin(dk.load("shapes"), torch.nn.Identity(), dk.rewards.load("shapes-clip"), 3)
    with pytest.raises(ValueError, match=r"Run\.load"):
        dk.Run.load(run.save(tmp_path / "run.pt"))


@pytest.mark.parametrize(("source", "theirs"), [
    ("shapes", True), ("folder", True), ("shapeshifter/sd-finetune", False), (None, False),
])  # fmt: skip
def test_which_decoder_and_captions_a_model_gets(tmp_path, random_backbone, source, theirs):
    """Those of the shapes world for what its recipe made, whatever the folder is called."""
    if source == "folder":
        (tmp_path / "pipeline").mkdir()
        (tmp_path / "tiny").mkdir()
        (tmp_path / "pipeline" / "datekit.json").write_text("{}")
        source = str(tmp_path / "pipeline")
    backbone = copy.copy(random_backbone)
    backbone.source = source
    assert ("circle" in " ".join(decoders._captions(backbone))) == theirs
    assert decoders._published(backbone).endswith("tiny") == theirs
