"""Edit-friendly DDPM inversion (arXiv 2304.06140): the step noise that leads exactly to a given image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import noise
from ..rewards.base import check_finite
from ..solvers import Solver
from ..types import State
from .base import EditSampler, begin, is_flow, source_prompts
from .identity import witness
from .inversion import Inversion

SOURCE, TARGET = (
    3.5 / 7.5,
    15 / 7.5,
)  # the paper's guidance scales, in units of what Stable Diffusion is usually sampled with
SKIP = 0.36


def ddpm_inversion(
    backbone,
    image,
    source: Sequence[str] | str,
    *,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    eta: float = 1.0,
    seeds=None,
    negative_prompts=None,
    height: int | None = None,
    width: int | None = None,
    fit: str | None = None,
) -> Inversion:
    """The noise maps of an image: independent xt for every step, and the step noise z_t that joins them.

        xt = alpha_t x0 + sigma_t eps_t,    z_t = (x_{t-1} - mu_t(xt)) / s_t,    x_{t-1} <- mu_t + s_t z_t

    with eps_t from (seed, step), mu_t and s_t those of the DDIM step with eta, guided by uncond + w (cond - uncond) under the source
    prompt. Sampling the source prompt with these z gives the image back, from any step and for any eta > 0; where the last step has no
    noise (s = 0), it adds x0 - mu instead. An edit keeps the z and changes the prompt.

    backbone: from `dk.load` or `dk.wrap`; image: what `as_images` takes, B pictures or one for all prompts; source: B strings or one;
    num_steps: twice what the backbone recommends by default, 100 on Stable Diffusion as in the paper; guidance_scale: w of the source,
    by default 3.5 on Stable Diffusion and in proportion elsewhere; edits then take 15 and skip 0.36 by default. Costs num_steps
    passes of the network. Raises ValueError for a flow model (`flowedit` edits those), eta = 0 (`ddim_inversion`), or bad input.
    """
    if is_flow(backbone):
        raise ValueError(
            f"{backbone.name} is a flow, whose steps take no noise to solve for; use dk.editing.flowedit"
        )
    if not eta:
        raise ValueError(
            "edit-friendly inversion puts the image into the step noise, and eta = 0 has none; use dk.editing.ddim_inversion"
        )
    usual = backbone.recommended
    steps = min(2 * usual.num_steps, 100) if num_steps is None else num_steps
    w = SOURCE * usual.guidance_scale if guidance_scale is None else guidance_scale
    sampler = EditSampler(backbone, num_steps=steps, guidance_scale=w, solver="ddim", eta=eta)
    state, pixels = begin(
        sampler,
        image,
        source_prompts(source),
        seeds=seeds,
        negative_prompts=negative_prompts,
        height=height,
        width=width,
        fit=fit,
    )
    x0 = state.xt
    with torch.no_grad():
        path, z, residual = _maps(sampler, state, x0)
    state = state.replace(xt=path[:, 0], noise=z)
    return Inversion(
        kind="ddpm",
        sampler=sampler,
        state=state,
        path=path,
        pixels=pixels,
        witness=witness(sampler, state, path),
        guidance_scale=TARGET * usual.guidance_scale,
        skip=SKIP,
        extras={} if residual is None else {"residual": residual},
    )


def _maps(sampler: EditSampler, state: State, x0: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """xt of every step (B, T + 1, C, h, w), z (T, B, C, h, w), and what a last step without noise misses, (B, C, h, w) or None."""
    solver, exact = sampler.solver_for(x0.shape), torch.promote_types(x0.dtype, torch.float32)
    draw = lambda i: noise.normal(state.seeds, i, x0.shape[1:], exact, purpose="ddpm inversion").to(
        x0.device
    )
    noised = lambda i: (solver.level(i)[0] * x0.to(exact) + solver.level(i)[1] * draw(i)).to(
        x0.dtype
    )
    path, maps, residual = [noised(i) for i in range(sampler.num_steps)] + [x0], [], None
    for i in range(sampler.num_steps):
        here = state.replace(xt=path[i], i=i, t=solver.timesteps[i])
        out = sampler.predict(here).out
        step = lambda z: solver.step(out, path[i], i, {}, state.seeds, z)[0]  # noqa: B023
        mu, s = step(torch.zeros_like(x0)), spread(solver, i)
        if s > 0:
            z = ((path[i + 1].to(exact) - mu.to(exact)) / s).to(x0.dtype)
            path[i + 1] = (
                step(z) if i + 1 < sampler.num_steps else x0
            )  # what sampling will reach, so that rounding does not add up
        else:
            z = torch.zeros_like(x0)
            residual = x0 - mu if i + 1 == sampler.num_steps else residual
            path[i + 1] = mu if i + 1 < sampler.num_steps else x0
        check_finite(z, "the noise map is not finite", f" at step {i}")
        maps.append(z)
    return torch.stack(path, 1), torch.stack(maps), residual


def spread(solver: Solver, i: int) -> float:
    """s_t, the standard deviation of the noise in step i: eta sqrt((sigma'^2 / sigma^2) (1 - alpha^2 / alpha'^2)), ' after the step."""
    (alpha, sigma), (alpha_next, sigma_next) = solver.level(i), solver.level(i + 1)
    return solver.eta * sigma_next / sigma * math.sqrt(max(0.0, 1 - (alpha / alpha_next) ** 2))
