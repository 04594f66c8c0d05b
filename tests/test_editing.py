"""Inversions and the edits that start from them: exact reconstruction, the formulas, and an edit as a run."""

from __future__ import annotations

import math
import subprocess
import sys

import families
import pipelines
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionImg2ImgPipeline
from soft import soft

import datekit as dk
from datekit import editing, noise, shapes
from datekit.editing.base import first_step

SOURCE, TARGET = (
    ["a blue square above a green star", "a red circle left of a blue square"],
    "a yellow square above a green star",
)
DIFFUSION = ("sd", "sd-v", "sdxl", "pixart-alpha")
STEPS = 6


def pictures(backbone, count=2):
    return torch.rand(count, 3, *backbone.image_size(), generator=torch.Generator().manual_seed(0))


def scenes(count=2):
    return shapes.render(
        [e.before for e in shapes.sample_edits(count, seed=5, kinds=("recolour",))]
    )


def same(a, b) -> bool:
    return (
        torch.equal(a.xt, b.xt)
        and torch.equal(a.c, b.c)
        and (a.i, a.t) == (b.i, b.t)
        and ((a.noise is None and b.noise is None) or torch.equal(a.noise, b.noise))
    )


@pytest.fixture(scope="module")
def inverted(shapes):
    return editing.ddpm_inversion(shapes, scenes(), SOURCE, num_steps=STEPS, seeds=[3, 4])


@pytest.mark.parametrize("name", ["shapes", *DIFFUSION])
def test_ddpm_inversion_reconstructs_from_any_step(name, shapes):
    backbone = shapes if name == "shapes" else families.backbone(name)
    images = scenes() if name == "shapes" else pictures(backbone)
    found = editing.ddpm_inversion(
        backbone, images, SOURCE, num_steps=8, guidance_scale=3.5, seeds=[0, 1]
    )
    assert found.sampler.solver.eta == 1
    for skip in (0, 1, 5, 7, 0.5):
        run = found.reconstruct(skip).finish()
        assert (run.state.xt - backbone.encode_images(images)).abs().max() <= 1e-4
        assert run.states[0].i == first_step(skip, 8)


@pytest.mark.parametrize("w", [0.0, 1.0, 3.5])
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_noise_maps_are_those_of_the_formula(w, eta):
    """z = (x_{t-1} - mu) / s, mu and s of DDIM's Eq. 12 and 16, the guided noise uncond + w (cond - uncond); all in the test."""
    backbone = families.backbone("sd")
    found = editing.ddpm_inversion(
        backbone, pictures(backbone), SOURCE, num_steps=4, guidance_scale=w, eta=eta, seeds=[0, 1]
    )
    cond, uncond = backbone.encode(SOURCE), backbone.encode(["", ""], negative=True)
    table, ts = backbone.scheduler.alphas_cumprod.double(), [751, 501, 251, 1]
    x0 = backbone.encode_images(pictures(backbone))
    for i, t in enumerate(ts):
        a, b = table[t], table[ts[i + 1]] if i < 3 else table[0]
        xt, after = found.path[:, i].double(), found.path[:, i + 1].double()
        drawn = noise.normal([0, 1], i, x0.shape[1:], torch.float32, purpose="ddpm inversion")
        torch.testing.assert_close(
            xt.float(), (a.sqrt() * x0 + (1 - a).sqrt() * drawn).float(), rtol=0, atol=1e-5
        )
        with torch.no_grad():
            eps_u, eps_c = (backbone.predict(xt.float(), t, c).double() for c in (uncond, cond))
        eps = eps_u + w * (eps_c - eps_u)
        s = eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        mu = b.sqrt() * (xt - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b - s**2).sqrt() * eps
        torch.testing.assert_close(
            found.state.noise[i].double(), (after - mu) / s, rtol=1e-4, atol=2e-4
        )


@pytest.mark.parametrize("w", [0.0, 1.0, 5.0])
def test_an_edit_steps_by_the_formula(w):
    """x_{t-1} = mu_t + s z from xt of the path at T - skip, mu of the target's guided noise uncond + w (cond - uncond); all in the test."""
    backbone = families.backbone("sd")
    found = editing.ddpm_inversion(
        backbone, pictures(backbone), SOURCE, num_steps=4, guidance_scale=2.0, eta=0.7, seeds=[0, 1]
    )
    cond, uncond = backbone.encode([TARGET] * 2), backbone.encode(["", ""], negative=True)
    table, ts = backbone.scheduler.alphas_cumprod.double(), [751, 501, 251, 1]
    x = found.path[:, 1].double()
    for i in (1, 2, 3):
        a, b = table[ts[i]], table[ts[i + 1]] if i < 3 else table[0]
        with torch.no_grad():
            eps_u, eps_c = (backbone.predict(x.float(), ts[i], c).double() for c in (uncond, cond))
        eps = eps_u + w * (eps_c - eps_u)
        s = 0.7 * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        x = (
            b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt()
            + (1 - b - s**2).sqrt() * eps
            + s * found.state.noise[i].double()
        )
    edited = found.edit(TARGET, guidance_scale=w, skip=1).finish()
    torch.testing.assert_close(edited.state.xt.double(), x, rtol=1e-4, atol=2e-4)


def test_noise_maps_differ_between_steps_and_are_the_seeds_own(shapes):
    backbone = families.backbone("sd")
    invert = lambda seeds: editing.ddpm_inversion(
        backbone, pictures(backbone), SOURCE, num_steps=8, seeds=seeds
    )
    one, again, other = invert([0, 1]), invert([0, 1]), invert([0, 2])
    assert torch.equal(one.path, again.path)
    assert torch.equal(one.path[0], other.path[0])
    assert not torch.equal(one.path[1], other.path[1])
    eps = [
        (one.path[0, i] - a * one.latents[0]) / s
        for i, (a, s) in enumerate(one.sampler.solver.levels[:8])
    ]
    cosines = torch.corrcoef(torch.stack([e.flatten() for e in eps])) - torch.eye(8)
    assert cosines.abs().max() < 5 / math.sqrt(eps[0].numel())  # 1024 numbers a latent


@pytest.mark.parametrize("name", ["sd", "sd-v"])
def test_ddim_inversion_equals_diffusers(name):
    backbone = families.backbone(name)
    found = editing.ddim_inversion(
        backbone, pictures(backbone), SOURCE, num_steps=10, guidance_scale=2.0
    )
    scheduler = DDIMInverseScheduler.from_config(backbone.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(10)
    cond, uncond, x = (
        backbone.encode(SOURCE),
        backbone.encode(["", ""], negative=True),
        backbone.encode_images(pictures(backbone)),
    )
    for n, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            out_u, out_c = (backbone.predict(x, t, c) for c in (uncond, cond))
        x = scheduler.step(out_u + 2 * (out_c - out_u), t, x).prev_sample
        torch.testing.assert_close(found.path[:, 9 - n], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["shapes", "sd-v", "sd3", "flux"])
def test_ddim_inversions_error_falls_as_steps_grow(name, shapes):
    backbone = shapes if name == "shapes" else families.backbone(name)
    edits = dk.shapes.sample_edits(2, seed=5, kinds=("recolour",))
    images = dk.shapes.render([e.before for e in edits]) if name == "shapes" else pictures(backbone)
    source, errors = [e.source for e in edits], []
    for steps in (8, 16, 32):
        found = editing.ddim_inversion(backbone, images, source, num_steps=steps)
        errors.append(
            (found.reconstruct().finish().state.xt - found.latents).square().mean().sqrt().item()
        )
    assert errors[0] > errors[1] > errors[2] > 0
    assert errors[2] < 0.6 * errors[0]


def test_sdedit_is_diffusers_image_to_image():
    backbone = families.backbone("sd")
    x0 = backbone.encode_images(pictures(backbone))
    pipe = StableDiffusionImg2ImgPipeline(**backbone.pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        [TARGET] * 2,
        image=x0,
        strength=0.6,
        num_inference_steps=10,
        guidance_scale=3.0,
        output_type="latent",
        generator=[torch.Generator().manual_seed(s) for s in (7, 8)],
    ).images
    ours = editing.sdedit(
        backbone,
        pictures(backbone),
        TARGET,
        num_steps=10,
        guidance_scale=3.0,
        skip=0.4,
        seeds=[7, 8],
    ).finish()
    torch.testing.assert_close(ours.state.xt, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["sd-v", "sd3", "flux"])
def test_encoding_is_the_inverse_of_decodings_scale(name):
    backbone = families.backbone(name)
    images, config = pictures(backbone), backbone.pipe.vae.config
    mode = backbone.pipe.vae.encode(2 * images - 1).latent_dist.mean
    torch.testing.assert_close(
        backbone.encode_images(images) / config.scaling_factor + (config.shift_factor or 0), mode
    )
    with pytest.raises(TypeError, match="cannot turn pictures into latents"):
        dk.load("gaussian").encode_images(images)
    assert dk.load("gaussian").image_size() == (32, 32)


RESUME = "import sys, datekit as dk; [dk.Run.load(path).finish().save(path + '.whole') for path in sys.argv[1:]]"


def test_edits_saved_and_resumed_in_a_new_process_are_uninterrupted(
    inverted, shapes, reward, tmp_path
):
    keep = torch.zeros(64, 64)
    keep[:, :20] = 1
    date, flow = dk.DATE(reward, rho=1.0, when=dk.every(2)), dk.load("shapes-flow", device="cpu")
    starts = {
        "ddpm": lambda: inverted.edit(TARGET, date, skip=2, keep=keep),
        "ddim": lambda: editing.ddim_inversion(
            shapes, scenes(), SOURCE, num_steps=STEPS, seeds=[3, 4]
        ).edit(TARGET, date, skip=2),
        "sdedit": lambda: editing.sdedit(
            shapes, scenes(), TARGET, date, num_steps=STEPS, seeds=[3, 4], solver="dpm++", skip=2
        ),
        "flowedit": lambda: editing.flowedit(
            flow,
            scenes(),
            SOURCE,
            TARGET,
            date,
            num_steps=STEPS,
            n_max=4,
            n_min=1,
            n_avg=2,
            keep=keep,
            seeds=[3, 4],
        ),
    }
    parts = []
    for kind, start in starts.items():
        part = start()
        part.step(2)
        parts.append(str(part.save(tmp_path / kind)))
    subprocess.run([sys.executable, "-c", RESUME, *parts], check=True)
    for (kind, start), path in zip(starts.items(), parts, strict=True):
        resumed = dk.Run.load(path + ".whole")
        assert type(resumed.sampler) is (
            editing.FlowEditSampler if kind == "flowedit" else editing.EditSampler
        )
        assert all(same(a, b) for a, b in zip(start().finish().states, resumed.states, strict=True))
        assert (resumed.state.noise is None) == (kind != "ddpm")
        assert len(resumed.history) == STEPS - 2


def test_an_edit_is_a_run(inverted, reward):
    run, alone = (
        inverted.edit(TARGET, dk.DATE(reward, rho=1.0), guidance_scale=4.0, skip=2)
        for _ in range(2)
    )
    assert isinstance(run, dk.Run)
    assert (run.state.i, run.prompts, run.seeds) == (2, (TARGET,) * 2, (3, 4))
    look = run.peek()
    torch.testing.assert_close(
        look.h, reward(inverted.sampler.backbone.decode(look.x0bar), run.prompts)
    )
    run.step(2)
    plain = run.fork(dk.Fixed())
    twin = run.fork(dk.Fixed(), at=2).finish()
    plain.finish(), run.finish()
    assert all(same(a, b) for a, b in zip(run.states, alone.finish().states, strict=True))
    assert same(twin.state, inverted.edit(TARGET, guidance_scale=4.0, skip=2).finish().state)
    assert not torch.equal(plain.state.xt, run.state.xt)
    first = run.state
    assert same(run.rewind().finish().state, first)
    with pytest.raises(ValueError, match="steps 2 to 6"):
        run.rewind(to=1)
    with pytest.raises(ValueError, match="eta cannot change"):
        run.fork(eta=0.5)


def test_soft_tokens_act_in_an_edit_as_in_sampling(brightness):
    """An edit that skips nothing, given the start and noise of plain sampling, is plain sampling with the same tokens."""
    backbone, method = families.backbone("sd"), dk.SoftREPA(soft(("down", "mid"), 32))
    found = editing.ddpm_inversion(backbone, pictures(backbone), SOURCE, num_steps=4, seeds=[0, 1])
    sampler = dk.Sampler(backbone, method, num_steps=4, guidance_scale=3.0, solver="ddim", eta=1.0)
    state = sampler.init(TARGET, seeds=[0, 1]).replace(xt=found.path[:, 0], noise=found.state.noise)
    edit = lambda m: found.edit(TARGET, m, skip=0, guidance_scale=3.0).finish().state
    assert same(edit(method), dk.Run(sampler, state).finish().state)
    assert (edit(method).xt - edit(None).xt).abs().max() > 1e-3
    assert not torch.equal(edit(method + dk.DATE(brightness, rho=1.0)).xt, edit(method).xt)


METHODS = {
    "fixed": lambda reward: dk.Fixed(), "date": lambda reward: dk.DATE(reward, rho=1.0, anchor="running"),
    "random": lambda reward: dk.RandomDirection(1.0), "ebca": lambda reward: dk.EBCA(),
    "universal": lambda reward: dk.UniversalGuidance(reward, scale=2.0, backward_steps=1, recurrence=2),
    "both": lambda reward: dk.DATE(reward, rho=1.0) + dk.UniversalGuidance(reward, scale=2.0),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["ddpm", "ddim", "sdedit"])
def test_every_method_acts_in_every_edit(kind, method, brightness):
    backbone, w = families.backbone("sd"), 3.0
    method = METHODS[method](brightness)
    if kind == "sdedit":
        start = lambda m: editing.sdedit(
            backbone,
            pictures(backbone),
            TARGET,
            m,
            num_steps=4,
            skip=1,
            guidance_scale=w,
            seeds=[0, 1],
        )
    else:
        invert = {"ddpm": editing.ddpm_inversion, "ddim": editing.ddim_inversion}[kind]
        found = invert(backbone, pictures(backbone), SOURCE, num_steps=4, seeds=[0, 1])
        start = lambda m: found.edit(TARGET, m, skip=1, guidance_scale=w)
    plain, moved = start(None).finish(), start(method).finish()
    assert torch.equal(plain.state.xt, moved.state.xt) == (method == dk.Fixed())
    assert same(start(dk.DATE(brightness, rho=0.0)).finish().state, plain.state)
    assert moved.state.xt.isfinite().all()


def test_a_methods_update_in_an_edit_has_the_length_it_says(inverted, reward):
    run = inverted.edit(TARGET, dk.DATE(reward, rho=2.0, when=dk.every(2)), skip=1).finish()
    assert run.history.updated == [2, 4]
    torch.testing.assert_close(run.history[-1].distance, torch.full((2,), 2.0))


def test_an_edit_does_not_depend_on_its_batch(inverted, shapes):
    together = inverted.edit(TARGET, skip=1).finish()
    alone = (
        editing.ddpm_inversion(shapes, scenes()[1:], SOURCE[1:], num_steps=STEPS, seeds=[4])
        .edit(TARGET, skip=1)
        .finish()
    )
    assert (
        alone.state.xt[0] - together.state.xt[1]
    ).abs().max() <= 2e-3  # rounding that the solved noise carries along


def test_one_image_goes_with_several_prompts_and_seeds(shapes):
    one = scenes(1)
    assert len(editing.sdedit(shapes, one, [TARGET, "a red circle"], num_steps=3).prompts) == 2
    assert len(editing.sdedit(shapes, one, TARGET, num_steps=3, seeds=[0, 1, 2]).seeds) == 3
    found = editing.ddpm_inversion(shapes, one, SOURCE[0], num_steps=3, seeds=[0, 1])
    assert found.edit([TARGET, "a red circle"]).prompts == (TARGET, "a red circle")
    with pytest.raises(ValueError, match="2 inverted images take 2 target prompts"):
        found.edit([TARGET])
    with pytest.raises(ValueError, match="3 images take 3 prompts"):
        editing.sdedit(shapes, scenes(3), [TARGET, TARGET], num_steps=3)


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "sdedit"])
def test_what_a_mask_keeps_stays_exactly(kind, shapes):
    keep = torch.zeros(2, 64, 64, dtype=torch.bool)
    keep[0, :, :32] = True
    if kind == "sdedit":
        start = lambda keep: editing.sdedit(
            shapes, scenes(), TARGET, num_steps=4, skip=0, keep=keep, seeds=[0, 1]
        )
    else:
        invert = {"ddpm": editing.ddpm_inversion, "ddim": editing.ddim_inversion}[kind]
        found = invert(shapes, scenes(), SOURCE, num_steps=4, seeds=[0, 1])
        start = lambda keep: found.edit(TARGET, skip=0, keep=keep)
    x0, masked, free = (
        shapes.encode_images(scenes()),
        start(keep).finish().state.xt,
        start(None).finish().state.xt,
    )
    assert torch.equal(masked[0, :, :, :8], x0[0, :, :, :8])
    assert not torch.equal(free[0, :, :, :8], x0[0, :, :, :8])
    assert not torch.equal(masked[0, :, :, 8:], x0[0, :, :, 8:])
    torch.testing.assert_close(masked[1], free[1])
    with pytest.raises(ValueError, match="nothing left to edit"):
        start(torch.ones(64, 64))
    with pytest.raises(ValueError, match="2 pictures take one mask or 2"):
        start(torch.zeros(3, 64, 64))


def test_an_inversion_survives_its_file(inverted, tmp_path):
    loaded = editing.Inversion.load(inverted.save(tmp_path / "inverted.pt"), num_steps=STEPS)
    assert torch.equal(loaded.path, inverted.path)
    assert torch.equal(loaded.state.noise, inverted.state.noise)
    assert same(
        loaded.edit(TARGET, skip=2).finish().state, inverted.edit(TARGET, skip=2).finish().state
    )
    assert (loaded.source, loaded.kind, repr(loaded)) == (inverted.source, "ddpm", repr(inverted))


def test_an_inversion_of_another_backbone_or_step_count_is_refused(
    inverted, tmp_path, random_backbone
):
    found = editing.ddpm_inversion(random_backbone, pictures(random_backbone), SOURCE, num_steps=4)
    path = found.save(tmp_path / "other.pt")
    assert torch.equal(editing.Inversion.load(path, random_backbone).path, found.path)
    twin = dk.wrap(
        pipelines.stable_diffusion(seed=1), name=random_backbone.name
    )  # the same name, other weights
    with pytest.raises(ValueError, match=r"another backbone: .* answers .* differently"):
        editing.Inversion.load(path, twin)
    with pytest.raises(ValueError, match="another backbone: "):
        editing.Inversion.load(path, inverted.sampler.backbone)
    with pytest.raises(ValueError, match="inverted with 4 steps, not 5"):
        editing.Inversion.load(path, random_backbone, num_steps=5)
    for name, value in (("num_steps", 5), ("backbone", twin), ("eta", 0.5), ("solver", "ddpm")):
        with pytest.raises(ValueError, match=f"made with {name} = .*invert the image again"):
            found.edit(TARGET, **{name: value})
    assert found.edit(TARGET, num_steps=4, backbone=random_backbone).sampler.num_steps == 4
    with pytest.raises(ValueError, match=r"Inversion\.load\(path, backbone\)"):
        editing.Inversion.load(path)
    (tmp_path / "x.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match="not an inversion saved by datekit"):
        editing.Inversion.load(tmp_path / "x.pt")
    with pytest.raises(FileNotFoundError):
        editing.Inversion.load(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"beta_schedule": "linear"}, "noise schedule is another: before step 0"),
        ({"set_alpha_to_one": True}, "noise schedule is another: before step 4"),
        ({"timestep_spacing": "trailing"}, "steps visit other timesteps"),
        ({"steps_offset": 0}, "steps visit other timesteps"),
        ({"prediction_type": "v_prediction"}, "prediction is v_prediction and was epsilon"),
    ],
)
def test_an_inversion_of_another_schedule_is_refused(change, said, tmp_path):
    mine, other = pipelines.stable_diffusion(), pipelines.stable_diffusion()
    found = editing.ddpm_inversion(
        dk.wrap(mine), pictures(families.backbone("sd")), SOURCE, num_steps=4, seeds=[0, 1]
    )
    path = found.save(tmp_path / "a.pt")
    assert (
        editing.Inversion.load(path, other).source == found.source
    )  # a pipeline of the same weights and schedule is the same
    other.scheduler = DDIMScheduler.from_config(other.scheduler.config, **change)
    with pytest.raises(ValueError, match=f"another backbone: its {said}"):
        editing.Inversion.load(path, dk.wrap(other))


@pytest.mark.parametrize(
    ("part", "said"),
    [("unet", "network"), ("text_encoder", "text encoder"), ("vae", "autoencoder")],
)
def test_an_inversion_of_slightly_other_weights_is_refused(part, said, tmp_path):
    """Weights 0.2 % larger are seen in float32; larger by 1e-6, which is more than the rounding of one processor, they are not."""
    pipe = pipelines.stable_diffusion()
    found = editing.ddpm_inversion(
        dk.wrap(pipe), pictures(families.backbone("sd")), SOURCE, num_steps=4, seeds=[0, 1]
    )
    path = found.save(tmp_path / "a.pt")
    weights = [w for w in getattr(pipe, part).parameters() if w.ndim > 1]
    larger = lambda size: [w.mul_(1 + size) for w in weights]
    larger(1e-6)
    assert editing.Inversion.load(path, pipe).source == found.source
    larger(2e-3)
    with pytest.raises(
        ValueError,
        match=rf"a DDPM inversion made with .* another backbone: its {said} answers .* differently",
    ):
        editing.Inversion.load(path, pipe)


@pytest.mark.parametrize("name", ["sdxl", "pixart-alpha", "sd3", "sd-v"])
def test_an_inversion_of_another_family_under_its_name_is_refused(name, tmp_path):
    backbone = families.backbone("sd")
    path = editing.ddpm_inversion(backbone, pictures(backbone), SOURCE, num_steps=4).save(
        tmp_path / "a.pt"
    )
    other = dk.wrap(families.backbone(name).pipe, name=backbone.name)
    with pytest.raises(
        ValueError,
        match=rf"a\.pt is a DDPM inversion made with '{backbone.name}', and '{backbone.name}' is another backbone",
    ):
        editing.Inversion.load(path, other)


def test_precision_sets_what_counts_as_the_same_network(inverted, tmp_path):
    from datekit.editing.identity import tolerance

    half = dk.load("shapes", device="cpu", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"precision is torch\.bfloat16 and was torch\.float32"):
        editing.Inversion.load(inverted.save(tmp_path / "a.pt"), half)
    assert tolerance(inverted.sampler.backbone, "cpu") == 1e-4
    assert tolerance(inverted.sampler.backbone, "cuda") == 8 * 2**-10  # TF32
    assert tolerance(half, "cpu") == 8 * 2**-7


def test_counts_that_do_not_go_together_are_refused_in_their_own_words(shapes):
    start = lambda count, prompts, seeds: editing.sdedit(
        shapes, scenes(count), prompts, num_steps=3, seeds=seeds
    )
    with pytest.raises(ValueError, match="2 images take 2 seeds, got 3"):
        start(2, TARGET, [0, 1, 2])
    with pytest.raises(ValueError, match="2 images take 2 seeds, got 1"):
        start(2, TARGET, 5)
    for seeds in ([0, 1, 2], 5):
        with pytest.raises(ValueError, match="2 prompts take 2 seeds, got"):
            start(1, [TARGET] * 2, seeds)
    assert start(1, [TARGET] * 2, (n for n in (7, 8))).seeds == (7, 8)
    assert start(2, (t for t in (TARGET, "a red circle")), None).prompts == (TARGET, "a red circle")


def test_bad_input_is_refused(shapes, inverted):
    image = scenes(1)
    for target in ("", "  ", []):
        with pytest.raises(ValueError, match="target prompt is empty"):
            inverted.edit(target)
        with pytest.raises(ValueError, match="target prompt is empty"):
            editing.sdedit(shapes, image, target)
    with pytest.raises(TypeError, match="target prompt is a string"):
        inverted.edit(None)
    for target in (3, ["a", 3], b"a"):
        with pytest.raises(TypeError, match="target prompt is a string"):
            inverted.edit(target)
    assert inverted.edit(t for t in (TARGET, TARGET)).prompts == (TARGET, TARGET)
    for source in (3, [3], [None]):
        with pytest.raises(TypeError, match="source prompt is a string"):
            editing.ddpm_inversion(shapes, image, source, num_steps=2)
    with pytest.raises(ValueError, match="no source prompt"):
        editing.ddpm_inversion(shapes, image, [], num_steps=2)
    for source in ("", None):
        with pytest.warns(UserWarning, match="source prompt is empty"):
            editing.ddpm_inversion(shapes, image, source, num_steps=2)
    with pytest.raises(ValueError, match="eta = 0 has none"):
        editing.ddpm_inversion(shapes, image, SOURCE[0], eta=0)
    with pytest.raises(ValueError, match=r"use dk\.editing\.flowedit"):
        editing.ddpm_inversion(families.backbone("sd3"), image, SOURCE[0])
    for skip in (1.0, -0.1, STEPS, True, "half"):
        with pytest.raises(ValueError, match="skip"):
            inverted.edit(TARGET, skip=skip)


def test_a_latent_that_is_not_finite_is_an_error(inverted):
    with pytest.raises(
        dk.NonFiniteError, match=r"edited latent is not finite .* sample 0, 1 at step 3"
    ):
        inverted.edit(TARGET, guidance_scale=1e38, skip=2).finish()


def test_defaults_are_the_papers_on_stable_diffusion():
    backbone = families.backbone("sd")
    found = editing.ddpm_inversion(backbone, pictures(backbone, 1), SOURCE[0])
    run = found.edit(TARGET)
    assert (found.sampler.num_steps, found.sampler.guidance_scale, found.sampler.solver.eta) == (
        100,
        3.5,
        1.0,
    )
    assert (run.sampler.guidance_scale, run.state.i) == (15.0, 36)
