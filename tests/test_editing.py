"""Inversions and the edits that start from them: reconstruction, formulas, an edit as a run."""

from __future__ import annotations

from functools import partial

import families
import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, StableDiffusionImg2ImgPipeline
from soft import soft
from studies.edit_truth import sample_edits

import datekit as dk
from datekit import editing, noise, shapes
from datekit.editing.base import first_step

SOURCE = ["a blue square above a green star", "a red circle left of a blue square"]
TARGET = "a yellow square above a green star"
STEPS = 6
KINDS = ("ddpm", "ddim", "sdedit")


def pictures(backbone, count=2):
    return torch.rand(count, 3, *backbone.image_size(), generator=torch.Generator().manual_seed(0))


def scenes(count=2):
    edits = sample_edits(count, seed=5, kinds=("recolour",))
    return shapes.render([edit.before for edit in edits])


def with_pictures(name):
    """A backbone and two pictures that it may edit."""
    if name == "shapes":
        return dk.load("shapes", device="cpu"), scenes()
    return families.backbone(name), pictures(families.backbone(name))


def starter(kind, backbone, images, **settings):
    """A function from a method and settings of an edit to the edit under `TARGET`."""
    settings |= {"seeds": [0, 1]}
    texts = {"sdedit": (TARGET,), "flowedit": (SOURCE, TARGET)}.get(kind)
    if texts:
        start = partial(getattr(editing, kind), backbone, images, *texts)
        return lambda m, **more: start(m, **settings, **more)
    inversion = getattr(editing, f"{kind}_inversion")(backbone, images, SOURCE, **settings)
    return lambda m, **more: inversion.edit(TARGET, m, **more)


def same(a, b) -> bool:
    noises = a.noise is b.noise or torch.equal(a.noise, b.noise)
    return torch.equal(a.xt, b.xt) and torch.equal(a.c, b.c) and (a.i, a.t) == (b.i, b.t) and noises


def guided(backbone, x, t, cond, w):
    """uncond + w (cond - uncond), in float64 of the network's answers."""
    uncond = backbone.encode([""] * len(x), negative=True)
    with torch.no_grad():
        out_u, out_c = (backbone.predict(x.float(), t, c).double() for c in (uncond, cond))
    return out_u + w * (out_c - out_u)


def ddpm_step(backbone, i, w, eta, x, cond):
    """mu and s of DDIM's Eq. 12 and 16 at step i of 4 of Stable Diffusion's schedule."""
    table, ts = backbone.scheduler.alphas_cumprod.double(), [751, 501, 251, 1]
    a, b = table[ts[i]], table[ts[i + 1]] if i < 3 else table[0]
    eps = guided(backbone, x, ts[i], cond, w)
    s = eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
    return a, s, b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b - s**2).sqrt() * eps


@pytest.fixture(scope="module")
def inverted(shapes):
    return editing.ddpm_inversion(shapes, scenes(), SOURCE, num_steps=STEPS, seeds=[3, 4])


@pytest.fixture(scope="module")
def sd():
    return families.backbone("sd")


@pytest.fixture(scope="module")
def random_inverted(sd):
    return editing.ddpm_inversion(sd, pictures(sd), SOURCE, num_steps=4, seeds=[0, 1])


@pytest.mark.parametrize("name", ["shapes", "sd-v", "sdxl", "pixart-alpha"])
def test_ddpm_inversion_reconstructs_from_any_step(name):
    backbone, images = with_pictures(name)
    inversion = editing.ddpm_inversion(backbone, images, SOURCE, num_steps=8, guidance_scale=3.5)
    for skip in (0, 1, 7, 0.5, np.float32(0.25)):
        run = inversion.reconstruct(skip).finish()
        assert (run.state.xt - backbone.encode_images(images)).abs().max() <= 1e-4
        assert run.states[0].i == first_step(skip, 8)


@pytest.mark.parametrize(("w", "eta"), [(0.0, 1.0), (1.0, 0.4), (3.5, 1.0)])
def test_noise_maps_and_edits_are_those_of_the_formula(w, eta, sd):
    """z = (x_{t-1} - mu) / s under the source, x_{t-1} = mu + s z under the target; in the test."""
    settings = {"num_steps": 4, "guidance_scale": w, "eta": eta, "seeds": [0, 1]}
    inversion = editing.ddpm_inversion(sd, pictures(sd), SOURCE, **settings)
    x0, source = sd.encode_images(pictures(sd)), sd.encode(SOURCE)
    for i in range(4):
        xt, after = inversion.path[:, i].double(), inversion.path[:, i + 1].double()
        a, s, mu = ddpm_step(sd, i, w, eta, xt, source)
        drawn = noise.normal([0, 1], i, x0.shape[1:], torch.float32, purpose="ddpm inversion")
        there = (a.sqrt() * x0 + (1 - a).sqrt() * drawn).float()
        torch.testing.assert_close(xt.float(), there, rtol=0, atol=1e-5)
        z = inversion.state.noise[i].double()
        torch.testing.assert_close(z, (after - mu) / s, rtol=1e-4, atol=2e-4)
    target, x = sd.encode([TARGET] * 2), inversion.path[:, 1].double()
    for i in (1, 2, 3):
        _, s, mu = ddpm_step(sd, i, w, eta, x, target)
        x = mu + s * inversion.state.noise[i].double()
    edited = inversion.edit(TARGET, guidance_scale=w, skip=1).finish()
    torch.testing.assert_close(edited.state.xt.double(), x, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["sd", "sd-v"])
def test_ddim_inversion_equals_diffusers(name):
    backbone = families.backbone(name)
    settings = {"num_steps": 10, "guidance_scale": 2.0}
    inversion = editing.ddim_inversion(backbone, pictures(backbone), SOURCE, **settings)
    scheduler = DDIMInverseScheduler.from_config(backbone.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(10)
    cond, x = backbone.encode(SOURCE), backbone.encode_images(pictures(backbone))
    for n, t in enumerate(scheduler.timesteps):
        x = scheduler.step(guided(backbone, x, t, cond, 2.0).float(), t, x).prev_sample
        torch.testing.assert_close(inversion.path[:, 9 - n], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["shapes", "sd-v", "flux"])
def test_ddim_inversions_error_falls_as_steps_grow(name):
    (backbone, images), errors = with_pictures(name), []
    for steps in (8, 32):
        inversion = editing.ddim_inversion(backbone, images, SOURCE, num_steps=steps)
        back = inversion.reconstruct().finish().state.xt
        errors.append((back - inversion.latents).square().mean().sqrt().item())
    assert 0 < errors[1] < 0.6 * errors[0]


def test_sdedit_is_diffusers_image_to_image(sd):
    pipe = StableDiffusionImg2ImgPipeline(**sd.pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        [TARGET] * 2,
        image=sd.encode_images(pictures(sd)),
        strength=0.6,
        num_inference_steps=10,
        guidance_scale=3.0,
        output_type="latent",
        generator=[torch.Generator().manual_seed(seed) for seed in (7, 8)],
    ).images
    settings = {"num_steps": 10, "guidance_scale": 3.0, "skip": 0.4, "seeds": [7, 8]}
    ours = editing.sdedit(sd, pictures(sd), TARGET, **settings).finish()
    torch.testing.assert_close(ours.state.xt, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", [*KINDS, "flowedit"])
def test_an_edit_saved_and_resumed_is_uninterrupted(kind, reward, tmp_path):
    """Its file alone makes the sampler again, and leads to the same bits."""
    flow = kind == "flowedit"
    backbone = dk.load("shapes-flow" if flow else "shapes", device="cpu")
    edit, keep = starter(kind, backbone, scenes(), num_steps=STEPS), torch.zeros(64, 64)
    keep[:, :20] = 1
    settings = {"n_max": 4, "n_min": 1, "n_avg": 2} if flow else {"skip": 2}
    date = dk.DATE(reward, rho=1.0, when=dk.every(2))
    part, whole = (edit(date, keep=keep, **settings) for _ in range(2))
    part.step(2)
    resumed = dk.Run.load(part.save(tmp_path / "edit.pt")).finish()
    assert type(resumed.sampler) is type(whole.sampler)
    assert all(same(a, b) for a, b in zip(whole.finish().states, resumed.states, strict=True))


def test_soft_tokens_act_in_an_edit_as_in_sampling(random_inverted, sd):
    """An edit that skips nothing, with the start and noise of plain sampling, is plain sampling."""
    method = dk.SoftREPA(soft(("down", "mid"), 32))
    sampler = dk.Sampler(sd, method, num_steps=4, guidance_scale=3.0, solver="ddim", eta=1.0)
    state = sampler.init(TARGET, seeds=[0, 1])
    state = state.replace(xt=random_inverted.path[:, 0], noise=random_inverted.state.noise)

    def edit(m):
        return random_inverted.edit(TARGET, m, skip=0, guidance_scale=3.0).finish().state

    assert same(edit(method), dk.Run(sampler, state).finish().state)
    assert (edit(method).xt - edit(None).xt).abs().max() > 1e-3


def methods(reward):
    guidance = dk.UniversalGuidance(reward, scale=2.0, backward_steps=1, recurrence=2)
    running = dk.DATE(reward, rho=1.0, anchor="running")
    return running, dk.RandomDirection(1.0), dk.EBCA(), dk.DATE(reward) + guidance


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_acts_in_every_edit(kind, brightness, sd):
    edit, settings = starter(kind, sd, pictures(sd), num_steps=4), {"skip": 1}
    plain = edit(None, **settings).finish().state
    assert same(edit(dk.DATE(brightness, rho=0.0), **settings).finish().state, plain)
    for method in methods(brightness):
        run = edit(method, **settings)
        run.step(2)
        twin = run.fork(dk.Fixed(), at=1).finish()
        assert same(twin.state, plain)
        assert not torch.equal(plain.xt, run.finish().state.xt)


def test_an_edit_does_not_depend_on_its_batch(inverted, shapes):
    together = inverted.edit(TARGET, skip=1).finish()
    alone = editing.ddpm_inversion(shapes, scenes()[1:], SOURCE[1], num_steps=STEPS, seeds=[4])
    difference = alone.edit(TARGET, skip=1).finish().state.xt[0] - together.state.xt[1]
    assert difference.abs().max() <= 2e-3  # rounding that the solved noise carries along


def test_one_picture_or_one_prompt_serves_all(shapes, inverted):
    both, settings = [TARGET, "a red circle"], {"num_steps": 3}
    assert editing.sdedit(shapes, scenes(1), both, **settings).prompts == tuple(both)
    assert len(editing.sdedit(shapes, scenes(1), TARGET, seeds=[0, 1, 2], **settings).state) == 3
    assert inverted.edit(both).prompts == tuple(both)
    for count, prompts, seeds in ((2, TARGET, [0, 1, 2]), (3, both, None), (1, both, [0, 1, 2])):
        with pytest.raises(ValueError, match=r"latents must be|prompts need"):
            editing.sdedit(shapes, scenes(count), prompts, seeds=seeds, **settings)


@pytest.mark.parametrize(("kind", "settings"), [
    *((kind, {"skip": 0}) for kind in KINDS),
    ("flowedit", {"n_max": 4, "n_min": 0}), ("flowedit", {"n_max": 4, "n_min": 2}),
])  # fmt: skip
def test_what_a_mask_keeps_stays_exactly(kind, settings):
    backbone = dk.load("shapes-flow" if kind == "flowedit" else "shapes", device="cpu")
    keep, x0 = torch.zeros(2, 64, 64, dtype=torch.bool), backbone.encode_images(scenes())
    keep[0, :, :32] = True
    edit = starter(kind, backbone, scenes(), num_steps=4)
    masked, free = (edit(None, keep=k, **settings).finish().state.xt for k in (keep, None))
    torch.testing.assert_close(masked[0, :, :, :8], x0[0, :, :, :8], rtol=0, atol=1e-6)
    assert (masked[0, :, :, 8:] - x0[0, :, :, 8:]).abs().max() > 1e-2
    torch.testing.assert_close(masked[1], free[1])


def test_an_inversion_survives_its_file(inverted, random_inverted, sd, tmp_path):
    loaded = editing.Inversion.load(inverted.save(tmp_path / "a.pt"))
    assert torch.equal(loaded.path, inverted.path)
    edits = [inversion.edit(TARGET, skip=2).finish().state for inversion in (loaded, inverted)]
    assert same(*edits)
    assert repr(loaded) == repr(inverted)
    path, renamed = random_inverted.save(tmp_path / "b.pt"), dk.wrap(sd.pipe, name="renamed")
    assert torch.equal(editing.Inversion.load(path, renamed).path, random_inverted.path)
    for name in ("num_steps", "backbone", "eta", "solver"):
        with pytest.raises(ValueError, match=f"{name} cannot change"):
            inverted.edit(TARGET, **{name: 5})


def test_bad_input_is_refused(shapes, inverted):
    with pytest.raises(ValueError, match="eta = 0 has none"):
        editing.ddpm_inversion(shapes, scenes(1), SOURCE[0], eta=0)
    with pytest.raises(ValueError, match=r"use dk\.editing\.flowedit"):
        editing.ddpm_inversion(families.backbone("sd3"), scenes(1), SOURCE[0])
    for skip in (1.0, -0.1, STEPS, True, "half", 0.99):
        with pytest.raises(ValueError, match="skip"):
            inverted.edit(TARGET, skip=skip)
    with pytest.raises(dk.NonFiniteError, match=r"not finite .* sample 0, 1 at step 3"):
        inverted.edit(TARGET, guidance_scale=1e38, skip=2).finish()
