"""A method inside diffusers against `dk.Sampler`: as callback, as modular block, as a folder."""

from __future__ import annotations

import functools
import itertools

import diffusers
import families
import pytest
import torch
from pipelines import Brightness
from test_families import PROMPTS as TEXTS
from test_families import unpacked as as_in_the_loop

import datekit as dk

PROMPTS, STEPS = TEXTS[:2], 4
REWARD = Brightness()
DATE = dk.DATE(REWARD, rho=2.0)
METHODS = {
    "original": DATE,
    "running": dk.DATE(REWARD, rho=2.0, anchor="running", when=dk.every(2), inner_steps=2),
    "reset": dk.DATE(REWARD, rho=2.0, anchor="reset", when=dk.steps(1, 3), between="revert"),
    "random": dk.RandomDirection(2.0, when=dk.steps(0, 2)),
}
NAMES = [name for name in families.KINDS if name not in ("sd-sample", "pixart-alpha")]
NAMES += ["shapes"]
OTHERS = [name for name in NAMES if name not in ("sd", "flux")]


@functools.cache
def wrapped(name):
    """A backbone of the tests' families, or the shipped model."""
    if not name.startswith("shapes"):
        return families.backbone(name)
    backbone = dk.load(name, device="cpu")
    backbone.pipe.set_progress_bar_config(disable=True)
    return backbone


def said(backbone, w=3.0, **kwargs):
    """What a user of diffusers says in the call."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(2)]
    said = {"num_inference_steps": STEPS, "guidance_scale": w, "generator": generators}
    if hasattr(backbone, "text_length"):
        said["max_sequence_length"] = backbone.text_length
    if backbone.name in ("sana", *families.SIDES):
        said |= {"height": 64, "width": 64}
    if backbone.name == "sana":
        said["use_resolution_binning"] = False
    if backbone.name == "z-image":
        said["guidance_scale"] = w - 1
    if backbone.name == "flux" and "negative_prompt" in kwargs:
        said |= {"true_cfg_scale": w, "guidance_scale": backbone.distilled_guidance}
    if backbone.name == "qwen-image":  # which guides where it has a negative prompt
        said |= {"guidance_scale": None, "true_cfg_scale": w}
        said |= {"negative_prompt": [" ", " "]} if w > 1 else {"true_cfg_scale": 4.0}
    return said | {"output_type": "latent"} | kwargs


def unpacked(backbone, latents):
    """Latents that a pipeline returned as datekit has them."""
    return as_in_the_loop(backbone, latents, (64, 64))


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


@pytest.mark.parametrize(
    ("name", "kind"),
    [*itertools.product(("sd", "flux"), METHODS), *((name, "running") for name in OTHERS)],
)
def test_equals_the_sampler(name, kind):
    backbone, method = wrapped(name), METHODS[kind]
    guide, plain = dk.callback(method, backbone.pipe), begin(backbone, dk.Fixed()).finish()
    call = guide.arguments(prompt=PROMPTS, **said(backbone))
    latents = unpacked(backbone, backbone.pipe(**call).images)
    effect = (plain.state.xt - latents).abs().max()
    assert effect > 20 * check(begin(backbone, method), guide, latents)


@pytest.mark.parametrize("name", NAMES)
def test_guidance_negative_prompts_and_memory_are_followed(name):
    """A scale of 1 is no guidance; FLUX has a scale of its own beside that of the two branches."""
    backbone = wrapped(name)
    method = dk.DATE(REWARD, rho=0.3, update="both") if name in BLOCKS else DATE
    guide = dk.callback(method, backbone.pipe, micro_batch=1)
    texts = ["a blue square", "a star"] if name != "flux2-klein" else None  # which takes none
    for w, negative in ((2.0, texts), (1.0, None)):
        more = {} if negative is None else {"negative_prompt": negative}
        call = guide.arguments(prompt=PROMPTS, **said(backbone, w, **more))
        latents = unpacked(backbone, backbone.pipe(**call).images)
        check(begin(backbone, method, w, negative, micro_batch=1), guide, latents)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", [dk.Fixed(), dk.DATE(REWARD, rho=0.0)], ids=["fixed", "zero"])
def test_what_moves_nothing_is_the_plain_call_bit_for_bit(name, method):
    backbone = wrapped(name)
    guide, pipe = dk.callback(method, backbone.pipe), backbone.pipe
    told = {"prompt": list(PROMPTS)}  # a list in which Z-Image writes
    plain = pipe(**told, **said(backbone)).images
    call = guide.arguments(prompt=PROMPTS, **said(backbone))
    assert torch.equal(pipe(**call).images, plain)
    assert not guide.history.updated
    assert guide.history.stack("distance").max() == 0


def test_a_size_that_sana_draws_in_another_one():
    backbone = wrapped("sana")
    told = {"height": 500, "width": 530, "use_resolution_binning": True, "num_inference_steps": 1}
    plain = backbone.pipe(PROMPTS, **said(backbone, **told)).images
    guide = dk.callback(dk.Fixed(), backbone.pipe)
    call = guide.arguments(PROMPTS, **said(backbone, **told))
    assert torch.equal(backbone.pipe(**call).images, plain)
    assert guide.history[0].xt.shape == plain.shape == (2, 4, 120, 128)  # 480 x 512 pixels


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


def test_with_eta_the_noise_is_that_of_the_pipelines_generators():
    """The plain call to the bit where nothing moves, and the sampler's run on the same noise."""
    backbone = wrapped("sd")
    pipe, told = backbone.pipe, functools.partial(said, backbone, eta=0.6)
    fixed = dk.callback(dk.Fixed(), pipe)
    assert torch.equal(
        pipe(**fixed.arguments(PROMPTS, **told())).images, pipe(PROMPTS, **told())[0]
    )
    guide, shape = dk.callback(DATE, pipe), (1, *backbone.latent_shape())
    latents = pipe(**guide.arguments(PROMPTS, **told())).images
    sources = told()["generator"]
    draws = [[torch.randn(shape, generator=source) for source in sources] for _ in range(STEPS + 1)]
    noise = torch.stack([torch.cat(rows) for rows in draws])
    run = begin(backbone, DATE, eta=0.6)
    check(dk.Run(run.sampler, run.state.replace(noise=noise[1:])), guide, latents)
    with pytest.raises(ValueError, match="eta"):
        dk.callback(DATE, wrapped("sdxl").pipe).arguments("a star", eta=0.6)


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
    with pytest.raises(TypeError, match="must be a method such as"):
        dk.callback(REWARD, pipe)
    told = guide.arguments("a star", num_inference_steps=3, output_type="latent")
    with pytest.raises(RuntimeError, match=r"call pipe\(\*\*guide.arguments"):
        pipe(**told | {"num_inference_steps": 5})
    with pytest.raises(RuntimeError, match=r"call pipe\(\*\*guide.arguments"):
        pipe("a star", num_inference_steps=3, callback_on_step_end=dk.callback(DATE, pipe))


BLOCKS = {
    "sdxl": diffusers.StableDiffusionXLAutoBlocks,
    "sd3": diffusers.StableDiffusion3AutoBlocks,
}


def modular(name, **guidance):
    """A modular pipeline of the parts of a backbone, and what is said in its call."""
    backbone, pipe = wrapped(name), BLOCKS[name]().init_pipeline()
    parts = backbone.pipe.components
    kept = {name: parts[name] for name in pipe.component_names if name in parts}
    kept["guider"] = diffusers.ClassifierFreeGuidance(**{"guidance_scale": 3.0} | guidance)
    pipe.update_components(**kept)
    told = {key: value for key, value in said(backbone).items() if key != "guidance_scale"}
    negative = "" if name == "sd3" else None  # without any it does not guide
    side = backbone.network.config.sample_size * backbone.factor
    told |= {"height": side, "width": side, "output": "latents", "prompt": PROMPTS}
    return backbone, pipe, told | {"negative_prompt": negative}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_block_equals_the_sampler(name, method):
    backbone, pipe, told = modular(name)
    guide = dk.block(method, pipe)
    latents = guide.pipe(**told)
    assert (pipe(**told | {"generator": said(backbone)["generator"]}) - latents).abs().max() > 1e-3
    check(begin(backbone, method), guide, latents)
    again = guide.pipe(**told | {"generator": said(backbone)["generator"]})
    assert torch.equal(again, latents)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_follows_what_the_modular_pipeline_is_told(name):
    """Guidance, negative prompts, more pictures of a prompt, pooled updates, memory."""
    method = dk.DATE(REWARD, rho=0.3, update="both")
    backbone, pipe, told = modular(name, guidance_scale=2.0)
    told |= {"prompt": PROMPTS[0], "num_images_per_prompt": 2, "negative_prompt": "a star"}
    guide = dk.block(method, pipe, micro_batch=1)
    sampler = begin(backbone, method, 2.0, micro_batch=1).sampler
    run = sampler.start(PROMPTS[0], seeds=[0, 1], negative_prompts="a star")
    check(run, guide, guide.pipe(**told))
    backbone, pipe, told = modular(name, guidance_scale=1.0)
    guide = dk.block(method, pipe)
    check(begin(backbone, method, 1.0), guide, guide.pipe(**told))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_that_moves_nothing_is_the_modular_pipeline_bit_for_bit(name):
    for method in (dk.Fixed(), dk.DATE(REWARD, rho=0.0)):
        (_, plain, told), (_, pipe, same) = modular(name), modular(name)
        assert torch.equal(plain(**told), dk.block(method, pipe).pipe(**same))


def test_what_a_block_cannot_do_is_refused():
    with pytest.raises(TypeError, match="not a ModularPipeline"):
        dk.block(DATE, wrapped("sdxl").pipe)
    with pytest.raises(TypeError, match="0 loops"):
        dk.block(DATE, diffusers.FluxAutoBlocks().init_pipeline())
    _, pipe, told = modular("sdxl")
    with pytest.raises(ValueError, match="does more than move"):
        dk.block(dk.EBCA(), pipe)
    with pytest.raises(ValueError, match="own timesteps"):
        dk.block(DATE, pipe).pipe(**told | {"timesteps": [900, 500, 100, 1]})
    for guidance in ({"guidance_rescale": 0.5}, {"stop": 0.5}):
        _, pipe, told = modular("sdxl", **guidance)
        with pytest.raises(ValueError, match="nothing but a guidance_scale"):
            dk.block(DATE, pipe).pipe(**told)


@pytest.mark.parametrize("name", ["SD", "SDXL", "SD3", "FLUX", "Z_IMAGE"])
def test_a_folder_for_from_pretrained_takes_a_method(name, tmp_path, monkeypatch):
    """On the shipped models, where there is one of the family."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    known = {"SD": "shapes", "SD3": "shapes-flow", "Z_IMAGE": "z-image"}
    backbone = wrapped(known.get(name, name.lower()))
    shipped = dk.backbones.SHIPPED.get(backbone.source)
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        dk.shapes.WEIGHTS / shipped if shipped else backbone.source,
        custom_pipeline=getattr(dk.pipelines, name),
        trust_remote_code=True,
        torch_dtype=torch.float32,  # also before diffusers 0.40
        **{part: None for part, value in backbone.pipe.components.items() if value is None},
    )
    pipe.set_progress_bar_config(disable=True)
    method, told = dk.DATE(REWARD, rho=2.0, when=dk.every(2)), functools.partial(said, backbone)
    assert torch.equal(pipe(list(PROMPTS), **told())[0], backbone.pipe(list(PROMPTS), **told())[0])
    latents = pipe(PROMPTS, method=method, memory={"micro_batch": 1}, **told()).images
    check(begin(backbone, method), pipe.guide, unpacked(backbone, latents))
    assert type(dk.wrap(pipe)) is type(backbone)
