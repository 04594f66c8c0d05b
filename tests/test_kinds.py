"""A pipeline is taken by its forward pass, whatever its class is called, or refused with why."""

from __future__ import annotations

import diffusers
import families
import pytest
import torch
from test_families import PROMPTS, begin, pipeline_latents

import datekit as dk

TAKEN = [
    ("sd", diffusers.StableDiffusionImg2ImgPipeline),
    ("sd", diffusers.StableDiffusionInpaintPipeline),
    ("sdxl", diffusers.StableDiffusionXLImg2ImgPipeline),
    ("sdxl", diffusers.StableDiffusionXLInpaintPipeline),
    ("sd3", diffusers.StableDiffusion3Img2ImgPipeline),
    ("flux", diffusers.FluxInpaintPipeline),
    ("z-image", diffusers.ZImageImg2ImgPipeline),
    ("qwen-image", diffusers.QwenImageImg2ImgPipeline),
]


def subclass(cls, *changed):
    """A subclass of a pipeline, with functions of another meaning."""
    return type("Mine", (cls,), dict.fromkeys(changed, lambda self, *args, **kwargs: None))


def made(name, cls=None):
    """A pipeline of a family, as one of another class with the same parts."""
    pipe = families.FAMILIES[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe if cls is None else cls.from_pipe(pipe)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(("name", "cls"), TAKEN)
def test_the_same_forward_pass_samples_as_the_pipeline_from_text(name, cls, bare):
    """The class itself and a subclass of it that changes no part of the pass."""
    own, settings = made(name), families.settings(name) | {"name": name}
    if bare:
        cls = subclass(type(own) if name.startswith("sd") else cls, "check_inputs")
    run = begin(dk.wrap(cls.from_pipe(own), **settings)).finish()
    theirs = pipeline_latents(dk.wrap(own, **settings), "own", PROMPTS[:1], [0], 3.0)
    assert (run.state.xt - theirs).abs().max() <= 1e-4


def with_controlnet():
    pipe = made("sd")
    net = diffusers.ControlNetModel.from_unet(pipe.unet)
    return diffusers.StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)


ANOTHER_CALL = subclass(diffusers.StableDiffusionPipeline, "__call__")
ANOTHER_SIZE = subclass(diffusers.StableDiffusionXLPipeline, "_get_add_time_ids")


@pytest.mark.parametrize(("name", "cls", "says"), [
    ("sd", ANOTHER_CALL, "changes __call__ of StableDiffusionPipeline"),
    ("sdxl", ANOTHER_SIZE, "changes _get_add_time_ids of StableDiffusionXLPipeline"),
    ("sd", diffusers.StableDiffusionPAGPipeline, "has its own __call__"),
    ("pixart-sigma", diffusers.PixArtSigmaPAGPipeline, "has its own __call__"),
    ("sd", diffusers.StableDiffusionSAGPipeline, "has its own __call__"),
    (None, None, r"more in its forward pass: controlnet.*without it"),
])  # fmt: skip
def test_another_forward_pass_is_refused_with_why_and_the_remedy_samples(name, cls, says):
    pipe = made(name, cls) if name else with_controlnet()
    with pytest.raises(TypeError, match=says) as refused:
        dk.wrap(pipe)
    remedy = str(refused.value).split("here; ")[1].split(" samples")[0]
    backbone = eval(remedy, vars(diffusers) | {"dk": dk, "pipe": pipe})
    assert begin(backbone, solver="own").step().x0bar.isfinite().all()


def with_pag_active():
    pipe = made("sd", diffusers.StableDiffusionPAGPipeline)
    pipe.set_pag_applied_layers(["mid"])
    pipe._set_pag_attn_processor(["mid"], do_classifier_free_guidance=True)
    return diffusers.StableDiffusionPipeline.from_pipe(pipe)


def with_adapter(name, part, slot):
    pipe = made(name)
    setattr(getattr(pipe, part), slot, torch.nn.Identity())
    return pipe


def for_filling():
    pipe = made("flux")
    more = {"in_channels": 32, "out_channels": 16}
    pipe.transformer = pipe.transformer.from_config(pipe.transformer.config, **more)
    return pipe


def refiner():
    pipe = made("sdxl", diffusers.StableDiffusionXLImg2ImgPipeline)
    pipe.register_to_config(requires_aesthetics_score=True)
    return pipe


@pytest.mark.parametrize(("make", "says"), [
    (with_pag_active, "PAG"),
    (lambda: with_adapter("sd", "unet", "encoder_hid_proj"), "unload_ip_adapter"),
    (lambda: with_adapter("flux", "transformer", "encoder_hid_proj"), "unload_ip_adapter"),
    (lambda: with_adapter("sd3", "transformer", "image_proj"), "unload_ip_adapter"),
    (for_filling, "more than a latent"),
    (refiner, "refiner"),
])  # fmt: skip
def test_what_makes_the_network_another_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        dk.wrap(make())


def test_an_adapter_that_is_loaded_after_wrapping_is_refused():
    pipe = made("sd")
    run = dk.Sampler(dk.wrap(pipe), num_steps=2).start("a", seeds=[0])
    pipe.unet.encoder_hid_proj = torch.nn.Identity()
    pipe.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    with pytest.raises(ValueError, match="unload_ip_adapter"):
        run.step()


def test_weights_that_take_gradients_again_are_refused():
    """As those of a LoRA do that is loaded after wrapping; wrapping again freezes them."""
    pipe = made("sd")
    sampler = dk.Sampler(dk.wrap(pipe), num_steps=2)
    next(pipe.unet.parameters()).requires_grad_()
    with pytest.raises(RuntimeError, match="wrap the pipeline again"):
        sampler.start("a", seeds=[0])
    dk.Sampler(dk.wrap(pipe), num_steps=2).start("a", seeds=[0])


def test_a_network_that_no_gradient_passes_is_named(brightness):
    pipe = made("sd")
    forward = pipe.unet.forward
    pipe.unet.forward = torch.no_grad()(lambda *given, **named: forward(*given, **named))
    run = dk.Sampler(dk.wrap(pipe), dk.DATE(brightness), num_steps=2).start("a", seeds=[0])
    with pytest.raises(RuntimeError, match="no gradient passes this network"):
        run.step()
