"""Inversions: the way from a picture to noise, where edits start, and two ways to find it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import noise
from ..backbones.identity import fingerprint
from ..errors import check_finite
from ..files import damaged, load_tensors, save_tensors
from ..methods import Method
from ..run import Run
from ..serialize import describe, pack, rebuild, unpack
from ..types import Record, State
from .base import EditSampler, begin, first_step, is_flow, mask_extras, start_run

FORMAT = 6  # of saved files
SOURCE, TARGET = 3.5 / 7.5, 15 / 7.5  # the paper's guidance, in units of what is recommended


@dataclass(frozen=True, eq=False, repr=False)
class Inversion(Record):
    """A picture inverted under its source prompt.

    sampler: with which it was made; state: the state before step 0 under the source prompt, with
    the step noise that a DDPM inversion solved for; path: (B, T + 1, C, h, w), xt before each step
    and, last, the picture's latent x0; guidance_scale, skip: what edits take by default.
    """

    sampler: EditSampler
    state: State
    path: Tensor
    guidance_scale: float
    skip: float

    @property
    def latents(self) -> Tensor:
        """The picture's own latent x0, (B, C, h, w)."""
        return self.path[:, -1]

    def edit(
        self,
        target: Sequence[str] | str,
        method: Method | None = None,
        *,
        guidance_scale: float | None = None,
        skip: float | None = None,
        keep: Any = None,
        **settings: Any,
    ) -> Run:
        """A fork of the reconstruction under a target prompt, paused before its first step.

        method: any; it acts as in plain sampling and sees the steps' numbers of the whole schedule,
        so that `dk.every(5)` acts at steps 0, 5, ... from the first that is not skipped. skip: how
        many of the noisiest steps are left out, a whole number or a share of them; more keeps more
        of the source. keep: a mask, as for `as_keep`, of what stays; settings: those that a fork
        may change, such as micro_batch. Negative prompts are those of the inversion.
        """
        w = self.guidance_scale if guidance_scale is None else guidance_scale
        run = self.reconstruct(self.skip if skip is None else skip)
        run = run.fork(method, guidance_scale=w, **settings)
        sampler, state = run.sampler, run.state
        fresh = sampler.init(target, seeds=state.seeds, latents=self.latents)
        extras = state.extras | mask_extras(keep, sampler, self.path)
        changes = {"cond": fresh.cond, "cond_org": fresh.cond, "prompts": fresh.prompts}
        return Run(sampler, state.replace(extras=extras, **changes))

    def reconstruct(self, skip: float = 0) -> Run:
        """The run under the source prompt and its guidance, back to the picture.

        A DDPM inversion reaches it exactly, one by DDIM only as the steps grow.
        """
        start = first_step(skip, self.sampler.num_steps)
        return start_run(self.sampler, self.state, start, self.path[:, start])

    def save(self, path: str | Path) -> Path:
        """Write the inversion to one file, whole or not at all, and return its path."""
        content = {
            "state": pack(self.state),
            "path": self.path,
            "guidance_scale": self.guidance_scale,
            "skip": self.skip,
            "sampler": describe(self.sampler),
        }
        return save_tensors(path, "inversion", FORMAT, content)

    @classmethod
    def load(cls, path: str | Path, backbone: Any = None) -> Inversion:
        """The inversion of a file.

        backbone: the one it was made with; it may be left out for a model that comes along. Raises
        ValueError if the file is no inversion, or was made with another backbone.
        """
        content = load_tensors(path, "inversion", FORMAT)
        with damaged(path):
            described = content["sampler"]
            other = {} if backbone is None else {"backbone": backbone}
            sampler = rebuild(described | other)
            if fingerprint(sampler.backbone) != described["backbone"]["weights"]:
                made = f"{path} was made with another backbone than {sampler.backbone.name!r}"
                told = "its class, precision, noise schedule or weights are others"
                raise ValueError(f"{made}: {told}")
            content = unpack(content, sampler.backbone.device)
            names = ("state", "path", "guidance_scale", "skip")
            return cls(sampler, *(content[name] for name in names))

    def __repr__(self) -> str:
        steps, name = self.sampler.num_steps, self.sampler.backbone.name
        return f"<Inversion of {len(self.state)} ({self.sampler.solver}, {steps} steps, {name})>"


def ddim_inversion(
    backbone: Any,
    image: Any,
    source: Sequence[str] | str,
    *,
    num_steps: int | None = None,
    guidance_scale: float = 1.0,
    **start: Any,
) -> Inversion:
    """The deterministic map of DDIM (arXiv 2010.02502), or of Euler's method on a flow, upwards.

        x_t = alpha_t x0bar + sigma_t eps

    where x0bar and eps come from the network's output at the point below, x_{t-1}, told t. As the
    exact inverse would need the output at x_t itself, the way back has an error. It is large at few
    steps, and guidance multiplies it: hence guidance_scale is 1 by default. Edits skip 0.2 of the
    steps by default. The arguments are those of `ddpm_inversion`.
    """
    solver = "euler" if is_flow(backbone) else "ddim"
    settings = {"num_steps": num_steps, "guidance_scale": guidance_scale, "solver": solver}
    sampler = EditSampler(backbone, **settings)
    state = begin(sampler, image, source, **start)
    solver, x, path = sampler.solver_for(state.xt.shape), state.xt, [state.xt]
    exact = torch.promote_types(x.dtype, torch.float32)
    for i in reversed(range(sampler.num_steps)):
        with torch.no_grad():
            out = sampler.predict(state.replace(xt=x, i=i, t=solver.timesteps[i])).out
        out, low = out.to(exact), x.to(exact)
        if solver.prediction_type == "v_prediction":
            alpha, sigma = solver.level(i + 1)
            eps = alpha * out + sigma * low  # as `Solver.eps`, in the form that stands at sigma = 0
        else:
            eps = solver.eps(out, low, i + 1)
        x = solver.add_noise(solver.x0bar(out, low, i + 1), eps, i).to(x.dtype)
        check_finite(x, "the inverted latent is not finite", f" at step {i}")
        path.insert(0, x)
    usual = sampler.backbone.recommended.guidance_scale
    return Inversion(sampler, state.replace(xt=x), torch.stack(path, 1), usual, 0.2)


def ddpm_inversion(
    backbone: Any,
    image: Any,
    source: Sequence[str] | str,
    *,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    eta: float = 1.0,
    **start: Any,
) -> Inversion:
    """The noise maps of a picture (arXiv 2304.06140): independent xt for every step, and the step
    noise that joins them.

        xt = alpha_t x0 + sigma_t eps_t,    z_t = (x_{t-1} - mu_t(xt)) / s_t

    eps_t depends on (seed, step); mu_t and s_t are those of the DDIM step with eta, guided under
    the source prompt. Sampling that prompt with these z_t gives the picture back, from any step and
    for any eta > 0. Where the last step takes no noise (s = 0), it adds x0 - mu instead. An edit
    keeps the z_t and changes the prompt.

    num_steps: twice what the backbone recommends by default, 100 on Stable Diffusion as in the
    paper. guidance_scale: w of the source, 3.5 on Stable Diffusion by default and in proportion
    elsewhere; edits then take 15 and skip 0.36 of the steps. start: seeds, negative_prompts, height
    and width, as for `Sampler.init`; the others are as for `sdedit`.
    """
    if is_flow(backbone):
        raise ValueError("a flow model takes no step noise; use dk.editing.flowedit")
    if not eta:
        raise ValueError("the image goes into step noise, and eta = 0 has none; use ddim_inversion")
    sampler = EditSampler(backbone, solver="ddim", eta=eta)
    usual = sampler.backbone.recommended
    sampler = sampler.replace(
        num_steps=min(2 * usual.num_steps, 100) if num_steps is None else num_steps,
        guidance_scale=SOURCE * usual.guidance_scale if guidance_scale is None else guidance_scale,
    )
    state, path = _noise_maps(sampler, begin(sampler, image, source, **start))
    return Inversion(sampler, state, path, TARGET * usual.guidance_scale, 0.36)


@torch.no_grad()
def _noise_maps(sampler: EditSampler, state: State) -> tuple[State, Tensor]:
    """The state before step 0, with its step noise, of the latent `state.xt`, and the path."""
    x0, steps = state.xt, sampler.num_steps
    solver, exact = sampler.solver_for(x0.shape), torch.promote_types(x0.dtype, torch.float32)
    path = []
    for i in range(steps):
        eps = noise.normal(state.seeds, i, x0.shape[1:], exact, purpose="ddpm inversion")
        path.append(solver.add_noise(x0.to(exact), eps.to(x0.device), i).to(x0.dtype))
    path.append(x0)
    none, maps, extras = torch.zeros_like(x0), [], {}
    for i in range(steps):
        out = sampler.predict(state.replace(xt=path[i], i=i, t=solver.timesteps[i])).out
        mu = solver.step(out, path[i], i, {}, state.seeds, none)[0]
        (alpha, sigma), (alpha_next, sigma_next) = solver.level(i), solver.level(i + 1)
        kept = alpha / alpha_next
        s = solver.eta * sigma_next / sigma * math.sqrt(max(0.0, 1 - kept**2))  # DDIM, Eq. 16
        z = ((path[i + 1].to(exact) - mu.to(exact)) / s).to(x0.dtype) if s > 0 else none
        check_finite(z, "the noise map is not finite", f" at step {i}")
        maps.append(z)
        if i + 1 < steps:  # what sampling will reach, so that rounding does not add up
            path[i + 1] = solver.step(out, path[i], i, {}, state.seeds, z)[0]
        elif s == 0:
            extras["residual"] = x0 - mu
    state = state.replace(xt=path[0], noise=torch.stack(maps), extras=extras)
    return state, torch.stack(path, 1)
