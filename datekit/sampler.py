"""The sampler: backbone, method and solver as three pure functions, `init`, `predict`, `step`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import noise, schedulers
from .backbones import Backbone, wrap
from .denoiser import Denoiser
from .errors import check_context, check_finite, finite
from .inputs import (
    check_latents,
    check_method,
    check_negatives,
    check_prompts,
    check_schedules,
    warn_distilled,
    warn_low_guidance,
)
from .memory import MemorySettings, explain
from .methods import Fixed, Method
from .methods.base import MethodUpdate
from .registry import Registered
from .run import Run
from .solvers import Solver
from .tensors import distance
from .types import Conditioning, Prediction, State, StepInfo


class Sampler(Registered, register=True):
    """Sampling of a backbone under a method. It holds settings only, so one serves many runs.

    backbone: from `dk.load` or `dk.wrap`, or a diffusers pipeline; method: `Fixed()` by default;
    num_steps, guidance_scale, solver: what the backbone recommends by default; guidance is
    uncond + w (cond - uncond), so w = 1 is the conditional model and w = 0 the unconditional one,
    but for a distilled model (turbo, LCM), to which w < 1 is no guidance, as in diffusers;
    eta: 0 for DDIM to 1 for DDPM; micro_batch, decode_batch, checkpointing, keep_graph: how much is
    in memory at once, see `datekit.memory.MemorySettings`. Settings that do not fit raise at once.
    """

    kind = "sampler"
    options = ("backbone", "method", "num_steps", "guidance_scale", "eta")  # in `describe`
    fixed_by_the_past = ("backbone", "num_steps", "solver", "eta")  # what a fork cannot change

    def __init__(
        self,
        backbone: Any,
        method: Method | None = None,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        solver: Any = None,
        eta: float = 0.0,
        micro_batch: int | None = None,
        decode_batch: int | None = None,
        checkpointing: bool = False,
        keep_graph: bool = True,
    ) -> None:
        self.backbone = backbone if isinstance(backbone, Backbone) else wrap(backbone)
        self.method = Fixed() if method is None else method
        check_method(self.method)
        default = self.backbone.recommended
        scale = default.guidance_scale if guidance_scale is None else guidance_scale
        least = 1.0 if self.backbone.distilled else -math.inf
        self.guidance_scale = max(least, float(finite("guidance_scale", scale, -math.inf)))
        if self.backbone.two_branches:
            warn_low_guidance(self.guidance_scale)
        warn_distilled(self.backbone, num_steps, guidance_scale)
        self.eta = float(finite("eta", eta))
        self.memory = MemorySettings(micro_batch, decode_batch, checkpointing, keep_graph)
        self._solver = default.solver if solver is None else solver
        self._solvers: dict[tuple, Solver] = {}
        self._configs = schedulers.configs(self.backbone.scheduler, self._solver)
        self._num_steps = default.num_steps if num_steps is None else num_steps
        self.solver = self.solver_for(self.backbone.latent_shape())
        self.num_steps = self.solver.num_steps  # of the run: some solvers take more than asked for
        self.method.check(self)
        check_schedules(self.method, self.num_steps)

    def describe(self) -> dict:
        """Its settings, by the names of the arguments that make it again."""
        settings = {name: getattr(self, name) for name in self.options}
        told = {"solver": self._solver, "num_steps": self._num_steps}
        return settings | told | vars(self.memory)

    def replace(self, **changes: Any) -> Sampler:
        """A sampler with some settings changed."""
        return type(self)(**self.describe() | changes)

    def solver_for(self, shape: Sequence[int]) -> Solver:
        """The solver for latents (..., C, h, w); some models' schedules depend on their size.

        Raises RuntimeError where the configuration of a scheduler was changed since the first.
        """
        shape = tuple(shape[-3:])
        if self._configs != schedulers.configs(self.backbone.scheduler, self._solver):
            told = "the scheduler was changed after dk.Sampler was made"
            raise RuntimeError(f"{told}: make another sampler, which follows it")
        if shape not in self._solvers:
            steps, name = self._num_steps, self._solver
            self._solvers[shape] = Solver(self.backbone, steps, name, shape=shape, eta=self.eta)
        return self._solvers[shape]

    def start(self, prompts: Sequence[str] | str, **kwargs: Any) -> Run:
        """A `Run` paused before its first step; arguments as for `init`."""
        return Run(self, self.init(prompts, **kwargs))

    def init(
        self,
        prompts: Sequence[str] | str,
        *,
        seeds: Sequence[int] | int | None = None,
        latents: Tensor | None = None,
        negative_prompts: Sequence[str] | str | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> State:
        """The state before step 0.

        prompts: B strings, or one string for all seeds; seeds: B numbers, fresh ones by default. A
        seed gives the noise that diffusers gives for `torch.Generator("cpu").manual_seed(seed)`.
        latents: (B, C, h, w) of unit variance instead of that noise; negative_prompts: B strings or
        one for all, "" by default; height, width: in pixels, the model's own size by default.
        """
        prompts, seeds = check_prompts(prompts, seeds, latents)
        negatives = check_negatives(negative_prompts, len(prompts))
        backbone, shape = self.backbone, self.backbone.latent_shape(height, width)
        check_context(backbone.device)
        if latents is None:
            latents = noise.initial(seeds, shape, backbone.dtype)
        else:
            check_latents(latents, len(prompts), shape, sized=(height, width) != (None, None))
            backbone.latent_shape(*(side * backbone.factor for side in latents.shape[-2:]))
        solver = self.solver_for(latents.shape)
        xt = latents.to(backbone.device, backbone.dtype) * solver.init_noise_sigma
        cond, uncond = backbone.encode(prompts), backbone.encode(negatives, negative=True)
        return State(xt, 0, solver.timesteps[0], cond, cond, uncond, prompts, seeds)

    def denoiser(self, state: State) -> Denoiser:
        """The guided model at a state. Raises RuntimeError where no step is left."""
        if state.i >= self.num_steps:
            raise RuntimeError(f"of {self.num_steps} steps nothing is left: rewind first")
        solver = self.solver_for(state.xt.shape)
        return Denoiser(self.backbone, solver, self.guidance_scale, state, self.memory)

    @contextlib.contextmanager
    def pause(self, state: State) -> Iterator[Denoiser]:
        """Inside, the denoiser at a state, with the method's patch in the network.

        Nothing advances. The network's lock is held, so that no other thread runs it meanwhile.
        """
        check_context(self.backbone.device)
        denoiser, patches = self.denoiser(state), "patch" in self.method.stages
        with self.backbone.patching(patches), explain(), self.method.patch(denoiser):
            yield denoiser

    def predict(
        self, state: State, c: Tensor | Conditioning | None = None, xt: Tensor | None = None
    ) -> Prediction:
        """The guided x0bar, Eq. 11, at (xt, c) in the patched network; carries gradient to both."""
        cond = state.cond.replace(sequence=c) if isinstance(c, Tensor) else c
        with self.pause(state) as denoiser:
            return denoiser.predict(cond, xt)

    def step(self, state: State) -> tuple[State, StepInfo]:
        """One step: (the next state, what happened in it); `state` is left as it was.

        Where the method repeats the step, the info is of the last time. Carries gradient from
        `state.xt` to the next xt, to which the update of the embedding is a constant.
        """
        following, info, times = self._step(state, 0)
        for repetition in range(1, times):
            solver, seeds = self.solver_for(state.xt.shape), noise.repeated(state.seeds, repetition)
            exact = torch.promote_types(state.xt.dtype, torch.float32)
            fresh = noise.normal(seeds, state.i, state.xt.shape[1:], exact, purpose="recurrence")
            xt = solver.renoise(following.xt, state.i, fresh)
            again = state.replace(xt=xt, solver_state=solver.forget_last_sample(state.solver_state))
            following, info, _ = self._step(again, repetition)
        return following, info

    def _step(self, state: State, repetition: int) -> tuple[State, StepInfo, int]:
        """The next state, what happened, and how often the method wants the step to be taken."""
        with self.pause(state) as denoiser:
            update = self.method.condition(denoiser, state)
            prediction = self.method.predict(denoiser, update.cond)
            times = self.method.repeats(denoiser)
        xt, solver_state = self._solve(state, prediction, repetition)
        self._check(xt, state)
        i, extras = state.i + 1, state.extras | update.carry
        t = denoiser.solver.timesteps[i] if i < self.num_steps else 0
        following = state.replace(
            xt=xt, i=i, t=t, cond=update.cond, solver_state=solver_state, extras=extras
        )
        return following, self._info(denoiser, update, prediction), times

    def _solve(self, state: State, prediction: Prediction, repetition: int) -> tuple[Tensor, dict]:
        """The next xt by the solver, and the solver's next state."""
        solver, seeds = self.solver_for(state.xt.shape), noise.repeated(state.seeds, repetition)
        given = None if state.noise is None else state.noise[state.i]
        return solver.step(prediction.out, state.xt, state.i, state.solver_state, seeds, given)

    def _check(self, xt: Tensor, state: State) -> None:
        """Raise NonFiniteError for a next latent with NaN or infinity in it."""
        what = "the next latent is not finite (are guidance_scale and rho too large?)"
        check_finite(xt, what, f" at step {state.i} (t = {state.t:g})")

    def _info(self, denoiser: Denoiser, update: MethodUpdate, prediction: Prediction) -> StepInfo:
        """What happened in a step, detached."""
        state, x0bar_hat = denoiser.state, prediction.x0bar.detach()
        c, apart = update.cond.sequence.detach(), distance(update.cond, state.cond_org)
        gradient = update.gradient or prediction.gradient or denoiser.record(update.cond, x0bar_hat)
        eps_u = None if prediction.eps_u is None else prediction.eps_u.detach()
        happened = {"at": gradient.c, "c": c, "updated": update.moved, "distance": apart}
        happened |= {"xt": state.xt.detach(), "x0bar_hat": x0bar_hat}
        happened |= {"eps_c": prediction.eps_c.detach(), "eps_u": eps_u}
        return StepInfo(**vars(gradient) | happened, extras=dict(denoiser.extras))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), nominally in [0, 1], of latents (B, C, h, w), not clamped."""
        check_context(self.backbone.device)
        size = self.memory.decode_batch or len(latents)
        with explain():
            return torch.cat([self.backbone.decode(part) for part in latents.split(size)])

    def __repr__(self) -> str:
        steps = f"num_steps={self._num_steps}, guidance_scale={self.guidance_scale:g}"
        solver = f"solver={str(self.solver)!r}, eta={self.eta:g}"
        return f"{type(self).__name__}({self.backbone!r}, {self.method!r}, {steps}, {solver})"
