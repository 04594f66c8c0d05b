"""`dk.callback` in diffusers' own `__call__` against `dk.Sampler`, two ways to the same latents."""

from __future__ import annotations

import functools

import diffusers
import families
import pytest
import torch
from pipelines import Brightness

import datekit as dk

PROMPTS = ["a red circle left of a blue square", "a green star"]
STEPS = 4
REWARD = Brightness()
DATE = dk.DATE(REWARD, rho=2.0)
METHODS = {
    "original": DATE,
    "running": dk.DATE(REWARD, rho=2.0, anchor="running", when=dk.every(2), inner_steps=2),
    "reset": dk.DATE(REWARD, rho=2.0, anchor="reset", when=dk.steps(1, 3), between="revert"),
    "random": dk.RandomDirection(2.0, when=dk.steps(0, 2)),
}
NAMES = ("sd", "sdxl", "sd3", "flux", "shapes")


@functools.cache
def wrapped(name):
    """A backbone of the tests' families, or the shipped model."""
    if name != "shapes":
        return families.backbone(name)
    backbone = dk.load("shapes", device="cpu")
    backbone.pipe.set_progress_bar_config(disable=True)
    return backbone


def said(backbone, w=3.0, **kwargs):
    """What a user of diffusers says in the call."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(2)]
    said = {"num_inference_steps": STEPS, "guidance_scale": w, "generator": generators}
    if hasattr(backbone, "text_length"):
        said["max_sequence_length"] = backbone.text_length
    if backbone.name == "flux":
        side = backbone.sample_size * backbone.factor
        said |= {"height": side, "width": side}
        if "negative_prompt" in kwargs:
            said |= {"true_cfg_scale": w, "guidance_scale": backbone.distilled_guidance}
    return said | {"output_type": "latent"} | kwargs


def unpacked(backbone, latents):
    """FLUX's latents as datekit has them, the others as they are."""
    side, factor = 16 * backbone.factor, backbone.factor
    if latents.ndim == 4:
        return latents
    return backbone.pipe._unpack_latents(latents, side, side, factor)


def begin(backbone, method, w=3.0, negative=None, **memory):
    """The same by `dk.Sampler`."""
    settings = {"num_steps": STEPS, "guidance_scale": w, "solver": "own"} | memory
    sampler = dk.Sampler(backbone, method, **settings)
    return sampler.start(PROMPTS, seeds=[0, 1], negative_prompts=negative)


def check(run, guide, latents):
    """Latents, rewards and distances are those of the run; the largest difference of latents."""
    off = (run.finish().state.xt - latents).abs().max()
    assert off <= 1e-4
    assert guide.history.updated == run.history.updated
    names = ("distance", "c", "xt", "h") if run.sampler.method.reward else ("distance", "c", "xt")
    for name in names:
        ours, theirs = guide.history.stack(name), run.history.stack(name)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    return off


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_equals_the_sampler(name, method):
    backbone = wrapped(name)
    guide, plain = dk.callback(method, backbone.pipe), begin(backbone, dk.Fixed()).finish()
    latents = backbone.pipe(**guide.arguments(PROMPTS, **said(backbone))).images
    latents = unpacked(backbone, latents)
    effect = (plain.state.xt - latents).abs().max()
    assert effect > 20 * check(begin(backbone, method), guide, latents)


@pytest.mark.parametrize("name", NAMES)
def test_guidance_negative_prompts_and_memory_are_followed(name):
    """A scale of 1 is no guidance; FLUX has a scale of its own beside that of the two branches."""
    backbone = wrapped(name)
    guide = dk.callback(DATE, backbone.pipe, micro_batch=1)
    for w, negative in ((2.0, ["a blue square", "a star"]), (1.0, None)):
        told = (
            said(backbone, w) if negative is None else said(backbone, w, negative_prompt=negative)
        )
        latents = backbone.pipe(**guide.arguments(PROMPTS, **told)).images
        check(begin(backbone, DATE, w, negative, micro_batch=1), guide, unpacked(backbone, latents))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", [dk.Fixed(), dk.DATE(REWARD, rho=0.0)], ids=["fixed", "zero"])
def test_what_moves_nothing_is_the_plain_call_bit_for_bit(name, method):
    backbone = wrapped(name)
    guide, pipe = dk.callback(method, backbone.pipe), backbone.pipe
    plain = pipe(PROMPTS, **said(backbone)).images
    assert torch.equal(pipe(**guide.arguments(PROMPTS, **said(backbone))).images, plain)
    assert not guide.history.updated
    assert guide.history.stack("distance").max() == 0


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_pooled_updates(name):
    backbone = wrapped(name)
    method = dk.DATE(REWARD, rho=0.3, update="both")
    guide = dk.callback(method, backbone.pipe)
    latents = backbone.pipe(**guide.arguments(PROMPTS, **said(backbone))).images
    check(begin(backbone, method), guide, latents)


def test_the_scheduler_of_the_moment_and_each_call_afresh():
    """A solver with a past, one generator for all, more pictures of a prompt, the same again."""
    pipe = families.fresh("sd").pipe
    guide = dk.callback(DATE, pipe)
    pipe(**guide.arguments("a star", num_inference_steps=2, output_type="latent"))
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    told = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "latent"}
    generator = torch.Generator("cpu").manual_seed(0)
    call = guide.arguments(["a green star"] * 2, generator=generator, **told)
    first, again = pipe(**call).images, pipe(**call).images
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator("cpu").manual_seed(0))
    sampler = dk.Sampler(dk.wrap(pipe), DATE, num_steps=STEPS, guidance_scale=3.0, solver="own")
    run = sampler.start(["a green star"] * 2, seeds=[0, 1], latents=latents)
    check(run, guide, first)
    assert torch.equal(first, again)
    assert len(guide.history) == STEPS


def test_what_a_callback_cannot_do_is_refused():
    pipe, flux = families.backbone("sd").pipe, families.backbone("flux").pipe
    with pytest.raises(TypeError, match="no callback_on_step_end"):
        dk.callback(DATE, families.backbone("pixart-alpha").pipe)
    with pytest.raises(TypeError, match="not a pipeline among"):
        dk.callback(DATE, families.backbone("sd"))
    for method in (dk.EBCA(), dk.UniversalGuidance(REWARD), DATE + dk.EBCA()):
        with pytest.raises(ValueError, match="does more than move the embedding"):
            dk.callback(method, pipe)
    with pytest.raises(ValueError, match="cannot move a pooled vector"):
        dk.callback(dk.DATE(REWARD, update="pooled"), flux)
    guide = dk.callback(DATE, pipe)
    others = {"guidance_rescale": 0.5, "num_images_per_prompt": 2, "clip_skip": 1}
    others |= {"prompt_embeds": torch.zeros(1, 2, 3), "callback_on_step_end": print}
    for name, value in others.items():
        with pytest.raises(ValueError, match=f"cannot follow {name}"):
            guide.arguments("a star", **{name: value})
    with pytest.raises(ValueError, match="seeds"):
        guide.arguments("a star", generator=[torch.Generator(), torch.Generator()])
    with pytest.raises(TypeError, match="multiple values"):
        pipe(**guide.arguments("a star"), num_inference_steps=3)
