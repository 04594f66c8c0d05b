"""SDEdit (arXiv 2108.01073): add noise to the image, then sample under the target prompt. The simplest edit, and the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import noise
from ..run import Run
from .base import EditSampler, begin, check_target, extras_of, first_step


def sdedit(
    backbone,
    image,
    target: Sequence[str] | str,
    method=None,
    *,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    skip: float = 0.4,
    keep=None,
    solver=None,
    eta: float = 0.0,
    seeds=None,
    negative_prompts=None,
    height: int | None = None,
    width: int | None = None,
    fit: str | None = None,
    **settings,
) -> Run:
    """A run from xt = alpha x0 + sigma eps at the first step that is not skipped, paused before it.

    eps is the noise that a fresh run with these seeds starts from. skip 0.4 is the strength 0.6 of other libraries: more keeps
    more of the source, whose description is not needed. Any model, solver and method; keep, fit and target as for
    `Inversion.edit`, the other arguments as for `dk.Sampler` and its `init`. Raises ValueError for an empty target or bad input.
    """
    target = check_target(target)
    sampler = EditSampler(
        backbone,
        method,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        solver=solver,
        eta=eta,
        **settings,
    )
    state, _ = begin(
        sampler,
        image,
        target,
        seeds=seeds,
        negative_prompts=negative_prompts,
        height=height,
        width=width,
        fit=fit,
    )
    start, x0, schedule = (
        first_step(skip, sampler.num_steps),
        state.xt,
        sampler.solver_for(state.xt.shape),
    )
    exact = torch.promote_types(x0.dtype, torch.float32)
    eps = noise.initial(state.seeds, x0.shape[1:], x0.dtype).to(x0.device, exact)
    noised = lambda i: (schedule.level(i)[0] * x0.to(exact) + schedule.level(i)[1] * eps).to(
        x0.dtype
    )
    path = (
        torch.stack([noised(i) for i in range(sampler.num_steps)] + [x0], 1)
        if keep is not None
        else None
    )
    return Run(
        sampler,
        state.replace(
            xt=noised(start),
            i=start,
            t=schedule.timesteps[start],
            extras=extras_of(keep, sampler, path, fit),
        ),
    )
