"""DDIM inversion: the deterministic sampler run upwards, from an image to noise that leads back to it as the steps grow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rewards.base import check_finite
from ..solvers import Solver
from .base import EditSampler, begin, is_flow, source_prompts
from .identity import witness
from .inversion import Inversion

SKIP = 0.2


def ddim_inversion(
    backbone,
    image,
    source: Sequence[str] | str,
    *,
    num_steps: int | None = None,
    guidance_scale: float = 1.0,
    seeds=None,
    negative_prompts=None,
    height: int | None = None,
    width: int | None = None,
    fit: str | None = None,
) -> Inversion:
    """The deterministic map of DDIM (arXiv 2010.02502), or of Euler's method on a flow, taken from x0 up to noise.

        x_t = alpha_t x0bar + sigma_t eps,    x0bar and eps from the network's output at the point below, x_{t-1}, told t

    The exact inverse would need the output at x_t itself, so the way back misses the image by an error that falls as steps grow and is
    large at few (`notebooks/09_editing.ipynb` measures it), and that guidance multiplies: hence w = 1 by default, with the source prompt
    alone.

    Arguments as for `ddpm_inversion`; num_steps: what the backbone recommends by default; edits take the guidance that the backbone
    recommends and skip 0.2 of the steps by default. seeds matter only to methods that draw noise. Costs num_steps passes.
    """
    solver = "euler" if is_flow(backbone) else "ddim"
    sampler = EditSampler(
        backbone, num_steps=num_steps, guidance_scale=guidance_scale, solver=solver
    )
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
    path, solver = [state.xt], sampler.solver_for(state.xt.shape)
    with torch.no_grad():
        for i in reversed(range(sampler.num_steps)):
            out = sampler.predict(state.replace(xt=path[0], i=i, t=solver.timesteps[i])).out
            path.insert(0, upwards(solver, out, path[0], i))
            check_finite(path[0], "the inverted latent is not finite", f" at step {i}")
    path = torch.stack(path, 1)
    return Inversion(
        kind="ddim",
        sampler=sampler,
        state=state.replace(xt=path[:, 0]),
        path=path,
        pixels=pixels,
        witness=witness(sampler, state, path),
        guidance_scale=backbone.recommended.guidance_scale,
        skip=SKIP,
    )


def upwards(solver: Solver, out: Tensor, x: Tensor, i: int) -> Tensor:
    """x before step i from x after it, given the network's output there; both branches of the step keep x0bar and eps. (B, C, h, w).

    Raises ValueError for a network that predicts x0 itself at a level without noise, where no eps follows from it.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    raw, low = out.to(exact), x.to(exact)
    (alpha, sigma), (alpha_low, sigma_low) = solver.level(i), solver.level(i + 1)
    x0bar = solver.x0bar(raw, low, i + 1)
    if (
        solver.prediction_type == "v_prediction"
    ):  # as `solver.eps`, in the form that stands where sigma is 0
        eps = alpha_low * raw + sigma_low * low
    elif solver.prediction_type == "sample" and sigma_low == 0:
        raise ValueError(
            "a network that predicts x0 says nothing of the noise in a clean image; DDIM inversion needs eps, v or a flow"
        )
    else:
        eps = solver.eps(raw, low, i + 1)
    return (alpha * x0bar + sigma * eps).to(x.dtype)
