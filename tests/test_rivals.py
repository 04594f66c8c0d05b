"""Feynman-Kac steering, LiDAR and ReNO: each against a second derivation, and its limits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pipelines
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchLCMScheduler
from flow import FlowGaussian
from pipelines import guided, off

import datekit as dk
from datekit import noise

PROMPTS = ["a red circle", "a green star on red"]
SEEDS = [3, 4]
W = 3.0


def steering(reward, backbone="gaussian-mixture", *, method=None, **settings):
    settings = {"num_steps": 10, "eta": 1.0, "when": dk.every(2)} | settings
    return dk.FKSteering(dk.load(backbone), method, reward=reward, **settings)


def systematic(weights, u):
    """Where the comb of K teeth at (u + j) / K falls, by walking along the weights."""
    ancestors, n, reached = [], 0, weights[0]
    for j in range(len(weights)):
        while (u + j) / len(weights) >= reached:
            n += 1
            reached += weights[n]
        ancestors.append(n)
    return ancestors


def particle_filter(sampler, state, prompt, seeds):
    """Feynman-Kac steering of one prompt in numpy, with DDIM at eta = 1 written out.

    Returns each step's (h, weights, ancestors), and the last latents.
    """
    model, count = sampler.backbone, len(seeds)
    x, cond = state.xt.numpy(), state.cond_org
    history, product, weights, seen = np.zeros((0, count)), np.ones(count), np.ones(count), []
    table = model.scheduler.alphas_cumprod.double().numpy()
    for i, t in enumerate(sampler.solver.timesteps):
        x0 = model.x0bar(torch.from_numpy(x), t, cond).numpy()
        last = i + 1 == sampler.num_steps
        a, b = table[t], table[0] if last else table[sampler.solver.timesteps[i + 1]]
        eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
        sd = np.sqrt((1 - b) / (1 - a) * (1 - a / b))
        z = noise.normal(seeds, i, x.shape[1:], torch.float64).numpy()
        x = np.sqrt(b) * x0 + np.sqrt(np.maximum(1 - b - sd**2, 0)) * eps + sd * z
        if not last and i % 2:
            continue
        pictures = model.decode(torch.from_numpy(x if last else x0))
        h = sampler.reward(pictures, [prompt] * count).numpy()
        before = history[-1] if len(history) else np.zeros(count)
        history = np.vstack([history, h])
        grown = {"max": history.max(0), "sum": history.sum(0), "difference": h - before}
        g = np.exp(sampler.strength * grown[sampler.potential])
        g = np.exp(sampler.strength * h) / product if last else g
        product, weights = product * g, weights * g
        told, ancestors = weights, np.arange(count)
        if weights.sum() ** 2 / (weights**2).sum() < sampler.threshold * count * (1 - 1e-9):
            (source,) = noise.generators(seeds[:1], i, "resampling")
            u = torch.rand((), generator=source, dtype=torch.float64).item()
            ancestors = np.array(systematic(weights / weights.sum(), u))
            x, history, product = x[ancestors], history[:, ancestors], product[ancestors]
            weights = np.ones(count)
        seen.append((h, told, ancestors))
    return seen, x, product, history[-1]


@pytest.mark.parametrize("potential", ["max", "difference", "sum"])
@pytest.mark.parametrize("threshold", [0.6, 1.0])
def test_fk_steering_is_a_particle_filter(target, potential, threshold):
    settings = {"particles": 5, "strength": 12.0, "threshold": threshold, "potential": potential}
    sampler = steering(target, **settings)
    run, moved = sampler.start(PROMPTS, seeds=SEEDS), set()
    start = run.state
    run.finish()
    infos = [info.extras for info in run.history if "fk_h" in info.extras]
    for n, prompt in enumerate(PROMPTS):
        rows = slice(5 * n, 5 * n + 5)
        seen, x, product, h = particle_filter(sampler, start[rows], prompt, run.seeds[rows])
        assert len(seen) == len(infos) == 6
        for info, (judged, weights, ancestors) in zip(infos, seen, strict=True):
            np.testing.assert_allclose(info["fk_h"][rows], judged, rtol=1e-4)
            np.testing.assert_allclose(info["fk_log_weights"][rows].exp(), weights, rtol=1e-4)
            assert (info["fk_ancestors"][rows] - 5 * n).tolist() == ancestors.tolist()
            moved |= {*ancestors.tolist()} ^ {*range(5)}
        assert off(run.state.xt[rows], torch.from_numpy(x)) <= 1e-4
        # whichever the potentials, their product is exp(strength h(x0))
        log_product = run.state.extras["fk_log_product"][rows]
        np.testing.assert_allclose(log_product.exp(), product, rtol=1e-4)
        np.testing.assert_allclose(log_product, 12.0 * h, rtol=1e-4)
        pictures = sampler.decode(run.state.xt[rows])
        judged = target(pictures, [prompt] * 5)
        assert sampler.best(run.state)[n] == 5 * n + judged.argmax()
    assert moved  # somebody died


def test_one_particle_is_the_sampler_itself(target):
    sampler = steering(target, particles=1, strength=50.0, threshold=1.0)
    plain = dk.Sampler(sampler.backbone, num_steps=10, eta=1.0)
    steered, alone = (s.start(PROMPTS, seeds=SEEDS).finish() for s in (sampler, plain))
    assert torch.equal(steered.state.xt, alone.state.xt)


@pytest.mark.parametrize("off_switch", [{"strength": 0.0, "threshold": 1.0}, {"threshold": 0.0}])
def test_without_resampling_the_particles_are_independent_samples(target, off_switch):
    sampler = steering(target, particles=3, method=dk.DATE(target), **off_switch)
    run = sampler.start(PROMPTS, seeds=SEEDS, negative_prompts=["", "a dog"]).finish()
    plain = dk.Sampler(sampler.backbone, dk.DATE(target), num_steps=10, eta=1.0)
    negatives = ["", "", "", "a dog", "a dog", "a dog"]
    alone = plain.start(run.prompts, seeds=run.seeds, negative_prompts=negatives).finish()
    assert torch.equal(run.state.xt, alone.state.xt)
    candidates = dk.best_of(plain, 3, target).start(PROMPTS, seeds=SEEDS)
    best = candidates.finish()
    torch.testing.assert_close(run.pixels[sampler.best(run.state)], best.pixels)


def sde(backbone):
    """A multistep solver that adds noise."""
    kind = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
    return DPMSolverMultistepScheduler.from_config(backbone.scheduler.config, **kind)


def test_all_of_a_particle_is_copied_but_its_seed(target):
    """A step is the plain sampler's, of which every row goes on from its ancestor's."""
    backbone = dk.load("gaussian-mixture")
    date = dk.DATE(target, rho=0.3, when=dk.every(3))
    settings = {"solver": sde(backbone), "num_steps": 10, "eta": 0.0}
    sampler = steering(target, method=date, strength=60.0, threshold=1.0, **settings)
    plain, run, died = (
        dk.Sampler(backbone, date, **settings),
        sampler.start(PROMPTS, seeds=SEEDS),
        0,
    )
    for before, info in zip(itertools.repeat(run), run, strict=False):
        rows = info.extras.get("fk_ancestors", torch.arange(8))
        following, _ = plain.step(before.states[-2])
        assert torch.equal(run.state.xt, following.xt[rows])
        assert torch.equal(run.state.c, following.c[rows])
        past, plainly = run.state.solver_state, following.solver_state
        for found, expected in zip(past["model_outputs"], plainly["model_outputs"], strict=True):
            assert found is expected is None or torch.equal(found, expected[rows])
        assert past["lower_order_nums"] == plainly["lower_order_nums"]
        assert run.state.seeds == run.seeds
        died += len(rows) - len(set(rows.tolist()))
    assert died > 2
    assert len({*run.state.xt.flatten(1).sum(1).tolist()}) > 4  # copies have parted


def test_steering_goes_on_from_a_file_and_from_a_fork(target, tmp_path):
    sampler = steering(target, method=dk.DATE(target, rho=0.3), strength=40.0)
    whole = sampler.start(PROMPTS, seeds=SEEDS).finish()
    half = sampler.start(PROMPTS, seeds=SEEDS)
    half.step(5)
    loaded = dk.Run.load(half.save(tmp_path / "half.run"))
    assert type(loaded.sampler) is dk.FKSteering
    assert torch.equal(loaded.finish().state.xt, whole.state.xt)
    for name, value in whole.state.extras.items():
        assert torch.equal(loaded.state.extras[name], value)
    assert torch.equal(whole.fork(at=3).finish().state.xt, whole.state.xt)
    weak = whole.fork(strength=0.1, at=0).finish()
    assert not torch.equal(weak.state.xt, whole.state.xt)
    torch.testing.assert_close(weak.state.extras["fk_log_product"], 0.1 * weak.state.extras["fk_h"])


def test_a_prompts_particles_do_not_depend_on_its_batch(target):
    sampler = steering(target, strength=40.0)
    both = sampler.start(PROMPTS, seeds=SEEDS).finish()
    alone = sampler.start(PROMPTS[1:], seeds=SEEDS[1:]).finish()
    torch.testing.assert_close(alone.state.xt, both.state.xt[4:])
    assert [row + 4 for row in sampler.best(alone.state)] == sampler.best(both.state)[1:]


@pytest.mark.parametrize(("settings", "told"), [
    ({"eta": 0.0}, r"ddim adds no noise.*eta=1"),
    ({"eta": 0.0, "solver": "dpm++"}, r"adds no noise.*solver='ddim'"),
    ({"potential": "min"}, "Known: 'difference', 'max', 'sum'"),
    ({"particles": 0}, "particles must be"), ({"strength": math.nan}, "strength must be"),
    ({"when": dk.steps(20)}, "names step 20"),
])  # fmt: skip
def test_steering_that_cannot_be_is_refused(target, settings, told):
    with pytest.raises(ValueError, match=told):
        steering(target, **settings)


def test_steering_refuses_latents_and_flows_without_noise(target):
    with pytest.raises(ValueError, match=r"adds no noise.*FlowMatchLCMScheduler"):
        dk.FKSteering(FlowGaussian(), reward=target)
    noisy = {"solver": FlowMatchLCMScheduler(shift=2.0), "strength": 1e4, "when": dk.every(3)}
    run = dk.FKSteering(FlowGaussian(), reward=target, **noisy).start("a red circle", seeds=0)
    run.step(4)
    assert len(set(run.history[3].extras["fk_ancestors"].tolist())) < 4
    assert len(set(run.finish().states[5].xt.sum((1, 2, 3)).tolist())) == 4  # copies have parted
    sampler = steering(target)
    with pytest.raises(ValueError, match="give no latents"):
        sampler.init(PROMPTS, latents=torch.zeros(2, 3, 8, 8))
    with pytest.raises(RuntimeError, match="0 of 10 steps"):
        sampler.best(sampler.init(PROMPTS))
    with pytest.raises(TypeError, match="got None"):
        steering(None)


def pull(x, a, x0, h, strength):
    """grad_x log(sum_k p(x | x0_k) exp(strength h_k) / sum_k p(x | x0_k)), one sample at a time."""
    rows = []
    for n in range(len(x)):
        leaf = x[n].clone().requires_grad_()
        fit = torch.stack([-((leaf - a.sqrt() * each) ** 2).sum() / 2 / (1 - a) for each in x0[n]])
        efr = torch.logsumexp(fit + strength * h[n], 0) - torch.logsumexp(fit, 0)
        rows.append(torch.autograd.grad(efr, leaf)[0])
    return torch.stack(rows)


@torch.no_grad()
def ahead(pipe, state, seeds, num_steps):
    """A lookahead sample of each prompt by diffusers' own DPM-Solver++."""
    scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(num_steps)
    xt = noise.initial(seeds, state.xt.shape[1:], state.xt.dtype)
    for t in scheduler.timesteps:
        xt = scheduler.step(guided(pipe, state, xt, t, W), t, xt, return_dict=False)[0]
    return xt


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_lidar_equals_the_plain_derivation(brightness, kind):
    pipe = pipelines.stable_diffusion(kind).to(dtype=torch.float64)
    strength = {"epsilon": 9.75e4, "v_prediction": 5e3}[kind]  # some weights lie between 0 and 1
    method = dk.LiDAR(
        brightness, 3, lookahead_steps=2, strength=strength, scale=5.0, when=dk.steps(0, 1, 2)
    )
    sampler = dk.Sampler(dk.wrap(pipe), method, num_steps=4, guidance_scale=W)
    run = sampler.start(PROMPTS, seeds=SEEDS)
    state, samples = run.state, []
    for k in range(3):
        seeds = [noise.derived(seed, k, "lookahead") for seed in SEEDS]
        samples.append(ahead(pipe, state, seeds, 2))
    x0 = torch.stack(samples, 1)
    pictures = [pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample for x in samples]
    h = torch.stack([brightness(each / 2 + 0.5, PROMPTS) for each in pictures], 1).detach()
    pipe.scheduler.set_timesteps(4)
    table, x, v = pipe.scheduler.alphas_cumprod.double(), state.xt, kind == "v_prediction"
    for i, t in enumerate(pipe.scheduler.timesteps):
        a, b = table[t], table[max(t - 250, 0)]
        out = guided(pipe, state, x, t, W).detach()
        eps = a.sqrt() * out + (1 - a).sqrt() * x if v else out
        if i < 3:
            eps = eps - 5.0 * (1 - a).sqrt() * pull(x, a, x0, h, strength)
        x = b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
        run.step()
        assert ("lidar_push" in run.history[i].extras) == (i < 3)
        assert off(run.state.xt, x) <= 1e-4
    assert off(run.state.extras["lidar_x0"].flatten(0, 1), x0.flatten(0, 1)) <= 1e-4
    fixed = run.fork(dk.Fixed(), at=0).finish().state.xt
    assert off(run.state.xt, fixed) > 0.02  # the guidance is no rounding error


@pytest.mark.parametrize("make", [lambda: dk.load("gaussian-mixture"), FlowGaussian])
def test_lidar_limits_and_batch(target, make):
    method = dk.LiDAR(target, samples=4, strength=80.0, scale=6.0)
    sampler = dk.Sampler(make(), method, num_steps=8)
    whole = sampler.start(PROMPTS, seeds=SEEDS).finish()
    plain = whole.fork(dk.Fixed(), at=0).finish()
    for nothing in ({"scale": 0.0}, {"strength": 0.0}):
        idle = dk.LiDAR(**vars(method) | nothing)
        assert torch.equal(whole.fork(idle, at=0).finish().state.xt, plain.state.xt)
    one = whole.fork(dk.LiDAR(target, samples=1), at=0).finish()
    torch.testing.assert_close(one.state.xt, plain.state.xt)  # there is nothing to choose
    assert off(whole.state.xt, plain.state.xt) > 0.02
    alone = sampler.start(PROMPTS[1:], seeds=SEEDS[1:]).finish()
    torch.testing.assert_close(alone.state.xt, whole.state.xt[1:])


def test_lidar_says_what_it_does_not_go_with(shapes, reward):
    lidar = dk.LiDAR(reward)
    with pytest.raises(ValueError, match="does not go with a method that patches"):
        dk.Sampler(shapes, lidar + dk.EBCA())
    with pytest.raises(ValueError, match="cannot combine"):
        lidar + dk.DATE(reward)


def descend(pipe, sampler, state, reward, search):
    """ReNO in plain PyTorch, each sample with an optimiser of its own: all noises and rewards."""
    table, path, rewards = pipe.scheduler.alphas_cumprod, [], []
    timesteps = sampler.solver.timesteps
    for n, prompt in enumerate(PROMPTS):
        z = torch.nn.Parameter(state.xt[n : n + 1].clone())
        optimizer = torch.optim.SGD([z], search.rate, momentum=search.momentum, nesterov=True)
        one, zs, hs = state[n : n + 1], [], []
        for _ in range(search.iterations + 1):
            x = z
            for i, t in enumerate(timesteps):
                a = table[t]
                b = table[timesteps[i + 1]] if i + 1 < len(timesteps) else table[0]
                eps = guided(pipe, one, x, t, W)
                x = b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
            images = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample / 2 + 0.5
            h, r = reward(images, [prompt]).sum(), z.norm()
            likely = 0.5 * r**2 - (z.numel() - 1) * r.log()
            optimizer.zero_grad()
            (-h + search.regularization * likely).backward()
            torch.nn.utils.clip_grad_norm_([z], search.clip)
            zs.append(z.detach().clone())
            hs.append(h.item())
            optimizer.step()
        path.append(torch.cat(zs))
        rewards.append(hs)
    return torch.stack(path, 1), torch.tensor(rewards).T


@pytest.mark.parametrize(("num_steps", "clip"), [(1, 0.1), (2, 10.0)])
def test_reno_equals_the_plain_derivation(brightness, num_steps, clip):
    pipe = pipelines.stable_diffusion()
    sampler = dk.Sampler(dk.wrap(pipe), num_steps=num_steps, guidance_scale=W, micro_batch=1)
    search = dk.ReNO(sampler, brightness, iterations=4, rate=3.0, clip=clip, regularization=0.001)
    found = search.start(PROMPTS, seeds=SEEDS)
    path, rewards = descend(pipe, sampler, found.start, brightness, search)
    found.finish()
    assert len(found.path) == len(found.rewards) == 5
    for noises, expected in zip(found.path, path, strict=True):
        assert off(noises, expected) <= 1e-4
    assert off(path[-1], path[0]) > 1e-3
    torch.testing.assert_close(torch.stack(found.rewards), rewards, rtol=1e-4, atol=1e-6)
    assert found.index.tolist() == rewards.argmax(0).tolist()


@pytest.mark.parametrize("num_steps", [1, 4])
def test_reno_on_the_shipped_model(shapes, reward, prompts, num_steps, tmp_path):
    sampler = dk.Sampler(shapes, num_steps=num_steps)
    plain = sampler.start(prompts[:2], seeds=SEEDS).finish()
    none = dk.ReNO(sampler, reward, iterations=0).start(prompts[:2], seeds=SEEDS).finish()
    assert torch.equal(none.pixels, plain.pixels)
    search = dk.ReNO(sampler, reward, iterations=4)
    whole = search.start(prompts[:2], seeds=SEEDS).finish()
    best = torch.stack(whole.rewards).max(0).values
    assert (best >= whole.rewards[0]).all()
    assert best.sum() > whole.rewards[0].sum()
    torch.testing.assert_close(
        reward(whole.run.finish().pixels, prompts[:2]), best, atol=0.05, rtol=0
    )
    half = search.start(prompts[:2], seeds=SEEDS)
    half.step()
    half.step()
    again = dk.NoiseSearch.load(half.save(tmp_path / "half.search")).finish()
    for mine, theirs in zip(again.path + again.rewards, whole.path + whole.rewards, strict=True):
        assert torch.equal(mine, theirs)
    alone = search.start(prompts[1:2], seeds=SEEDS[1:]).finish()
    torch.testing.assert_close(alone.path[-1], whole.path[-1][1:], rtol=1e-3, atol=1e-3)


def test_reno_says_what_is_wrong(target, tmp_path):
    sampler = dk.Sampler(dk.load("gaussian"), dk.DATE(target), num_steps=2)
    assert dk.ReNO(sampler).reward is target
    with pytest.raises(TypeError, match=r"takes a dk\.Sampler"):
        dk.ReNO(dk.load("gaussian"), target)
    with pytest.raises(ValueError, match="iterations must be"):
        dk.ReNO(sampler, iterations=-1)
    search = dk.ReNO(sampler, iterations=1).start(PROMPTS, seeds=SEEDS)
    with pytest.raises(RuntimeError, match="no noise is judged yet"):
        search.images  # noqa: B018
    path = search.finish().save(tmp_path / "a.search")
    with pytest.raises(RuntimeError, match="all 1 iterations"):
        search.step()
    with pytest.raises(ValueError, match=r"rate was 5\.0, now 2\.0"):
        dk.NoiseSearch.load(path, dk.ReNO(sampler, iterations=1, rate=2.0))
