"""Every pipeline family and every solver, from a saved folder, against diffusers' own pipelines."""

from __future__ import annotations

import diffusers
import families
import pipelines
import pytest
import torch
from diffusers.models.autoencoders import vae

import datekit as dk
from datekit import noise

PROMPTS = ["a red circle left of a blue square", "a green star", "two yellow triangles"]
STEPS = 5
THEIRS = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}
FLOW_SOLVERS = ("euler", "dpm++", "unipc")
FLOWS = ("sd3", "flux", "z-image", "qwen-image", "sana", "lumina2")
NEW = ("z-image", "qwen-image", "flux2-klein", "sana", "lumina2")  # read by language models


def pairs(names, diffusion, flow):
    """(family, solver) for the solvers of its kind."""
    cases = []
    for name in names:
        solvers = flow if name.startswith(FLOWS) else diffusion
        if name in ("z-image", "qwen-image", "lumina2"):  # whose pipelines take Euler alone
            solvers = [solver for solver in solvers if solver in ("own", "euler")]
        cases += [(name, solver) for solver in solvers]
    return cases


def scheduler_of(pipe, solver: str):
    """What a user of diffusers would put into the pipeline for this solver."""
    own, config = type(pipe.scheduler), pipe.scheduler.config
    if solver == "own":
        return own.from_config(config)
    changes = {"clip_sample": False} if solver in ("ddim", "ddpm") else {}
    if own is not diffusers.FlowMatchEulerDiscreteScheduler and not config.get("use_flow_sigmas"):
        return THEIRS[solver].from_config(config, **changes)
    shift = config.get("shift", config.get("flow_shift"))
    changes = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    known = THEIRS | {"euler": diffusers.FlowMatchEulerDiscreteScheduler}
    return known[solver].from_config(config, shift=shift, flow_shift=shift, **changes)


def pipeline_latents(backbone, solver, prompts, seeds, w, negative=None, patch=None, **kwargs):
    """What the pipeline's own `__call__` returns before decoding, unpacked."""
    pipe, name = backbone.pipe, backbone.name
    told = {"output_type": "latent", "guidance_scale": w, "num_inference_steps": STEPS}
    kwargs = told | {"height": 64, "width": 64} | kwargs
    if name.startswith(("pixart", "sana")):
        kwargs |= {"use_resolution_binning": False}
    if hasattr(backbone, "text_length"):
        kwargs |= {"max_sequence_length": backbone.text_length}
    if name == "z-image":
        kwargs |= {"guidance_scale": w - 1}  # cond + g (cond - uncond)
    if name == "qwen-image":
        negative, kwargs = negative or " ", kwargs | {"guidance_scale": None, "true_cfg_scale": w}
    if name == "flux2-klein" and negative is not None:
        embeds, _ = pipe.encode_prompt([negative] * len(prompts), max_sequence_length=20)
        negative, kwargs = None, kwargs | {"negative_prompt_embeds": embeds}
    if negative is not None:
        kwargs |= {"negative_prompt": [negative] * len(prompts)}
        if name.startswith("flux"):
            kwargs |= {"guidance_scale": backbone.distilled_guidance, "true_cfg_scale": w}
    if solver == "ddpm":
        feed_noise(patch, seeds)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    own, pipe.scheduler = pipe.scheduler, scheduler_of(pipe, solver)
    try:
        called = pipe(prompt=list(prompts), generator=generators, **kwargs)
    finally:
        pipe.scheduler = own
    if kwargs["output_type"] != "latent":
        return called.images
    return unpacked(backbone, called.images, (kwargs["height"], kwargs["width"]))


def unpacked(backbone, latents, size):
    """Latents as a pipeline returns them as those of its loop, (B, C, h, w)."""
    pipe, name = backbone.pipe, backbone.name
    if name.startswith("flux2"):
        return pipe.vae.bn(pipe._patchify_latents(latents))
    if name.startswith(("flux", "qwen-image")):
        latents = pipe._unpack_latents(latents, *size, pipe.vae_scale_factor)
    return latents[:, :, 0] if latents.ndim == 5 else latents


def feed_noise(monkeypatch, seeds):
    """Let DDPM draw at each step what `datekit.noise` gives for seed and step."""
    step, count = diffusers.DDPMScheduler.step, iter(range(STEPS))

    def fed(self, out, t, sample, generator=None, **kwargs):
        return step(self, out, t, sample, generator=noise.generators(seeds, next(count)), **kwargs)

    monkeypatch.setattr(diffusers.DDPMScheduler, "step", fed)


def begin(backbone, count=1, w=3.0, solver="own", negative=None, **size):
    """A run of the first prompts, seeded 0, 1, ..."""
    sampler = dk.Sampler(backbone, num_steps=STEPS, guidance_scale=w, solver=solver)
    seeds = list(range(count))
    return sampler.start(PROMPTS[:count], seeds=seeds, negative_prompts=negative, **size)


@pytest.mark.parametrize(
    ("name", "solver"), pairs(families.FAMILIES, ("own", *THEIRS), ("own", *FLOW_SOLVERS))
)
@pytest.mark.parametrize(
    ("count", "w", "negative"), [(1, 3.0, None), (3, 1.0, None), (3, 3.0, "a blue square")]
)
def test_fixed_equals_the_pipeline(name, solver, count, w, negative, monkeypatch):
    backbone, seeds = families.backbone(name), list(range(count))
    run = begin(backbone, count, w, solver, negative).finish()
    theirs = pipeline_latents(backbone, solver, PROMPTS[:count], seeds, w, negative, monkeypatch)
    assert (run.state.xt - theirs).abs().max() <= 1e-4
    if solver == "own" and count == 3:  # decoded by the pipeline too: scaling, shift, processing
        theirs = pipeline_latents(backbone, solver, PROMPTS, seeds, w, negative, output_type="pt")
        assert (run.pixels - theirs).abs().max() <= 1e-4


def test_half_precision_pipelines_keep_their_decoder():
    """SDXL's overflows in half precision: a copy decodes, and the pipeline stays as it was."""
    pipe = families.sdxl().to(dtype=torch.float16)
    assert dk.wrap(pipe).vae.dtype == torch.float32
    assert pipe.vae.dtype == torch.float16
    assert dk.wrap(families.pixart().to(dtype=torch.float16)).vae.dtype == torch.float16


def test_sizes_that_a_patch_does_not_divide_are_refused():
    sampler = dk.Sampler(families.backbone("sd3"))
    for size in ({"height": 60, "width": 64}, {"latents": torch.randn(1, 4, 15, 16)}):
        with pytest.raises(ValueError, match="multiple of 8 pixels"):
            sampler.init(PROMPTS[:1], seeds=[0], **size)


OTHERS = {
    "pixart-1024": (lambda: families.pixart(sample_size=128), {"text_length": 20}),
    "sdxl-no-zeros": (lambda: families.sdxl(zeros=False), {}),  # encodes "" for no negative prompt
    "flux2-klein-distilled": (lambda: families.flux2_klein(True), {"text_length": 20}),
}


@pytest.mark.parametrize("name", ["sdxl", "pixart-alpha", "sd3-dynamic", "flux", *NEW, *OTHERS])
def test_other_image_sizes(name):
    """Sizes reach the networks that are told them, and schedules that shift with the size."""
    if name in OTHERS:
        make, settings = OTHERS[name]
        backbone = dk.wrap(make(), name=name, **settings)
    else:
        backbone = families.backbone(name)
    run = begin(backbone, height=32, width=96)
    theirs = pipeline_latents(backbone, "own", PROMPTS[:1], [0], 3.0, height=32, width=96)
    assert (run.finish().state.xt - theirs).abs().max() <= 1e-4
    assert run.images[0].size == (96, 32)


PREDICTED = ("sd", "sd-v", "sd-sample", "sdxl", "sd3", "sd3-dynamic", "flux", *NEW)


@pytest.mark.parametrize(("name", "solver"), pairs(PREDICTED, THEIRS, FLOW_SOLVERS))
def test_x0bar_and_eps_are_the_schedulers_own(name, solver):
    """At the first, a middle and the last step; xt = alpha x0bar + sigma eps; `out` inverts `eps`.

    The noise level falls from step to step.
    """
    run = begin(families.backbone(name), w=2.0, solver=solver)
    ours = run.sampler.solver
    for i in (0, 2, STEPS - 1):
        run.step(i - run.state.i) if i else None
        seen, xt, (alpha, sigma) = run.sampler.predict(run.state), run.state.xt, ours.level(i)
        x0 = theirs_of(run.sampler, solver, seen.out, xt, i)
        assert near(alpha * seen.x0bar + sigma * seen.eps, xt, 1e-4)
        assert x0 is None or near(seen.x0bar, x0, 1e-4)
        assert alpha <= 0.05 or near(ours.out(seen.eps, xt, i), seen.out, 1e-3)
    levels = [ours.level(i) for i in range(STEPS + 1)]
    ratios = [sigma / max(alpha, 1e-9) for alpha, sigma in levels]
    assert ratios == sorted(ratios, reverse=True)


def near(a, b, bound):
    return (a - b).abs().max() <= bound * b.abs().max()


def theirs_of(sampler, solver, out, xt, i):
    """x0 by diffusers' scheduler at step i; None where it does not say."""
    backbone = sampler.backbone
    scheduler = scheduler_of(backbone.pipe, solver)
    settings = backbone.schedule(sampler.solver._scheduler, STEPS, xt.shape[1:])
    count = {} if "sigmas" in settings else {"num_inference_steps": STEPS}
    scheduler.set_timesteps(**count, **settings)
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index, scheduler.is_scale_input_called = i, True
    if solver in ("dpm++", "unipc"):
        return scheduler.convert_model_output(out, sample=xt)
    stepped = scheduler.step(out, scheduler.timesteps[i], xt)
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        return stepped.prev_sample if i == STEPS - 1 else None  # only its last step ends at x0
    return stepped.pred_original_sample


@pytest.mark.parametrize("name", NEW)
def test_prompts_of_other_lengths_do_not_meet_in_a_batch(name):
    """Z-Image's network pads a text to a multiple of 32, so a long one pads a short one further."""
    prompts = [PROMPTS[0], " and ".join(PROMPTS * 2)]
    told = families.settings(name) | {"text_length": 80}
    backbone = dk.wrap(families.FAMILIES[name](), name=name, **told)
    sampler = dk.Sampler(backbone, num_steps=STEPS, guidance_scale=3.0, solver="own")
    run = sampler.start(prompts, seeds=[0, 1])
    lengths = run.state.cond.mask.sum(1)
    assert lengths[0] <= (41 if name == "lumina2" else 32) < lengths[1]
    alone = [sampler.start(p, seeds=[n]).finish().state.xt for n, p in enumerate(prompts)]
    theirs = pipeline_latents(backbone, "own", prompts, [0, 1], 3.0)
    for expected in (torch.cat(alone), theirs):
        assert (run.finish().state.xt - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["qwen-image", "flux2-klein"])
def test_pictures_become_the_pipelines_latents_and_pictures_are_not_clamped(name, monkeypatch):
    backbone, pictures = families.fresh(name), torch.rand(2, 3, 64, 64)
    latents, pipe, scaled = backbone.encode_images(pictures), backbone.pipe, 2 * pictures - 1
    if name == "qwen-image":  # whose own pipeline would draw from the posterior
        posterior = vae.DiagonalGaussianDistribution
        monkeypatch.setattr(posterior, "sample", lambda d, generator: d.mode())
        pipe, scaled = diffusers.QwenImageImg2ImgPipeline(**pipe.components), scaled[:, :, None]
    theirs = pipe._encode_vae_image(scaled, None).reshape(latents.shape)
    assert (latents - theirs).abs().max() <= 1e-5
    backbone.vae.decoder.conv_out.weight *= 30
    decoded = backbone.decode(latents)
    assert decoded.min() < 0
    assert decoded.max() > 1


@pytest.mark.parametrize("name", NEW)
def test_an_estimate_leaves_the_network_as_it_was(name, brightness):
    """Some keep tables of angles; those that are made without numbers would stay."""
    backbone = families.fresh(name)
    assert dk.estimate(backbone, dk.DATE(brightness), num_steps=2).updated > 0
    expected = begin(families.backbone(name)).step().x0bar
    assert torch.equal(begin(backbone).step().x0bar, expected)


def test_flux_draws_at_the_pipelines_size_unless_told():
    """Its side is in no file of the folder."""
    pipe = families.flux()
    assert dk.wrap(pipe).latent_shape()[1:] == (pipe.default_sample_size,) * 2
    small = dk.load(families.folder("flux"), device="cpu", sample_size=8)
    assert small.latent_shape()[1:] == (8, 8)


@pytest.mark.parametrize("name", ["sdxl", "pixart-alpha", "sd3", "sd3-no-t5", "flux", *NEW])
def test_long_prompts_warn_once_an_encoder_and_are_cut_as_in_diffusers(name):
    backbone = families.backbone(name)
    long = "a red circle left of a blue square and a green star and a yellow triangle and a "
    long += "purple square above a cyan star"
    sampler = dk.Sampler(backbone, num_steps=STEPS, guidance_scale=2.0, solver="own")
    with pytest.warns(UserWarning, match="cut from the end") as caught:
        run = sampler.start([long], seeds=[0])
    cut = [str(w.message) for w in caught if "cut from the end" in str(w.message)]
    windows = 2 if name in ("sd3", "flux") else 1  # that are too short
    assert [line.count("cyan star") for line in cut] == [1] * windows
    theirs = pipeline_latents(backbone, "own", [long], [0], 2.0)
    assert (run.finish().state.xt - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_position_has_a_word_and_what_is_read_is_no_padding(name):
    cond = families.backbone(name).encode(PROMPTS)
    assert [len(row) for row in cond.tokens] == [cond.sequence.shape[1]] * 3
    assert "circle" in cond.tokens[0]
    if cond.mask is not None:
        for row, mask in zip(cond.tokens, cond.mask, strict=True):
            last = zip(row[-families.TEXT_LENGTH :], mask[-families.TEXT_LENGTH :], strict=True)
            assert not {"<pad>", "<none>"} & {word for word, on in last if on}


def test_qwen_image_has_its_words_wherever_its_tokenizer_pads():
    expected = families.backbone("qwen-image").encode(PROMPTS)
    backbone = families.fresh("qwen-image")
    backbone.pipe.tokenizer.padding_side = "left"
    found = backbone.encode(PROMPTS)
    assert found.tokens == expected.tokens
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.extras["lengths"], expected.mask.sum(1))
    assert (found.sequence - expected.sequence).abs().max() <= 1e-4


def test_load_gives_float32_unless_told(tmp_path):
    """In every part, whatever precision the folder is stored in."""
    pipe = pipelines.stable_diffusion().to(dtype=torch.float16)
    pipe.save_pretrained(tmp_path)
    plain = dk.load(tmp_path, device="cpu")
    asked = dk.load(tmp_path, device="cpu", dtype=torch.bfloat16)
    for backbone, dtype in ((plain, torch.float32), (asked, torch.bfloat16)):
        assert {module.dtype for module in backbone._modules()} == {dtype}
    assert torch.equal(plain.network.conv_in.weight, pipe.unet.conv_in.weight.float())


STOCHASTIC = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)


@pytest.mark.parametrize(("name", "solver", "error", "match"), [
    ("sd3", "ddim", ValueError, "flow"), ("sd", "dpm+", ValueError, "Did you mean"),
    ("sd", diffusers.FlowMatchEulerDiscreteScheduler(), ValueError, "does not fit"),
    ("sd", diffusers.IPNDMScheduler(), TypeError, "not a solver here"),
    ("sd3", STOCHASTIC, ValueError, "no seed controls"),
])  # fmt: skip
def test_wrong_solvers_are_refused(name, solver, error, match):
    with pytest.raises(error, match=match):
        dk.Sampler(families.backbone(name), solver=solver)
