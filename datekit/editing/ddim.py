"""DDIM inversion: the deterministic sampler run upwards, from a picture to noise that leads back.

The way back misses the picture by an error that falls as the steps grow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import check_finite
from ..solvers import Solver
from .base import EditSampler, begin, is_flow, source_prompts
from .inversion import Inversion

SKIP = 0.2


def ddim_inversion(
    backbone,
    image,
    source: Sequence[str] | str,
    *,
    num_steps: int | None = None,
    guidance_scale: float = 1.0,
    **start,
) -> Inversion:
    """The deterministic map of DDIM (arXiv 2010.02502), or of Euler's method on a flow, upwards.

        x_t = alpha_t x0bar + sigma_t eps

    where x0bar and eps come from the network's output at the point below, x_{t-1}, told t. The
    exact inverse would need the output at x_t itself. So the way back has an error, which is large
    at few steps (`notebooks/09_editing.ipynb` measures it) and which guidance multiplies: hence
    guidance_scale is 1 by default, the source prompt alone.

    The arguments are those of `ddpm_inversion`; num_steps is what the backbone recommends by
    default. Edits take the guidance that the backbone recommends and skip 0.2 of the steps by
    default. Costs num_steps passes of the network.
    """
    solver = "euler" if is_flow(backbone) else "ddim"
    sampler = EditSampler(
        backbone, num_steps=num_steps, guidance_scale=guidance_scale, solver=solver
    )
    state, pixels = begin(sampler, image, source_prompts(source), **start)
    solver, x, path = sampler.solver_for(state.xt.shape), state.xt, [state.xt]
    with torch.no_grad():
        for i in reversed(range(sampler.num_steps)):
            out = sampler.predict(state.replace(xt=x, i=i, t=solver.timesteps[i])).out
            x = step_up(solver, out, x, i)
            check_finite(x, "the inverted latent is not finite", f" at step {i}")
            path.insert(0, x)
    path = torch.stack(path, 1)
    state = state.replace(xt=x)
    return Inversion(
        kind="ddim",
        sampler=sampler,
        state=state,
        path=path,
        pixels=pixels,
        guidance_scale=sampler.backbone.recommended.guidance_scale,
        skip=SKIP,
    )


def step_up(solver: Solver, out: Tensor, x: Tensor, i: int) -> Tensor:
    """The latent before step i from x, the one after it, and the network's output there.

    All are (B, C, h, w). Both keep the same x0bar and eps.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    out, low = out.to(exact), x.to(exact)
    if solver.prediction_type == "v_prediction":
        alpha, sigma = solver.level(i + 1)
        eps = alpha * out + sigma * low  # as `Solver.eps`, in the form that stands at sigma = 0
    else:
        eps = solver.eps(out, low, i + 1)
    return solver.noised(solver.x0bar(out, low, i + 1), eps, i).to(x.dtype)
