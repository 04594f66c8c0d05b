"""FlowEdit (arXiv 2412.08629): from a picture to its edit along the difference of velocities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import noise
from ..backbones import Backbone, wrap
from ..denoiser import Denoiser
from ..errors import whole
from ..methods import Method
from ..run import Run
from ..sampler import Sampler
from ..types import State, StepInfo
from .base import EditSampler, begin, start_run
from .images import as_keep

# steps, n_max, and the guidance of source and target in units of what the model is sampled with
SD3 = (50, 33, 3.5 / 7.0, 13.5 / 7.0)
FLUX = (28, 24, 1.5 / 3.5, 5.5 / 3.5)


class FlowEditSampler(EditSampler):
    """The steps of FlowEdit. z is the edit so far, which starts at x_src and never is noisy:

        zs = (1 - sigma) x_src + sigma noise,    zt = z + zs - x_src
        z <- z + (sigma' - sigma) mean over n_avg draws of [v_target(zt) - v_source(zs)]

    with noise from (seed, step, draw). `state.xt` is z. The last n_min steps are plain Euler steps
    of the target, in which `state.xt` is z + zs - x_src. A method acts on the target's velocity: it
    looks at x0bar of the first zt, and the embedding that it chooses there serves all draws. What
    it patches into the network, such as SoftREPA's tokens, is there for the source's velocity too
    unless patch_source is False; so it is in SoftREPA's own code, whose `tar_cfg` is w + 1.

    `State.extras` has x_src (B, C, h, w), source (the `Conditioning` of its prompts) and perhaps
    keep; `StepInfo.extras` has z, before the step, and velocity, the averaged difference.
    """

    options = (*EditSampler.options, "source_guidance_scale", "n_min", "n_avg", "patch_source")
    fixed_by_the_past = (*EditSampler.fixed_by_the_past, "n_min")

    def __init__(
        self,
        backbone,
        method: Method | None = None,
        *,
        source_guidance_scale: float,
        n_min: int = 0,
        n_avg: int = 1,
        patch_source: bool = True,
        solver="euler",
        **settings,
    ) -> None:
        self.n_min, self.n_avg = whole("n_min", n_min, 0), whole("n_avg", n_avg, 1)
        self.patch_source = patch_source
        super().__init__(backbone, method, solver=solver, **settings)
        if not self.solver.is_flow or self.solver.name != "euler":
            name = f"{self.backbone.name} with solver {self.solver}"
            raise ValueError(f"FlowEdit takes Euler steps of a flow model; {name} does not")
        own = {"num_steps": self.num_steps, "guidance_scale": source_guidance_scale}
        patch = self.method if patch_source else None
        self.source = Sampler(self.backbone, patch, solver=solver, **own)  # of v_source
        self.source_guidance_scale = self.source.guidance_scale

    @property
    def last_edit(self) -> int:
        """The step from which on sampling is plain, T - n_min."""
        return self.num_steps - self.n_min

    def denoiser(self, state: State) -> Denoiser:
        """The paused step as the target's network sees it, at zt of the first draw."""
        return super().denoiser(self._view(state, 0) if state.i < self.last_edit else state)

    def step(self, state: State) -> tuple[State, StepInfo]:
        """One step, as `Sampler.step`; to the gradient the source's velocity is a constant."""
        if state.i >= self.last_edit:
            return super().step(state)
        v_sources = [self._source_velocity(state, draw) for draw in range(self.n_avg)]
        with self.pause(state) as denoiser:
            if self.method.repeats(denoiser) > 1:
                raise ValueError("FlowEdit's z has no noise level to go back to; use recurrence=1")
            update = self.method.condition(denoiser, denoiser.state)
            predictions = [self.method.predict(denoiser, update.cond)]
            for draw in range(1, self.n_avg):
                other = denoiser.at(self._view(state, draw).xt)
                predictions.append(self.method.predict(other, update.cond))
        exact, velocity = torch.promote_types(state.xt.dtype, torch.float32), 0.0
        for prediction, v_source in zip(predictions, v_sources, strict=True):
            velocity = velocity + prediction.out.to(exact) - v_source.to(exact)
        velocity = velocity / self.n_avg
        denoiser.extras |= {"z": state.xt.detach(), "velocity": velocity.detach()}
        info = self._info(denoiser, update, predictions[0])
        extras = state.extras | update.carry
        return self._following(state, velocity).replace(cond=update.cond, extras=extras), info

    def _following(self, state: State, velocity: Tensor) -> State:
        solver, i = self.solver_for(state.xt.shape), state.i + 1
        change = solver.level(i)[1] - solver.level(state.i)[1]
        z = (state.xt.to(velocity.dtype) + change * velocity).to(state.xt.dtype)
        if "keep" in state.extras:
            z = torch.where(state.extras["keep"], state.extras["x_src"], z)
        self._check(z, state)
        t = solver.timesteps[i] if i < self.num_steps else 0
        following = state.replace(xt=z, i=i, t=t)
        return self._view(following, 0) if self.n_min and i == self.last_edit else following

    def _view(self, state: State, draw: int) -> State:
        """The state with zt in place of z."""
        zs = self._source_at(state, state.i, draw)
        return state.replace(xt=zs + (state.xt - state.extras["x_src"]))

    def _source_at(self, state: State, i: int, draw: int = 0) -> Tensor:
        """zs at step i; the plain steps share the noise of the first of them."""
        x_src, solver = state.extras["x_src"], self.solver_for(state.xt.shape)
        exact = torch.promote_types(x_src.dtype, torch.float32)
        step, purpose = min(i, self.last_edit), f"flowedit {draw}"
        fresh = noise.normal(state.seeds, step, x_src.shape[1:], exact, purpose=purpose)
        return solver.add_noise(x_src.to(exact), fresh.to(x_src.device), i).to(x_src.dtype)

    @torch.no_grad()
    def _source_velocity(self, state: State, draw: int) -> Tensor:
        cond, zs = state.extras["source"], self._source_at(state, state.i, draw)
        return self.source.predict(state.replace(xt=zs, cond=cond, cond_org=cond)).out


def flowedit(
    backbone: Any,
    image: Any,
    source: Sequence[str] | str,
    target: Sequence[str] | str,
    method: Method | None = None,
    *,
    num_steps: int | None = None,
    n_max: int | None = None,
    guidance_scale: float | None = None,
    source_guidance_scale: float | None = None,
    keep: Any = None,
    seeds: Sequence[int] | int | None = None,
    negative_prompts: Sequence[str] | str | None = None,
    height: int | None = None,
    width: int | None = None,
    **settings: Any,
) -> Run:
    """A run from a picture to its edit by the difference of two velocities (`FlowEditSampler`).

    num_steps: T; n_max: how many of them are taken, the noisiest T - n_max being skipped;
    source_guidance_scale, guidance_scale: w of source and target; settings: n_min, how many steps
    at the end are plain sampling of the target, n_avg, and those of `dk.Sampler`. The defaults are
    the paper's: 50, 33, 3.5, 13.5 for SD3 and 28, 24, 1.5, 5.5 for FLUX, the scales in proportion
    to what the backbone recommends, n_max to num_steps. The others are as for `sdedit`.
    """
    backbone = backbone if isinstance(backbone, Backbone) else wrap(backbone)
    steps, most, w_source, w = FLUX if type(backbone).__name__ == "FluxBackbone" else SD3
    usual = backbone.recommended.guidance_scale
    settings["num_steps"] = steps if num_steps is None else num_steps
    settings["guidance_scale"] = w * usual if guidance_scale is None else guidance_scale
    w_source = w_source * usual if source_guidance_scale is None else source_guidance_scale
    sampler = FlowEditSampler(backbone, method, source_guidance_scale=w_source, **settings)
    if n_max is None:
        n_max = max(1 + sampler.n_min, round(most / steps * sampler.num_steps))
    if not sampler.n_min < whole("n_max", n_max, 1) <= sampler.num_steps:
        raise ValueError(f"n_min < n_max <= num_steps must hold, got n_max={n_max}")
    state = begin(sampler, image, target, seeds, negative_prompts, height, width)
    described = sampler.source.init(source, seeds=state.seeds, latents=state.xt).cond
    extras = {"x_src": state.xt, "source": described}
    if keep is not None:
        extras["keep"] = as_keep(keep, backbone, state.xt)
    return start_run(sampler, state, sampler.num_steps - n_max, state.xt, extras=extras)
