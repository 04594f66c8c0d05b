"""FlowEdit (arXiv 2412.08629): on a flow model, straight from a picture to its edit along the
difference of two velocities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import noise
from ..denoiser import Denoiser
from ..errors import whole
from ..memory import explain
from ..run import Run
from ..types import State, StepInfo
from .base import EditSampler, begin, mask_extras, one_each, source_prompts, target_prompts

# steps, n_max, and the guidance of source and target in units of what the model is sampled with
SD3 = (50, 33, 3.5 / 7.0, 13.5 / 7.0)
FLUX = (28, 24, 1.5 / 3.5, 5.5 / 3.5)


class FlowEditSampler(EditSampler):
    """The steps of FlowEdit. z is the edit so far, which starts at x_src and never is noisy:

        zs = (1 - sigma) x_src + sigma noise,    zt = z + zs - x_src
        z <- z + (sigma' - sigma) mean over n_avg draws of [v_target(zt) - v_source(zs)]

    with noise from (seed, step, draw), and both velocities guided by uncond + w (cond - uncond).
    The last n_min steps are plain Euler steps of the target from z + zs - x_src. `state.xt` is z,
    and in those last steps the noisy latent.

    A method acts on the target's velocity only. It looks at x0bar = zt - sigma v_target(zt) of the
    first draw, and so do `run.peek()` and `StepInfo` (x0bar, xt = zt, h, grad). The embedding that
    it chooses there serves all draws of the step; a method that pushes predictions does so in each
    draw. `StepInfo.extras` has z, before the step, and velocity, the averaged difference, both
    (B, C, h, w).

    source_guidance_scale: w of v_source. `State.extras` has x_src (B, C, h, w), source (the
    `Conditioning` of its prompts) and perhaps keep. Raises ValueError for a model that is no flow,
    for another solver than Euler's, and for self-recurrence, as z has no noise level to be brought
    back to.
    """

    options = (*EditSampler.options, "source_guidance_scale", "n_min", "n_avg")
    fixed_by_the_past = (*EditSampler.fixed_by_the_past, "n_min")

    def __init__(
        self,
        backbone,
        method=None,
        *,
        source_guidance_scale: float,
        n_min: int = 0,
        n_avg: int = 1,
        solver="euler",
        **settings,
    ) -> None:
        self.source_guidance_scale = float(source_guidance_scale)
        self.n_min, self.n_avg = whole("n_min", n_min, 0), whole("n_avg", n_avg, 1)
        super().__init__(backbone, method, solver=solver, **settings)
        if not self.solver.is_flow or self.solver.name != "euler":
            raise ValueError(
                "FlowEdit takes Euler steps of a flow model; "
                f"{self.backbone.name} with solver {self.solver} does not"
            )

    @property
    def last_edit(self) -> int:
        """The step from which on sampling is plain, T - n_min."""
        return self.num_steps - self.n_min

    def denoiser(self, state: State, draw: int = 0) -> Denoiser:
        """The paused step as the target's network sees it, at zt of a draw."""
        return super().denoiser(self._view(state, draw) if state.i < self.last_edit else state)

    def step(self, state: State) -> tuple[State, StepInfo]:
        """One step; `state` is left as it was.

        Carries gradient from `state.xt` to the next xt, to which the source's velocity is a
        constant.
        """
        if state.i >= self.last_edit:
            return super().step(state)
        exact = torch.promote_types(state.xt.dtype, torch.float32)
        conditioned, first, difference = None, None, 0.0
        for draw in range(self.n_avg):
            denoiser = self.denoiser(state, draw)
            if self.method.repeats(denoiser) > 1:
                raise ValueError(
                    "self-recurrence brings a step back to its noise level, and FlowEdit's z has "
                    "none; use recurrence=1"
                )
            with self.backbone.lock, explain():
                v_source = self._source_velocity(state, draw)
                with self.method.patch(denoiser):
                    if conditioned is None:
                        conditioned = self.method.condition(denoiser, denoiser.state)
                    prediction = self.method.predict(denoiser, conditioned.cond)
            first = first or (denoiser, prediction)
            difference = difference + prediction.out.to(exact) - v_source.to(exact)
        velocity = difference / self.n_avg
        denoiser, prediction = first
        denoiser.extras |= {"z": state.xt.detach(), "velocity": velocity.detach()}
        info = self._info(denoiser, conditioned, prediction)
        return self._following(state, velocity).replace(cond=conditioned.cond), info

    def joined(self, state: State) -> State:
        """The state as its step expects it.

        Before the first plain step, z becomes the noisy latent z + zs - x_src.
        """
        return self._view(state, 0) if self.n_min and state.i == self.last_edit else state

    def _following(self, state: State, velocity: Tensor) -> State:
        solver, i = self.solver_for(state.xt.shape), state.i + 1
        change = solver.level(i)[1] - solver.level(state.i)[1]
        z = (state.xt.to(velocity.dtype) + change * velocity).to(state.xt.dtype)
        if "keep" in state.extras:
            z = torch.where(state.extras["keep"], state.extras["x_src"], z)
        t = solver.timesteps[i] if i < self.num_steps else 0
        return self.joined(state.replace(xt=self._checked(z, state), i=i, t=t))

    def _view(self, state: State, draw: int) -> State:
        """The state with zt in place of z."""
        zs = self._source_at(state, state.i, draw)
        return state.replace(xt=zs + (state.xt - state.extras["x_src"]))

    def _source_at(self, state: State, i: int, draw: int = 0) -> Tensor:
        """zs at step i, with the noise of (seed, step, draw).

        The plain steps share the noise of the first of them.
        """
        x_src, solver = state.extras["x_src"], self.solver_for(state.xt.shape)
        exact = torch.promote_types(x_src.dtype, torch.float32)
        step, purpose = min(i, self.last_edit), f"flowedit {draw}"
        fresh = noise.normal(state.seeds, step, x_src.shape[1:], exact, purpose=purpose)
        return solver.noised(x_src.to(exact), fresh.to(x_src.device), i).to(x_src.dtype)

    def _source_velocity(self, state: State, draw: int) -> Tensor:
        solver, source = self.solver_for(state.xt.shape), state.extras["source"]
        zs = self._source_at(state, state.i, draw)
        at = state.replace(xt=zs, cond=source, cond_org=source)
        with torch.no_grad():
            return Denoiser(self.backbone, solver, self.source_guidance_scale, at).predict().out


def flowedit(
    backbone,
    image,
    source: Sequence[str] | str,
    target: Sequence[str] | str,
    method=None,
    *,
    num_steps: int | None = None,
    n_max: int | None = None,
    n_min: int = 0,
    n_avg: int = 1,
    source_guidance_scale: float | None = None,
    guidance_scale: float | None = None,
    keep=None,
    seeds=None,
    negative_prompts=None,
    height: int | None = None,
    width: int | None = None,
    fit: str | None = None,
    **settings,
) -> Run:
    """A run from a picture to its edit by the difference of two velocities (`FlowEditSampler`).

    num_steps: T; n_max: how many of them are taken, the noisiest T - n_max being skipped; n_min:
    how many at the end are plain sampling of the target; n_avg: draws that are averaged in a step;
    source_guidance_scale, guidance_scale: w of source and target. The defaults are the paper's: 50,
    33, 0, 1, 3.5, 13.5 for SD3 and 28, 24, 0, 1, 1.5, 5.5 for FLUX, the scales in proportion to
    what the backbone recommends, n_max to num_steps. keep and fit are as for `Inversion.edit`, the
    rest as for `dk.Sampler` and its `init`. With target = source and equal scales nothing changes.
    Raises ValueError for a model that is no flow, an empty target, or bad input.
    """
    targets, sources = target_prompts(target), source_prompts(source)
    usual = FlowEditSampler(backbone, source_guidance_scale=1.0).backbone
    steps, most, w_source, w_target = FLUX if type(usual).__name__ == "FluxBackbone" else SD3
    scale = usual.recommended.guidance_scale
    w_source = w_source * scale if source_guidance_scale is None else source_guidance_scale
    sampler = FlowEditSampler(
        usual,
        method,
        num_steps=steps if num_steps is None else num_steps,
        guidance_scale=w_target * scale if guidance_scale is None else guidance_scale,
        source_guidance_scale=w_source,
        n_min=n_min,
        n_avg=n_avg,
        **settings,
    )
    if n_max is None:
        n_max = max(1, n_min, round(most / steps * sampler.num_steps))
    if not n_min <= whole("n_max", n_max, 1) <= sampler.num_steps:
        raise ValueError(
            "n_min <= n_max <= num_steps must hold, got "
            f"n_min={n_min}, n_max={n_max}, num_steps={sampler.num_steps}"
        )
    size = {"height": height, "width": width, "fit": fit}
    state, _ = begin(
        sampler, image, targets, seeds=seeds, negative_prompts=negative_prompts, **size
    )
    described = sampler.backbone.encode(one_each(sources, len(state)))
    mask = mask_extras(keep, sampler, state.xt[:, None], fit)
    extras = {"x_src": state.xt, "source": described}
    if mask:
        extras["keep"] = mask["keep"]
    i = sampler.num_steps - n_max
    t = sampler.solver_for(state.xt.shape).timesteps[i]
    return Run(sampler, sampler.joined(state.replace(i=i, t=t, extras=extras)))
