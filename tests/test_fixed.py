"""`Fixed` against diffusers' own pipeline beyond `test_families.py`: given noise, other scales."""

from __future__ import annotations

import diffusers
import pytest
import torch

import datekit as dk
from datekit import noise


def off(run, prompts, seeds, monkeypatch, **kwargs):
    """The largest difference of the finished run to what its pipeline returns under DDIM."""
    sampler, pipe = run.sampler, run.sampler.backbone.pipe
    ddim = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    settings = {"num_inference_steps": sampler.num_steps, "guidance_scale": sampler.guidance_scale}
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with monkeypatch.context() as patch:
        patch.setattr(pipe, "scheduler", ddim)
        options = settings | kwargs | {"generator": generators, "output_type": "latent"}
        theirs = pipe(list(prompts), **options).images
    return (run.finish(progress=False).state.xt - theirs).abs().max()


def test_equals_the_pipeline_at_its_defaults(shapes, prompts, monkeypatch):
    run = dk.Sampler(shapes).start(prompts, seeds=[7, 8, 9])
    assert off(run, prompts, [7, 8, 9], monkeypatch) <= 1e-5


def test_equals_the_pipeline_from_given_latents(backbone, prompts, monkeypatch):
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    run = dk.Sampler(backbone, num_steps=8, guidance_scale=3.0).start(prompts, latents=latents)
    assert off(run, prompts, [0] * 3, monkeypatch, latents=latents) <= 1e-5


@pytest.mark.parametrize("w", [1.0, 4.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_pipeline_with_step_noise(backbone, prompts, w, batch, monkeypatch):
    """eta = 1, the pipeline being fed the noise that `datekit.noise` gives."""
    prompts, seeds, count = prompts[:batch], [3, 4, 5][:batch], iter(range(10))
    step = diffusers.DDIMScheduler.step

    def fed(self, out, t, sample, eta=0.0, generator=None, **kwargs):
        given = noise.normal(seeds, next(count), out.shape[1:], out.dtype)
        return step(self, out, t, sample, eta=eta, variance_noise=given, **kwargs)

    sampler = dk.Sampler(backbone, num_steps=10, guidance_scale=w, eta=1.0)
    run = sampler.start(prompts, seeds=seeds).finish()
    plain = sampler.replace(eta=0.0).start(prompts, seeds=seeds).finish()
    monkeypatch.setattr(diffusers.DDIMScheduler, "step", fed)
    assert off(run, prompts, seeds, monkeypatch, eta=1.0) <= 1e-5
    assert not torch.equal(plain.state.xt, run.state.xt)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
def test_guidance_is_uncond_plus_w_times_the_difference(backbone, prompts, w):
    sampler = dk.Sampler(backbone, num_steps=5, guidance_scale=w)
    state, unet = sampler.init(prompts, seeds=[0, 1, 2]), backbone.pipe.unet
    out_u, out_c = (
        unet(state.xt, state.t, encoder_hidden_states=c.sequence).sample
        for c in (state.uncond, state.cond)
    )
    expected = out_u + w * (out_c - out_u)
    torch.testing.assert_close(sampler.predict(state).out, expected, rtol=1e-4, atol=1e-5)
    info, (alpha, sigma) = sampler.step(state)[1], sampler.solver.level(0)
    eps = info.eps_c if w == 1 else info.eps_u + w * (info.eps_c - info.eps_u)
    torch.testing.assert_close(alpha * info.x0bar + sigma * eps, state.xt, rtol=1e-4, atol=1e-4)
