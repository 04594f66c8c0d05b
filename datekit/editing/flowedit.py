"""FlowEdit (arXiv 2412.08629): on a flow model, straight from the image to its edit along the difference of two velocities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import noise
from ..methods.base import whole
from ..denoiser import Denoiser
from ..run import Run
from ..types import Conditioning, Prediction, State, StepInfo
from .base import EditSampler, begin, check_target, extras_of, is_flow, source_prompts

DEFAULTS = {"FluxBackbone": (28, 24, 1.5 / 3.5, 5.5 / 3.5)}
USUAL = (
    50,
    33,
    3.5 / 7.0,
    13.5 / 7.0,
)  # SD3: steps, n_max, and both guidance scales in units of what the model is sampled with


class FlowEditSampler(EditSampler):
    """The steps of FlowEdit, with z the edit so far, which starts at x_src and never is noisy:

        zs = (1 - sigma) x_src + sigma noise,    zt = z + zs - x_src
        z <- z + (sigma' - sigma) mean over n_avg draws of [v_target(zt) - v_source(zs)]

    noise from (seed, step, draw), both velocities guided by uncond + w (cond - uncond). The last n_min steps are plain Euler steps of
    the target from z + zs - x_src. `state.xt` is z, and in the last n_min steps the noisy latent.

    A method acts on the target velocity only: it looks at x0bar = zt - sigma v_target(zt), the target's mean prediction for the first
    draw, and h is the reward of its picture under the target prompt. The embedding that it chooses there serves all draws of the
    step; a method that pushes predictions does so in each draw. `run.peek()` and `StepInfo` (x0bar, xt = zt, h, grad) are about
    that first draw; `StepInfo.notes` has z, before the step, and velocity, the averaged difference, both (B, C, h, w).
    source_guidance_scale: w of v_source; `State.extras` has x_src (B, C, h, w), source (its `Conditioning`) and perhaps keep.
    Raises ValueError for a model that is no flow, for another solver than Euler's, and for self-recurrence, as z has no noise level to be
    brought back to.
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
        whole("n_min", n_min, 0)
        whole("n_avg", n_avg, 1)
        self.source_guidance_scale, self.n_min, self.n_avg = (
            float(source_guidance_scale),
            n_min,
            n_avg,
        )
        super().__init__(backbone, method, solver=solver, **settings)
        if type(self.solver._scheduler).__name__ != "FlowMatchEulerDiscreteScheduler":
            raise ValueError(
                f"FlowEdit takes Euler steps of a flow model; {self.backbone.name} with solver {self.solver} does not"
            )

    @property
    def last_edit(self) -> int:
        """The step from which on sampling is plain, T - n_min."""
        return self.num_steps - self.n_min

    def denoiser(self, state: State) -> Denoiser:
        """The paused step as the target's network sees it, at zt of the first draw."""
        return super().denoiser(self._view(state, 0) if state.i < self.last_edit else state)

    def step(self, state: State) -> tuple[State, StepInfo]:
        """One step; `state` is left as it was. Carries gradient from `state.xt` to the next xt, as the source's velocity is a constant."""
        if state.i >= self.last_edit:
            return super().step(state)
        update, looked, difference, notes = None, None, 0.0, {}
        for draw in range(self.n_avg):
            denoiser = Denoiser(
                self.backbone,
                self.solver_for(state.xt.shape),
                self.guidance_scale,
                self._view(state, draw),
                self.limits(state),
            )
            if self.method.repeats(denoiser) > 1:
                raise ValueError(
                    "self-recurrence brings a step back to its noise level, and FlowEdit's z has none; use recurrence=1"
                )
            with self.method.patch(denoiser):
                update = update or self.method.condition(denoiser, denoiser.state)
                prediction = self.method.predict(denoiser, update.cond)
            if looked is None:
                looked, notes = (denoiser.state, prediction), denoiser.notes
            difference = (
                difference
                + prediction.out.to(_exact(state))
                - self._source(state, draw).out.to(_exact(state))
            )
        velocity = difference / self.n_avg
        following = self._advanced(state, velocity)
        more = {"z": state.xt.detach(), "velocity": velocity.detach()}
        return following.replace(cond=update.cond), self._info(
            looked[0], update, looked[1], notes | more
        )

    def joined(self, state: State) -> State:
        """The state as its step expects it: before the first plain step, z becomes the noisy latent z + zs - x_src."""
        return self._view(state, 0) if self.n_min and state.i == self.last_edit else state

    def _advanced(self, state: State, velocity: Tensor) -> State:
        solver, i = self.solver_for(state.xt.shape), state.i + 1
        z = state.xt.to(velocity.dtype) + (solver.level(i)[1] - solver.level(state.i)[1]) * velocity
        z = z.to(state.xt.dtype)
        if "keep" in state.extras:
            z = torch.where(state.extras["keep"], state.extras["x_src"], z)
        t = solver.timesteps[i] if i < self.num_steps else 0
        return self.joined(state.replace(xt=self._checked(z, state), i=i, t=t))

    def _view(self, state: State, draw: int) -> State:
        """The state with zt in place of z."""
        return state.replace(
            xt=self._noised(state, state.i, draw) + (state.xt - state.extras["x_src"])
        )

    def _noised(self, state: State, i: int, draw: int) -> Tensor:
        """zs at the level of step i, with the noise of (seed, step, draw); the plain steps share that of the first of them."""
        x_src, (alpha, sigma) = state.extras["x_src"], self.solver_for(state.xt.shape).level(i)
        fresh = noise.normal(
            state.seeds,
            min(i, self.last_edit),
            x_src.shape[1:],
            _exact(state),
            purpose=f"flowedit {draw}",
        ).to(x_src.device)
        return (alpha * x_src.to(fresh.dtype) + sigma * fresh).to(x_src.dtype)

    def _source(self, state: State, draw: int) -> Prediction:
        source = state.extras["source"]
        at = state.replace(xt=self._noised(state, state.i, draw), cond=source, cond_org=source)
        with torch.no_grad():
            return Denoiser(
                self.backbone, self.solver_for(state.xt.shape), self.source_guidance_scale, at
            ).predict()

    def _source_at(self, state: State, i: int) -> Tensor:
        return self._noised(state, i, 0)


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
    """A run from the image to its edit by the difference of the target's and the source's velocity (`FlowEditSampler`).

    num_steps: T; n_max: how many of them are taken, the noisiest T - n_max being skipped; n_min: how many at the end are plain
    sampling of the target; n_avg: draws averaged in a step; source_guidance_scale, guidance_scale: w of source and target. By default
    the paper's, which are 50, 33, 0, 1, 3.5, 13.5 for SD3 and 28, 24, 0, 1, 1.5, 5.5 for FLUX, the scales in proportion to what
    the backbone recommends, n_max to num_steps. keep, fit as for `Inversion.edit`, the rest as for `dk.Sampler` and its `init`. With
    target = source and equal scales nothing changes. Raises ValueError for a model that is no flow, an empty target, or bad input.
    """
    if not is_flow(backbone):
        raise ValueError(
            f"FlowEdit needs a flow model and {backbone.name} predicts noise; use dk.editing.ddpm_inversion"
        )
    target, source = check_target(target), source_prompts(source)
    usual_steps, usual_max, w_source, w_target = DEFAULTS.get(type(backbone).__name__, USUAL)
    steps = usual_steps if num_steps is None else num_steps
    scale = backbone.recommended.guidance_scale
    sampler = FlowEditSampler(
        backbone,
        method,
        num_steps=steps,
        n_min=n_min,
        n_avg=n_avg,
        guidance_scale=w_target * scale if guidance_scale is None else guidance_scale,
        source_guidance_scale=w_source * scale
        if source_guidance_scale is None
        else source_guidance_scale,
        **settings,
    )
    n_max = max(1, n_min, round(usual_max / usual_steps * steps)) if n_max is None else n_max
    whole("n_max", n_max, 1)
    if not n_min <= n_max <= steps:
        raise ValueError(
            f"n_min <= n_max <= num_steps must hold, got n_min={n_min}, n_max={n_max}, num_steps={steps}"
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
    i, extras = (
        steps - n_max,
        {"x_src": state.xt, "source": _described(sampler, source, len(state))},
    )
    extras |= extras_of(keep, sampler, state.xt[:, None], fit)
    extras.pop("path", None)
    start = state.replace(i=i, t=sampler.solver_for(state.xt.shape).timesteps[i], extras=extras)
    return Run(sampler, sampler.joined(start))


def _described(sampler: FlowEditSampler, source: list[str] | str, count: int) -> Conditioning:
    prompts = [source] * count if isinstance(source, str) else source
    if len(prompts) != count:
        raise ValueError(
            f"{count} images take {count} source prompts, or one for all as a plain string, got {len(prompts)}"
        )
    return sampler.backbone.encode(prompts)


def _exact(state: State) -> torch.dtype:
    return torch.promote_types(state.xt.dtype, torch.float32)
