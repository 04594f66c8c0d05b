"""Models distilled to a few steps: what is recommended, what a scale means, and DATE on each."""

from __future__ import annotations

import functools
import warnings

import diffusers
import families
import pipelines
import pytest
import torch
from test_solvers import PROMPTS, feed_noise, latents_of

import datekit as dk
from datekit.tensors import norm

LCM, TRAILING = diffusers.LCMScheduler, {"timestep_spacing": "trailing"}
ANCESTRAL = diffusers.EulerAncestralDiscreteScheduler
CASES = {  # a pipeline, its scheduler, and the scale in its own call
    "turbo": (families.sdxl, ANCESTRAL, TRAILING, 0.0),
    "lightning": (families.sdxl, diffusers.EulerDiscreteScheduler, TRAILING, 0.0),
    "tcd": (families.sdxl, diffusers.TCDScheduler, {}, 0.0),
    "lcm-lora": (pipelines.stable_diffusion, LCM, {}, 1.0),
    "lcm": (pipelines.stable_diffusion, LCM, {}, 8.5),
    "lcm-own": (pipelines.stable_diffusion, LCM, {}, 8.5),
    "lcm-xl": (families.sdxl, LCM, {}, 8.5),
    "flux-schnell": (lambda: families.flux(guidance=False), None, {}, 0.0),
}
TOLD = ("lcm", "lcm-own", "lcm-xl")  # whose U-Net is told the scale


@functools.cache
def backbone_of(case):
    make, scheduler, changes, _ = CASES[case]
    pipe = make()
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **changes)
    if case in TOLD:
        torch.manual_seed(0)
        pipe.unet = type(pipe.unet).from_config(pipe.unet.config, time_cond_proj_dim=16)
    if case == "lcm-own":
        parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
        pipe = diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return dk.wrap(pipe, name=case, **families.settings(case if scheduler is None else "sd"))


@pytest.mark.parametrize("case", CASES)
def test_equals_the_pipeline_as_recommended(case, monkeypatch):
    """Four steps; a scale of 0 is no guidance, or is told to the network, and nobody is warned."""
    backbone, scale, seeds = backbone_of(case), CASES[case][-1], range(2)
    sampler, given = dk.Sampler(backbone), dk.Sampler(backbone, guidance_scale=scale)
    assert (sampler.num_steps, str(sampler.solver)) == (4, type(backbone.scheduler).__name__)
    assert given.guidance_scale == sampler.guidance_scale == max(1.0, scale)
    with warnings.catch_warnings(action="error", category=UserWarning):
        runs = [each.start(PROMPTS[:2], seeds=seeds).finish() for each in (sampler, given)]
    feed_noise(monkeypatch, backbone, seeds)
    theirs = latents_of(sampler, PROMPTS[:2], seeds, scale)
    for run in runs:
        assert (run.state.xt - theirs).abs().max() <= 1e-4 * max(1, theirs.abs().max())


@pytest.mark.parametrize("case", TOLD)
def test_lcm_is_told_the_scale_in_one_branch(case):
    backbone = backbone_of(case)
    sampler = dk.Sampler(backbone, guidance_scale=3.0)
    state = sampler.init(PROMPTS[:2], seeds=[0, 1])
    other = sampler.replace(guidance_scale=5.0).predict(state).out
    assert state.uncond is None
    assert not torch.allclose(sampler.predict(state).out, other)
    with pytest.raises(ValueError, match="leave negative_prompts"):
        sampler.init(PROMPTS[:1], seeds=[0], negative_prompts="a star")


@pytest.mark.parametrize("case", CASES)
def test_date_moves_c_by_rho_along_its_gradient(case, brightness):
    backbone, runs = backbone_of(case), []
    for method in (dk.DATE(brightness, rho=0.5), dk.DATE(brightness, rho=0.0), dk.Fixed()):
        runs.append(dk.Sampler(backbone, method).start(PROMPTS[:2], seeds=[0, 1]))
    info = runs[0].step()
    assert (info.grad_norm > 0).all()
    moved = runs[0].state.c - runs[0].state.c_org
    assert torch.allclose(norm(moved), torch.full((2,), 0.5), rtol=1e-4)
    assert torch.cosine_similarity(moved.flatten(1), info.grad.flatten(1)).min() > 0.9999
    assert torch.equal(*[run.finish().state.xt for run in runs[1:]])
    assert not torch.equal(runs[0].finish().state.xt, runs[2].state.xt)


def test_a_model_that_is_not_distilled_keeps_its_guidance():
    """Trailing timesteps alone say nothing: models with a terminal signal of zero have them too."""
    pipe = pipelines.stable_diffusion("v_prediction")
    zero = TRAILING | {"rescale_betas_zero_snr": True}
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, **zero)
    backbone = dk.wrap(pipe)
    assert backbone.recommended.num_steps == 50
    with pytest.warns(UserWarning, match="take guidance_scale=1"):
        dk.Sampler(backbone, num_steps=2, guidance_scale=0.0).start(PROMPTS[0], seeds=[0])


def test_a_scheduler_that_others_have_too_is_said_to_be_taken_for_theirs():
    with pytest.warns(UserWarning, match="num_steps=4, guidance_scale=1"):
        dk.Sampler(backbone_of("lightning"))
    with warnings.catch_warnings(action="error", category=UserWarning):
        dk.Sampler(backbone_of("lightning"), num_steps=4, guidance_scale=1.0)
        dk.Sampler(backbone_of("lcm"))
