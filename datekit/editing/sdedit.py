"""SDEdit (arXiv 2108.01073): add noise to the picture, then sample under the target prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import noise
from ..run import Run
from .base import EditSampler, begin, first_step, mask_extras, start_run, target_prompts


def sdedit(
    backbone,
    image,
    target: Sequence[str] | str,
    method=None,
    *,
    skip: float = 0.4,
    keep=None,
    seeds=None,
    negative_prompts=None,
    height: int | None = None,
    width: int | None = None,
    fit: str | None = None,
    **settings,
) -> Run:
    """A run from xt = alpha x0 + sigma eps at the first step that is not skipped, paused before it.

    It is the simplest edit, and the reference: it needs no description of the source, and takes any
    model, solver and method. eps is the noise that a fresh run with these seeds starts from. skip:
    how many of the noisiest steps are left out, a whole number or a share of them; 0.4 is the
    strength 0.6 of other libraries, and more keeps more of the source. keep and target are as for
    `Inversion.edit`, settings as for `dk.Sampler` (num_steps, guidance_scale, solver, ...), the
    other arguments as for `Sampler.init` and `as_images`. Raises ValueError for an empty target.
    """
    sampler = EditSampler(backbone, method, **settings)
    size = {"height": height, "width": width, "fit": fit}
    state, _ = begin(
        sampler,
        image,
        target_prompts(target),
        seeds=seeds,
        negative_prompts=negative_prompts,
        **size,
    )
    start, x0 = first_step(skip, sampler.num_steps), state.xt
    solver, exact = sampler.solver_for(x0.shape), torch.promote_types(x0.dtype, torch.float32)
    eps = noise.initial(state.seeds, x0.shape[1:], x0.dtype).to(x0.device, exact)
    path = [solver.noised(x0.to(exact), eps, i).to(x0.dtype) for i in range(sampler.num_steps)]
    path = torch.stack([*path, x0], 1)
    extras = mask_extras(keep, sampler, path, fit)
    return start_run(sampler, state, start, path[:, start], extras=extras)
