"""Every pipeline family and every solver, from a saved folder, against diffusers' own pipelines."""

from __future__ import annotations

import subprocess
import sys

import diffusers
import families
import pipelines
import pytest
import torch

import datekit as dk
from datekit import noise

PROMPTS = ["a red circle left of a blue square", "a green star", "two yellow triangles"]
STEPS = 5
THEIRS = {
    "ddim": diffusers.DDIMScheduler, "ddpm": diffusers.DDPMScheduler, "dpm++": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler, "unipc": diffusers.UniPCMultistepScheduler,
}  # fmt: skip
FLOW_SOLVERS = ("euler", "dpm++", "unipc")
CASES = [
    (name, solver)
    for name in families.FAMILIES
    for solver in ("own", *(FLOW_SOLVERS if name.startswith(("sd3", "flux")) else THEIRS))
]


def scheduler_of(pipe, solver: str):
    """What a user of diffusers would put into the pipeline for this solver."""
    config = pipe.scheduler.config
    if solver == "own":
        return type(pipe.scheduler).from_config(config)
    if isinstance(pipe.scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        if solver == "euler":
            return diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
        flow = {
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": config.shift,
        }
        return THEIRS[solver].from_config(config, **flow)
    clip = {"clip_sample": False} if solver in ("ddim", "ddpm") else {}
    return THEIRS[solver].from_config(config, **clip)


def pipeline_latents(
    backbone, solver, prompts, seeds, w, negative=None, monkeypatch=None, **kwargs
):
    """What the pipeline's own `__call__` returns before decoding, unpacked."""
    pipe, name = backbone.pipe, backbone.name
    if name.startswith("pixart"):
        kwargs |= {"use_resolution_binning": False}
    if hasattr(backbone, "text_length"):
        kwargs |= {"max_sequence_length": backbone.text_length}
    scale = {"guidance_scale": w}
    if negative is not None:
        kwargs["negative_prompt"] = [negative] * len(prompts)
    if name.startswith("flux"):
        kwargs = {"height": 64, "width": 64} | kwargs
        if negative is not None:
            scale = {"guidance_scale": backbone.distilled_guidance, "true_cfg_scale": w}
    own, pipe.scheduler = pipe.scheduler, scheduler_of(pipe, solver)
    try:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        if solver == "ddpm":
            _feed_noise(monkeypatch, seeds)
        kwargs = {"output_type": "latent"} | kwargs
        out = pipe(
            list(prompts), num_inference_steps=STEPS, generator=generators, **scale, **kwargs
        ).images
    finally:
        pipe.scheduler = own
    if name.startswith("flux") and kwargs["output_type"] == "latent":
        out = pipe._unpack_latents(out, kwargs["height"], kwargs["width"], pipe.vae_scale_factor)
    return out


def begin(backbone, count=1, w=3.0, solver="own", negative=None, **size):
    """A run of the first prompts, seeded 0, 1, ..."""
    sampler = dk.Sampler(backbone, num_steps=STEPS, guidance_scale=w, solver=solver)
    seeds = list(range(count))
    return sampler.start(PROMPTS[:count], seeds=seeds, negative_prompts=negative, **size)


def _feed_noise(monkeypatch, seeds):
    """Let DDPM draw at each step what `datekit.noise` gives for seed and step."""
    step, count = diffusers.DDPMScheduler.step, iter(range(STEPS))

    def fed(self, out, t, sample, generator=None, **kwargs):
        return step(self, out, t, sample, generator=noise.generators(seeds, next(count)), **kwargs)

    monkeypatch.setattr(diffusers.DDPMScheduler, "step", fed)


@pytest.mark.parametrize(("name", "solver"), CASES)
@pytest.mark.parametrize(("count", "w", "negative"), [
    (1, 3.0, None), (1, 1.0, None), (1, 3.0, "a blue square"), (3, 3.0, None), (3, 1.0, None), (3, 3.0, "a blue square")])  # fmt: skip
def test_fixed_equals_the_pipeline(name, solver, count, w, negative, monkeypatch):
    backbone, seeds = families.backbone(name), list(range(count))
    run = begin(backbone, count, w, solver, negative).finish()
    theirs = pipeline_latents(backbone, solver, PROMPTS[:count], seeds, w, negative, monkeypatch)
    assert (run.state.xt - theirs).abs().max() <= 1e-4
    pictures = backbone.decode(theirs).clamp(0, 1)
    assert torch.equal((run.pixels * 255).round(), (pictures * 255).round())


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_pictures_are_the_pipelines(name):
    """Decoded by the pipeline itself: scaling, shift and postprocessing too."""
    backbone = families.backbone(name)
    run = begin(backbone, 3).finish()
    theirs = pipeline_latents(backbone, "own", PROMPTS, [0, 1, 2], 3.0, output_type="pt")
    assert (run.pixels - theirs).abs().max() <= 1e-5
    assert torch.equal((run.pixels * 255).round(), (theirs * 255).round())


def test_half_precision_pipelines_keep_their_decoder():
    """SDXL's overflows in half precision: it decodes with a copy, and the pipeline stays as it was."""
    pipe = families.sdxl().to(dtype=torch.float16)
    backbone = dk.wrap(pipe)
    assert pipe.vae.dtype == torch.float16
    assert backbone.vae.dtype == torch.float32
    assert dk.wrap(families.pixart().to(dtype=torch.float16)).vae.dtype == torch.float16


def test_sizes_that_a_patch_does_not_divide_are_refused():
    backbone = families.backbone("sd3")
    with pytest.raises(ValueError, match="multiple of 8 pixels"):
        dk.Sampler(backbone).init(PROMPTS[:1], seeds=[0], height=60, width=64)
    with pytest.raises(ValueError, match="multiple of 8 pixels"):
        dk.Sampler(backbone).init(PROMPTS[:1], latents=torch.randn(1, 4, 15, 16))


@pytest.mark.parametrize("name", ["sdxl", "pixart-alpha", "sd3-dynamic", "flux"])
def test_other_image_sizes(name):
    """Sizes reach the size conditioning of SDXL, and schedules that shift with the size."""
    backbone = families.backbone(name)
    run = begin(backbone, height=32, width=96)
    theirs = pipeline_latents(backbone, "own", PROMPTS[:1], [0], 3.0, height=32, width=96)
    assert (run.finish().state.xt - theirs).abs().max() <= 1e-4
    assert run.images[0].size == (96, 32)


def test_pixart_1024_is_told_its_size():
    pipe = families.pixart(sample_size=128)
    pipe.set_progress_bar_config(disable=True)
    backbone = dk.wrap(pipe, name="pixart-1024", text_length=families.TEXT_LENGTH)
    run = begin(backbone, height=32, width=64)
    theirs = pipeline_latents(backbone, "own", PROMPTS[:1], [0], 3.0, height=32, width=64)
    assert (run.finish().state.xt - theirs).abs().max() <= 1e-4


def test_sdxl_without_zeros_encodes_the_empty_negative_prompt():
    pipe = families.sdxl(zeros=False)
    pipe.set_progress_bar_config(disable=True)
    backbone = dk.wrap(pipe, name="sdxl-no-zeros")
    run = begin(backbone, 3).finish()
    theirs = pipeline_latents(backbone, "own", PROMPTS, [0, 1, 2], 3.0)
    assert (run.state.xt - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("name", "solver"),
    [("sd", s) for s in THEIRS]
    + [("sd-sample", s) for s in THEIRS]
    + [("sd3", s) for s in FLOW_SOLVERS],
)
def test_x0bar_and_eps_agree_with_the_level(name, solver):
    """xt = alpha x0bar + sigma eps at every step; and the noise level falls."""
    run = begin(families.backbone(name), w=2.0, solver=solver)
    sampler = run.sampler
    sigmas = []
    for i in range(STEPS):
        alpha, sigma = sampler.solver.level(i)
        seen = sampler.predict(run.state)
        scale = run.state.xt.abs().max()
        assert (alpha * seen.x0bar + sigma * seen.eps - run.state.xt).abs().max() <= 1e-4 * scale
        if alpha > 0.05:
            assert (
                sampler.solver.out(seen.eps, run.state.xt, i) - seen.out
            ).abs().max() <= 1e-3 * seen.out.abs().max()
        sigmas.append(sigma / max(alpha, 1e-9))
        run.step()
    assert sigmas == sorted(sigmas, reverse=True)


PREDICTED = [(name, solver) for name in ("sd", "sd-v", "sd-sample", "sdxl") for solver in THEIRS]
PREDICTED += [(name, solver) for name in ("sd3", "sd3-dynamic", "flux") for solver in FLOW_SOLVERS]


@pytest.mark.parametrize(("name", "solver"), PREDICTED)
def test_x0bar_and_eps_are_the_schedulers_own(name, solver):
    """What the scheduler itself takes them to be, at the first, a middle and the last step."""
    run = begin(families.backbone(name), w=2.0, solver=solver)
    sampler = run.sampler
    for i in (0, 2, STEPS - 1):
        run.step(i - run.state.i) if i else None
        seen = sampler.predict(run.state)
        x0, eps = theirs_of(sampler, solver, seen.out, run.state.xt, i)
        if x0 is not None:
            assert (seen.x0bar - x0).abs().max() <= 1e-4 * x0.abs().max()
        if eps is not None:
            assert (seen.eps - eps).abs().max() <= 1e-3 * eps.abs().max()


def theirs_of(sampler, solver, out, xt, i):
    """(x0, eps) by diffusers' scheduler at step i; None for what it does not say."""
    backbone = sampler.backbone
    scheduler, settings = (
        scheduler_of(backbone.pipe, solver),
        backbone.schedule(sampler.solver._scheduler, STEPS, xt.shape[1:]),
    )
    scheduler.set_timesteps(
        **({} if "sigmas" in settings else {"num_inference_steps": STEPS}), **settings
    )
    flow = isinstance(backbone.pipe.scheduler, diffusers.FlowMatchEulerDiscreteScheduler)
    eps = None
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index, scheduler.is_scale_input_called = i, True
    if not flow and solver != "euler":  # DPM-Solver (without ++) turns every output into noise
        noisy = diffusers.DPMSolverMultistepScheduler.from_config(
            THEIRS["dpm++"].from_config(backbone.pipe.scheduler.config).config,
            algorithm_type="dpmsolver",
            final_sigmas_type="sigma_min",
        )
        noisy.sigmas, noisy._step_index = (
            torch.tensor(
                [sigma / alpha for alpha, sigma in map(sampler.solver.level, range(STEPS))]
            ),
            i,
        )
        eps = noisy.convert_model_output(out, sample=xt)
    if solver in ("dpm++", "unipc"):
        return scheduler.convert_model_output(out, sample=xt), eps
    if flow:  # its step says no x0, but the last one ends there
        after = scheduler.step(out, scheduler.timesteps[i], xt, return_dict=False)[0]
        return (after if i == STEPS - 1 else None), None
    return scheduler.step(
        out, scheduler.timesteps[i], xt, return_dict=True
    ).pred_original_sample, eps


@pytest.mark.parametrize(
    ("name", "solver"),
    [("sd", s) for s in THEIRS]
    + [("flux", "own"), ("sdxl", "own")]
    + [(name, solver) for name in ("sdxl", "pixart-alpha", "sd3") for solver in ("dpm++", "unipc")],
)
def test_fork_rewind_save_and_repeat_are_exact(name, solver, tmp_path):
    """Multistep solvers keep a past: it belongs to the state."""
    run = begin(families.backbone(name), 2, 2.0, solver)
    sampler = run.sampler
    run.step(3)
    fork, twice = run.fork(), [sampler.step(run.state)[0].xt for _ in range(2)]
    assert torch.equal(*twice)
    run.save(tmp_path / "run.pt")
    end = run.finish().state.xt
    assert torch.equal(fork.finish().state.xt, end)
    assert torch.equal(run.rewind(to=1).finish().state.xt, end)
    assert torch.equal(dk.Run.load(tmp_path / "run.pt", sampler).finish().state.xt, end)


RESUME = """
import sys, torch, datekit as dk
torch.save(dk.Run.load(sys.argv[1]).finish().state.xt, sys.argv[2])
"""


def test_a_multistep_run_goes_on_in_a_new_process(tmp_path):
    """The past of DPM-Solver++ is in the file, the folder of the pipeline is named there."""
    run = begin(families.backbone("pixart-alpha"), 2, 2.0, "dpm++")
    assert run.sampler.solver.name == "dpm++"
    run.step(3)
    assert run.state.solver_state
    path = run.save(tmp_path / "run.pt")
    subprocess.run([sys.executable, "-c", RESUME, path, tmp_path / "end.pt"], check=True)
    assert torch.equal(torch.load(tmp_path / "end.pt"), run.finish().state.xt)


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_a_folder_gives_what_was_saved(name):
    """`dk.load` of the folder that `save_pretrained` wrote, against the pipeline in memory that was saved."""
    loaded = families.backbone(name)
    assert loaded.source == str(families.folder(name))
    backbones = (dk.wrap(families.FAMILIES[name](), **families.settings(name)), loaded)
    assert backbones[0].latent_shape() == loaded.latent_shape()
    ends = [begin(each, w=2.0).finish().state.xt for each in backbones]
    # loaded weights lie elsewhere in memory, which changes rounding
    assert (ends[0] - ends[1]).abs().max() <= 1e-5


def test_flux_draws_at_the_pipelines_size_unless_told():
    """Its side is in no file of the folder."""
    pipe = families.flux()
    assert dk.wrap(pipe).latent_shape()[1:] == (pipe.default_sample_size,) * 2
    small = dk.load(families.folder("flux"), device="cpu", sample_size=8)
    assert small.latent_shape()[1:] == (8, 8)


@pytest.mark.parametrize("name", ["sdxl", "pixart-alpha", "sd3", "sd3-no-t5", "flux"])
def test_long_prompts_warn_once_and_are_cut_as_in_diffusers(name):
    backbone = families.backbone(name)
    long = "a red circle left of a blue square and a green star and a yellow triangle and a "
    long += "purple square above a cyan star"
    sampler = dk.Sampler(backbone, num_steps=STEPS, guidance_scale=2.0, solver="own")
    with pytest.warns(UserWarning, match="cut from the end") as caught:
        run = sampler.start([long], seeds=[0])
    cut = [str(w.message) for w in caught if "cut from the end" in str(w.message)]
    assert len(cut) == 1
    windows = 2 if name in ("sd3", "flux") else 1  # that are too short
    assert cut[0].count("cyan star") == windows
    theirs = pipeline_latents(backbone, "own", [long], [0], 2.0)
    assert (run.finish().state.xt - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_every_position_has_a_word(name):
    cond = families.backbone(name).encode(PROMPTS)
    assert [len(row) for row in cond.tokens] == [cond.sequence.shape[1]] * 3
    assert "circle" in cond.tokens[0]
    if cond.mask is not None:
        assert cond.mask.shape == cond.sequence.shape[:2]
        last = slice(-families.TEXT_LENGTH, None)
        for row, mask in zip(cond.tokens, cond.mask, strict=True):
            read = [word for word, on in zip(row[last], mask[last], strict=True) if on]
            assert not {"<pad>", "<none>"} & set(read)


def test_load_gives_float32_unless_told(tmp_path):
    """Whatever precision the folder is stored in, in every part; the precision asked for otherwise."""
    pipe = pipelines.stable_diffusion().to(dtype=torch.float16)
    pipe.save_pretrained(tmp_path / "half")
    plain = dk.load(tmp_path / "half", device="cpu")
    asked = dk.load(tmp_path / "half", device="cpu", dtype=torch.bfloat16)
    for backbone, dtype in ((plain, torch.float32), (asked, torch.bfloat16)):
        assert {module.dtype for module in backbone._modules()} == {dtype}
    assert torch.equal(plain.network.conv_in.weight, pipe.unet.conv_in.weight.float())


def test_flux_is_told_its_guidance():
    """Without a negative prompt one branch, steered by the distilled scale."""
    backbone = families.backbone("flux")
    ends = {}
    for w in (1.5, 3.5):
        run = begin(backbone, w=w)
        assert run.state.uncond is None
        ends[w] = run.finish().state.xt
    assert not torch.equal(ends[1.5], ends[3.5])


def test_wrong_solvers_are_refused():
    sd, sd3 = families.backbone("sd"), families.backbone("sd3")
    with pytest.raises(ValueError, match="flow"):
        dk.Sampler(sd3, solver="ddim")
    with pytest.raises(ValueError, match="Did you mean"):
        dk.Sampler(sd, solver="dpm+")
    with pytest.raises(ValueError, match="does not fit"):
        dk.Sampler(sd, solver=diffusers.FlowMatchEulerDiscreteScheduler())
    with pytest.raises(TypeError, match="not a solver here"):
        dk.Sampler(sd, solver=diffusers.HeunDiscreteScheduler())
    with pytest.raises(ValueError, match="no seed controls"):
        dk.Sampler(sd3, solver=diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    with pytest.raises(ValueError, match="no pooled text vector"):
        dk.Sampler(sd, dk.DATE(lambda images, prompts: images.mean((1, 2, 3)), update="pooled"))


def test_unknown_pipelines_name_what_works():
    class OtherPipeline:
        pass

    with pytest.raises(TypeError, match=r"StableDiffusionXLPipeline.*Backbone"):
        dk.wrap(OtherPipeline())
