"""Schedulers without a name here, as own or given: closed forms, pipelines, and exactness."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import math

import diffusers
import families
import pipelines
import pytest
import torch
from test_families import NEW, PROMPTS, THEIRS, pairs, pipeline_latents

import datekit as dk
from datekit import noise
from datekit.widgets.controller import Controller

STEPS = 6
V = {"prediction_type": "v_prediction"}
CASES = {  # what a pipeline of the family may have in place of its scheduler, and eta
    "pndm": ("sd", diffusers.PNDMScheduler, {"skip_prk_steps": True}, 0),
    "euler-a": ("sd", diffusers.EulerAncestralDiscreteScheduler, {}, 0),
    "euler-a-v": ("sd-v", diffusers.EulerAncestralDiscreteScheduler, {}, 0),
    "lcm": ("sd", diffusers.LCMScheduler, {}, 0),
    "tcd": ("sd", diffusers.TCDScheduler, {}, 0),
    "tcd-0.3": ("sd-v", diffusers.TCDScheduler, {}, 0.3),
    "heun": ("sd", diffusers.HeunDiscreteScheduler, {}, 0),
    "heun-karras": ("sd-v", diffusers.HeunDiscreteScheduler, {"use_karras_sigmas": True}, 0),
    "deis": ("sd", diffusers.DEISMultistepScheduler, {"solver_order": 3}, 0),
    "deis-flow": ("sd3", diffusers.DEISMultistepScheduler, {}, 0),
    "lms": ("sd", diffusers.LMSDiscreteScheduler, {}, 0),
    "lms-v": ("sd-v", diffusers.LMSDiscreteScheduler, {}, 0),
    "single": ("sd", diffusers.DPMSolverSinglestepScheduler, {"lower_order_final": True}, 0),
    "single-3": ("pixart-alpha", diffusers.DPMSolverSinglestepScheduler, {"solver_order": 3}, 0),
    "sde": ("sd", diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, 0),
    "flow-heun": ("sd3", diffusers.FlowMatchHeunDiscreteScheduler, {}, 0),
    "flow-lcm": ("sd3", diffusers.FlowMatchLCMScheduler, {}, 0),
    "flow-lcm-even": ("flux", diffusers.FlowMatchLCMScheduler, {}, 0),
    "edm": ("sdxl", diffusers.EDMEulerScheduler, {}, 0),
    "edm-dpm": ("sd", diffusers.EDMDPMSolverMultistepScheduler, {}, 0),
    "edm-v": ("sd", diffusers.EDMEulerScheduler, {"sigma_schedule": "exponential"} | V, 0),
}
TIMES = {"pndm": STEPS + 1} | dict.fromkeys(("heun", "heun-karras", "flow-heun"), 2 * STEPS - 1)
DRAWING = {"euler-a", "euler-a-v", "lcm", "tcd-0.3", "sde", "flow-lcm", "flow-lcm-even"}


def backbone_of(case):
    """A backbone whose pipeline has the scheduler, and eta."""
    name, cls, changes, eta = CASES[case]
    pipe = copy.copy(families.backbone(name).pipe)
    if case.startswith("edm"):
        pipe.scheduler = cls(**changes)
    else:
        config = dict(pipe.scheduler.config)
        if case == "deis-flow":
            changes = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        pipe.scheduler = cls.from_config(config, **changes)
    return dk.wrap(pipe, name=name, **families.settings(name)), eta


def sampler_of(case, method=None, w=2.0, **settings):
    backbone, eta = backbone_of(case)
    told = {"num_steps": STEPS, "guidance_scale": w, "solver": "own", "eta": eta}
    return dk.Sampler(backbone, method, **told | settings)


def said(case, x0, eps, xt, level):
    """What a network says that knows x0 and eps, by the papers' formulas."""
    name, _, changes, _ = CASES[case]
    alpha, sigma = level
    if case.startswith("edm"):  # arXiv 2206.00364, Table 1, with the data's deviation 0.5
        skip = 0.25 / (sigma**2 + 0.25)
        sign = -1 if changes.get("prediction_type") else 1
        return sign * (x0 - skip * xt) * math.sqrt(sigma**2 + 0.25) / (0.5 * sigma)
    if name in ("sd3", "flux"):
        return eps - x0
    r = math.hypot(alpha, sigma)
    return (alpha * eps - sigma * x0) / r if name == "sd-v" else eps


@pytest.mark.parametrize("case", CASES)
def test_a_network_that_knows_x0_stays_on_the_levels(case):
    """xt = alpha x0 + sigma eps at every level and at the end, with that eps or fresh unit noise.

    The levels are those to which diffusers itself adds noise.
    """
    sampler = sampler_of(case)
    solver, theirs, past = sampler.solver, sampler.backbone.scheduler, {}
    assert sampler.num_steps == len(solver.timesteps) == TIMES.get(case, STEPS)
    x0, eps = torch.randn(2, 4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    xt = solver.add_noise(x0, eps, 0)
    if "flow" not in case:
        theirs.set_timesteps(STEPS)
    for i, t in enumerate([*solver.timesteps, 0]):
        alpha, sigma = level = solver.level(i)
        if case in DRAWING and i:
            eps = (xt - alpha * x0) / max(sigma, 1e-3)
            assert abs(eps.std() - 1) < 0.05 or sigma == 0
            assert abs((eps * x0).mean()) < 0.05
        torch.testing.assert_close(xt, alpha * x0 + sigma * eps, rtol=1e-4, atol=1e-4)
        if i == sampler.num_steps:
            break
        if "flow" not in case:
            added = theirs.add_noise(x0, eps, torch.tensor([t]))
            torch.testing.assert_close(added, alpha * x0 + sigma * eps)
        out = said(case, x0, eps, xt, level)
        torch.testing.assert_close(solver.x0bar(out, xt, i), x0, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(sigma * solver.eps(out, xt, i), sigma * eps, rtol=0, atol=1e-3)
        if alpha:
            torch.testing.assert_close(solver.out(eps, xt, i), out, rtol=1e-3, atol=1e-3)
        xt, past = solver.step(out, xt, i, past, range(4))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("count", "w"), [(1, 1.0), (3, 2.0)])
def test_equals_the_pipeline(case, count, w, monkeypatch):
    """A stochastic one when the pipeline is fed the same noise."""
    sampler, seeds = sampler_of(case, w=w), range(count)
    run = sampler.start(PROMPTS[:count], seeds=seeds).finish()
    feed_noise(monkeypatch, sampler.backbone, seeds)
    theirs = latents_of(sampler, PROMPTS[:count], seeds, sampler.guidance_scale)
    assert (run.state.xt - theirs).abs().max() <= 1e-4 * max(1, theirs.abs().max())


def feed_noise(monkeypatch, backbone, seeds):
    """Let the pipeline's scheduler draw at each step what `datekit.noise` gives."""
    cls, pipe, count = type(backbone.scheduler), backbone.pipe, itertools.count()
    step, accepts = cls.step, inspect.signature(cls.step).parameters

    def fed(self, out, t, xt, **kwargs):
        if "generator" in accepts:
            kwargs["generator"] = noise.generators(seeds, next(count))
        if xt.ndim == 4:
            return step(self, out, t, xt, **kwargs)
        # FLUX would draw for packed latents
        out, xt = (pipe._unpack_latents(x, 64, 64, pipe.vae_scale_factor) for x in (out, xt))
        following = step(self, out, t, xt, **kwargs)[0]
        return (pipe._pack_latents(following, *following.shape),)

    monkeypatch.setattr(cls, "step", functools.update_wrapper(fed, step))


def latents_of(sampler, prompts, seeds, scale):
    """What the pipeline's own call returns before decoding."""
    told = {"num_inference_steps": sampler._num_steps}
    told |= {"eta": sampler.eta} if sampler.eta else {}
    return pipeline_latents(sampler.backbone, "own", prompts, seeds, scale, **told)


NAMED = pairs(["sd"], THEIRS, ())
NAMED += pairs(["pixart-alpha", "sdxl", "sd3"], ("dpm++", "unipc"), ("dpm++", "unipc"))
NAMED += pairs(["flux", "sdxl", *NEW], ["own"], ["own"])


@pytest.mark.parametrize("case", [*CASES, *NAMED])
def test_fork_rewind_save_repeat_and_batches(case, brightness, tmp_path):
    """To the bit, at every step of the past; a picture does not depend on its batch."""
    method = dk.DATE(brightness, rho=0.5, when=dk.steps(1, 4))
    if case in CASES:
        sampler = sampler_of(case, method)
    else:
        told = {"num_steps": STEPS, "guidance_scale": 2.0, "solver": case[1]}
        sampler = dk.Sampler(families.backbone(case[0]), method, **told)
    run = sampler.start(PROMPTS, seeds=[0, 1, 2])
    run.step(3)
    fork, twice = run.fork(), [sampler.step(run.state)[0].xt for _ in range(2)]
    assert torch.equal(*twice)
    run.save(tmp_path / "run.pt")
    end = run.finish().state.xt
    assert run.state.i == sampler.num_steps == sampler.replace(eta=sampler.eta).num_steps
    assert torch.equal(fork.finish().state.xt, end)
    assert torch.equal(dk.Run.load(tmp_path / "run.pt", sampler).finish().state.xt, end)
    for i in (2, 1):
        assert torch.equal(run.rewind(to=i).finish().state.xt, end)
    alone = sampler.start(PROMPTS[1:2], seeds=[1]).finish().state.xt
    assert (alone - end[1:2]).abs().max() <= 1e-3 * end.abs().max()
    if case in ("lms", "pndm"):
        assert dk.estimate(sampler.backbone, num_steps=STEPS, solver="own").updated > 0


BETAS = diffusers.DDIMScheduler(**pipelines.SCHEDULE, rescale_betas_zero_snr=True)
UNFIT = {
    "kdpm2": ("sd", diffusers.KDPM2DiscreteScheduler(), TypeError, "take HeunDiscreteScheduler"),
    "prk": ("sd", diffusers.PNDMScheduler(), ValueError, "skip_prk_steps=True"),
    "sigmas": ("flux", diffusers.FlowMatchHeunDiscreteScheduler(), ValueError, "takes no sigmas"),
    "edm": ("sd", diffusers.EDMEulerScheduler(), ValueError, "does not fit a model"),
    "betas": ("sd", BETAS, ValueError, "another betas"),
    "size": ("sd3", diffusers.FlowMatchLCMScheduler(scale_factors=[0.5]), ValueError, "the size"),
}


@pytest.mark.parametrize(("name", "solver", "error", "match"), UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_stepped_is_refused(name, solver, error, match):
    with pytest.raises(error, match=match):
        dk.Sampler(families.backbone(name), solver=solver)


@pytest.mark.parametrize("case", ["pndm", "lms", "heun"])
def test_a_solver_that_counts_on_its_past_starts_no_edit(case, shapes):
    _, cls, changes, _ = CASES[case]
    solver = cls.from_config(shapes.scheduler.config, **changes)
    picture = torch.rand(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"before step 2; take solver='dpm\+\+'"):
        dk.editing.sdedit(shapes, picture, PROMPTS[0], num_steps=4, skip=2, solver=solver)
    assert dk.editing.sdedit(shapes, picture, PROMPTS[0], num_steps=4, skip=0, solver=solver)


@pytest.mark.parametrize("case", ["pndm", "single", "heun"])
def test_a_step_from_an_earlier_latent_is_not_taken_again(case, brightness):
    """Fresh noise in xt would not reach what such a step sets out from."""
    sampler = sampler_of(case, dk.UniversalGuidance(brightness, recurrence=2))
    run = sampler.start(PROMPTS[:1], seeds=[0])
    run.step()
    with pytest.raises(ValueError, match="cannot take a step again"):
        run.step()


def test_the_explorer_shows_one_step_for_each_that_is_asked_for(brightness):
    backbone = backbone_of("pndm")[0]
    Controller(backbone, brightness)  # by DDIM
    with pytest.raises(ValueError, match="takes 21 steps for 20"):
        Controller(backbone, brightness, solver="own")
