"""Edit-friendly DDPM inversion (arXiv 2304.06140): step noise that leads exactly to a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import noise
from ..errors import check_finite
from ..solvers import Solver
from ..types import State
from .base import EditSampler, begin, is_flow, source_prompts
from .inversion import Inversion

USUAL = 7.5  # the guidance scale of Stable Diffusion, in units of which the paper's are kept
SOURCE, TARGET = 3.5 / USUAL, 15 / USUAL
SKIP = 0.36


def ddpm_inversion(
    backbone,
    image,
    source: Sequence[str] | str,
    *,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    eta: float = 1.0,
    **start,
) -> Inversion:
    """The noise maps of a picture: independent xt for every step, and the step noise that joins
    them.

        xt = alpha_t x0 + sigma_t eps_t,    z_t = (x_{t-1} - mu_t(xt)) / s_t

    eps_t depends on (seed, step); mu_t and s_t are those of the DDIM step with eta, guided by
    uncond + w (cond - uncond) under the source prompt. Sampling the source prompt with these z_t,
    x_{t-1} <- mu_t + s_t z_t, gives the picture back, from any step and for any eta > 0. Where the
    last step takes no noise (s = 0), it adds x0 - mu instead. An edit keeps the z_t and changes the
    prompt.

    backbone: from `dk.load` or `dk.wrap`, or a diffusers pipeline; image: what `as_images` takes;
    source: one prompt for all pictures, or one for each. num_steps: twice what the backbone
    recommends by default, 100 on Stable Diffusion as in the paper. guidance_scale: w of the source,
    3.5 on Stable Diffusion by default and in proportion elsewhere; edits then take 15 and skip 0.36
    of the steps by default. start: seeds, negative_prompts, height, width and fit, as for
    `Sampler.init` and `as_images`. Costs num_steps passes of the network.

    Raises ValueError for a flow model (`flowedit` edits those), for eta = 0 (`ddim_inversion`), and
    for bad input.
    """
    if is_flow(backbone):
        raise ValueError(
            "a flow model takes no step noise that could be solved for; use dk.editing.flowedit"
        )
    if not eta:
        raise ValueError(
            "edit-friendly inversion puts the image into the step noise, and eta = 0 has none; use "
            "dk.editing.ddim_inversion"
        )
    sampler = EditSampler(backbone, solver="ddim", eta=eta)
    usual = sampler.backbone.recommended
    sampler = sampler.replace(
        num_steps=min(2 * usual.num_steps, 100) if num_steps is None else num_steps,
        guidance_scale=SOURCE * usual.guidance_scale if guidance_scale is None else guidance_scale,
    )
    state, pixels = begin(sampler, image, source_prompts(source), **start)
    with torch.no_grad():
        path, z, residual = noise_maps(sampler, state)
    extras = {} if residual is None else {"residual": residual}
    state = state.replace(xt=path[:, 0], noise=z, extras=extras)
    return Inversion(
        kind="ddpm",
        sampler=sampler,
        state=state,
        path=path,
        pixels=pixels,
        guidance_scale=TARGET * usual.guidance_scale,
        skip=SKIP,
    )


def noise_maps(sampler: EditSampler, state: State) -> tuple[Tensor, Tensor, Tensor | None]:
    """The path and the step noise of the picture whose latent x0 is `state.xt`.

    The path is xt of every step and x0, (B, T + 1, C, h, w); the noise is (T, B, C, h, w). The
    third is what a last step without noise misses, (B, C, h, w), or None.
    """
    x0, steps = state.xt, sampler.num_steps
    solver, exact = sampler.solver_for(x0.shape), torch.promote_types(x0.dtype, torch.float32)
    path = []
    for i in range(steps):
        eps = noise.normal(state.seeds, i, x0.shape[1:], exact, purpose="ddpm inversion")
        path.append(solver.noised(x0.to(exact), eps.to(x0.device), i).to(x0.dtype))
    path.append(x0)
    none, maps, residual = torch.zeros_like(x0), [], None
    for i in range(steps):
        out = sampler.predict(state.replace(xt=path[i], i=i, t=solver.timesteps[i])).out
        mu = solver.step(out, path[i], i, {}, state.seeds, none)[0]
        s, last = spread(solver, i), i + 1 == steps
        z = ((path[i + 1].to(exact) - mu.to(exact)) / s).to(x0.dtype) if s > 0 else none
        check_finite(z, "the noise map is not finite", f" at step {i}")
        maps.append(z)
        if not last:  # what sampling will reach, so that rounding does not add up
            path[i + 1] = solver.step(out, path[i], i, {}, state.seeds, z)[0]
        elif s == 0:
            residual = x0 - mu
    return torch.stack(path, 1), torch.stack(maps), residual


def spread(solver: Solver, i: int) -> float:
    """s_t, the standard deviation of the noise in step i (DDIM, Eq. 16).

    It is eta sqrt((sigma'^2 / sigma^2) (1 - alpha^2 / alpha'^2)), where ' means after the step.
    """
    (alpha, sigma), (alpha_next, sigma_next) = solver.level(i), solver.level(i + 1)
    return solver.eta * sigma_next / sigma * math.sqrt(max(0.0, 1 - (alpha / alpha_next) ** 2))
