"""The sampler: backbone, method and solver as three pure functions, `init`, `predict` and `step`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import noise
from .backbones import Backbone, wrap
from .backbones.base import one_warning
from .errors import is_finite, is_whole, whole
from .memory import Limits, free_bytes, out_of_memory
from .methods import Fixed, Method
from .denoiser import Denoiser
from .solvers import Solver
from .types import Conditioning, RewardGradient, Prediction, State, StepInfo, norm


class Sampler:
    """Sampling of a backbone under a method; holds settings only, so one sampler serves any number of runs.

    backbone: from `dk.load` or `dk.wrap`, or a diffusers pipeline; method: `Fixed()` by default; num_steps,
    guidance_scale, solver: what the backbone recommends by default; guidance is uncond + w (cond - uncond), so w = 1
    is the conditional model and w = 0 the unconditional one; eta: 0 DDIM to 1 DDPM; micro_batch: samples
    differentiated at a time, to bound memory; decode_batch: samples of these that are decoded and scored at a time, as the decoder
    often takes more than the network; checkpointing: recompute activations in backward, for less memory still. What is None of these
    three is chosen by what memory allows: the whole batch, and less of it where that does not fit.
    Raises TypeError or ValueError for settings that do not fit, before anything is sampled.
    """

    options = (
        "num_steps",
        "guidance_scale",
        "micro_batch",
        "decode_batch",
        "checkpointing",
    )  # kept by `replace` and files
    fixed_by_the_past = ("backbone", "num_steps", "solver", "eta")  # what a fork cannot change

    def __init__(
        self,
        backbone,
        method: Method | None = None,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        solver=None,
        eta: float = 0.0,
        micro_batch: int | None = None,
        decode_batch: int | None = None,
        checkpointing: bool | None = None,
    ) -> None:
        self.backbone = backbone if isinstance(backbone, Backbone) else wrap(backbone)
        self.method = Fixed() if method is None else method
        if not isinstance(self.method, Method):
            raise TypeError(
                f"method must be a method such as dk.Fixed() or dk.DATE(reward), got {method!r}"
            )
        default = self.backbone.recommended
        self.num_steps = default.num_steps if num_steps is None else num_steps
        self.guidance_scale = _finite(
            "guidance_scale", default.guidance_scale if guidance_scale is None else guidance_scale
        )
        self.micro_batch, self.decode_batch = (
            _count("micro_batch", micro_batch),
            _count("decode_batch", decode_batch),
        )
        if checkpointing not in (None, True, False):
            raise ValueError(
                f"checkpointing must be True, False or None (by free memory), got {checkpointing!r}"
            )
        self.checkpointing = checkpointing
        self._eta, self._solver_name = (
            _finite("eta", eta),
            default.solver if solver is None else solver,
        )
        self._solvers: dict[tuple, Solver] = {}
        self._limits: dict[tuple, Limits] = {}
        self.solver = self.solver_for(self.backbone.latent_shape())
        self.num_steps = self.solver.num_steps  # checked, and a Python number
        self.method.check(self)

    def replace(self, **changes) -> Sampler:
        """A sampler with some settings changed."""
        kept = {name: getattr(self, name) for name in self.options}
        kept |= dict(method=self.method, solver=self.solver.template, eta=self.solver.eta)
        return type(self)(changes.pop("backbone", self.backbone), **(kept | changes))

    def solver_for(self, shape: Sequence[int]) -> Solver:
        """The solver for latents of a shape (..., C, h, w): `solver`, unless the model's schedule depends on the image size."""
        shape = tuple(shape[-3:])
        if shape not in self._solvers:
            options = lambda scheduler, num_steps: self.backbone.schedule(
                scheduler, num_steps, shape
            )
            self._solvers[shape] = Solver(
                self.backbone.scheduler,
                self.num_steps,
                self._solver_name,
                eta=self._eta,
                device=self.backbone.device,
                options=options,
            )
        return self._solvers[shape]

    def start(self, prompts: Sequence[str] | str, **kwargs):
        """A `Run` paused before its first step; arguments as for `init`."""
        from .run import Run

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

        prompts: B strings, or one string for all seeds; seeds: B numbers, fresh ones by default; a seed gives the
        noise that diffusers gives for `generator=torch.Generator("cpu").manual_seed(seed)`; latents: (B, C, h, w) of
        unit variance instead of that noise; negative_prompts: B strings or one for all, "" by default; height, width:
        pixels, the model's own size by default. Raises TypeError or ValueError on bad input.
        """
        seeds = None if seeds is None else _seeds(seeds)
        prompts = _prompts(prompts, 1 if seeds is None else len(seeds), latents)
        if seeds is None:
            seeds = noise.fresh_seeds(len(prompts))
        if len(seeds) != len(prompts):
            raise ValueError(
                f"{len(prompts)} prompts need {len(prompts)} seeds, got {len(seeds)}; one prompt as a plain "
                "string is sampled once for each seed"
            )
        negatives = _negatives(negative_prompts, len(prompts))
        shape = self.backbone.latent_shape(height, width)
        backbone = self.backbone
        if latents is None:
            unit = noise.initial(seeds, shape, backbone.dtype)
        else:
            unit = _latents(latents, len(prompts), shape, sized=(height, width) != (None, None))
            backbone.check_latents(unit)
        solver = self.solver_for(unit.shape)
        xt = unit.to(backbone.device, backbone.dtype) * solver.init_noise_sigma
        with one_warning():
            cond, uncond = backbone.encode(prompts), backbone.encode(negatives, negative=True)
        return State(
            xt=xt,
            i=0,
            t=solver.timesteps[0],
            cond=cond,
            cond_org=cond,
            uncond=uncond,
            prompts=prompts,
            seeds=seeds,
        )

    def denoiser(self, state: State) -> Denoiser:
        """The paused step, to be looked at from any embedding. Raises RuntimeError where no step is left."""
        if state.i >= self.num_steps:
            raise RuntimeError(
                f"all {self.num_steps} steps are done: nothing is left to look at or to step; rewind first"
            )
        return Denoiser(
            self.backbone,
            self.solver_for(state.xt.shape),
            self.guidance_scale,
            state,
            self.limits(state),
        )

    def limits(self, state: State) -> Limits:
        """How much of a batch of this size is in memory at once: what was set, and of what was not, what memory allows.

        On a GPU that shows when memory runs out; on a CPU, where that would end the process, it is estimated beforehand.
        """
        return self._limits_of(tuple(state.xt.shape))

    def _limits_of(self, shape: tuple[int, ...]) -> Limits:
        if shape not in self._limits:
            limits = Limits(self.micro_batch, self.decode_batch, self.checkpointing)
            if (
                limits.chosen
                and self.method.reward is not None
                and self.backbone.device.type == "cpu"
            ):
                from .advice import lowered

                limits = lowered(limits, self.backbone, self.method, shape, self.guidance_scale)
            self._limits[shape] = limits
        return self._limits[shape]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), nominally in [0, 1], of latents (B, C, h, w): `decode_batch` at a time, and fewer where memory runs out."""
        at_once = Limits(
            decode_batch=self._limits_of(tuple(latents.shape)).decode_batch or len(latents),
            chosen=("decode_batch",),
        )
        return at_once.within(
            lambda: torch.cat(
                [self.backbone.decode(part) for part in latents.split(at_once.decode_batch)]
            ),
            len(latents),
            lambda error: _undecoded(error, latents),
        )

    def predict(
        self, state: State, c: Tensor | Conditioning | None = None, xt: Tensor | None = None
    ) -> Prediction:
        """x0bar (Eq. 11) and the guided output at (xt, c), the state's own by default; carries gradient to both."""
        denoiser = self.denoiser(state)
        with self._told(state), self.method.patch(denoiser):
            return denoiser.predict(_conditioning(state, c), xt)

    def look(self, state: State, reward=None, c: Tensor | Conditioning | None = None) -> RewardGradient:
        """x0bar, h, grad_c h and its direction at c, by default where the method would look; detached, nothing advances."""
        denoiser = self.denoiser(state)
        reward = self.method.reward if reward is None else reward
        with self._told(state), self.method.patch(denoiser):
            return denoiser.look(
                reward,
                self.method.gradient_point(state) if c is None else _conditioning(state, c),
                keep_graph=self.method.keep_graph,
            )

    def step(self, state: State) -> tuple[State, StepInfo]:
        """One step: (the next state, what happened, the last time if the method repeats the step); `state` is left as it was.

        Carries gradient from `state.xt` to the next xt, as the update of the embedding is a constant to it.
        """
        denoiser = self.denoiser(state)
        following, info = self._once(denoiser, 0)
        for repetition in range(1, self.method.repeats(denoiser)):
            again = state.replace(
                xt=self._renoised(following.xt, state, repetition),
                memory=denoiser.solver.moved(state.solver_state),
            )
            following, info = self._once(self.denoiser(again), repetition)
        return following, info

    def _once(self, denoiser: Denoiser, repetition: int) -> tuple[State, StepInfo]:
        state = denoiser.state
        with self._told(state), self.method.patch(denoiser):
            update = self.method.condition(denoiser, state)
            prediction = self.method.predict(denoiser, update.cond)
        xt, memory = self._solve(state, prediction, repetition)
        i = state.i + 1
        t = denoiser.solver.timesteps[i] if i < self.num_steps else 0
        info = self._info(state, update, prediction, denoiser.notes)
        return state.replace(xt=xt, i=i, t=t, cond=update.cond, memory=memory), info

    @contextlib.contextmanager
    def _told(self, state: State) -> Iterator[None]:
        """Inside, memory that runs out in a plain prediction is an error that says what it would need."""
        try:
            yield
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not out_of_memory(error) or hasattr(error, "told"):
                raise
            from .advice import told

            raise told(
                error,
                self.backbone,
                Fixed(),
                len(state),
                shape=tuple(state.xt.shape[1:]),
                guidance_scale=self.guidance_scale,
            ) from error

    def _solve(
        self, state: State, prediction: Prediction, repetition: int = 0
    ) -> tuple[Tensor, dict]:
        given = None if state.noise is None else state.noise[state.i]
        seeds = noise.repeated(state.seeds, repetition)
        return self.solver_for(state.xt.shape).step(
            prediction.out, state.xt, state.i, state.solver_state, seeds, given
        )

    def _renoised(self, xt: Tensor, state: State, repetition: int) -> Tensor:
        """A latent of step i + 1 back at the level of step i: (alpha_i / alpha_{i+1}) xt + noise, of the variance that is missing."""
        solver = self.solver_for(xt.shape)
        (alpha, sigma), (alpha_next, sigma_next) = solver.level(state.i), solver.level(state.i + 1)
        kept = alpha / alpha_next
        spread = math.sqrt(max(0.0, sigma**2 - (kept * sigma_next) ** 2))
        exact = torch.promote_types(xt.dtype, torch.float32)
        fresh = noise.normal(
            noise.repeated(state.seeds, repetition),
            state.i,
            xt.shape[1:],
            exact,
            purpose="recurrence",
        )
        return kept * xt + spread * fresh.to(xt)

    def _info(
        self, state: State, update, prediction: Prediction, installed: dict[str, Tensor]
    ) -> StepInfo:
        look, c, x0bar_hat = (
            update.look or prediction.look,
            update.cond.sequence.detach(),
            prediction.x0bar.detach(),
        )
        distance = norm(c - state.c_org)
        if state.cond.pooled is not None:
            distance = torch.hypot(
                distance, norm(update.cond.pooled.detach() - state.cond_org.pooled)
            )
        seen = (
            {"x0bar": x0bar_hat, "at": c}
            if look is None
            else {
                "x0bar": look.x0bar,
                "at": look.c,
                "h": look.h,
                "grad_x0bar": look.grad_x0bar,
                "grad": look.grad,
                "grad_pooled": look.grad_pooled,
                "terms": look.terms,
            }
        )
        return StepInfo(
            i=state.i,
            t=state.t,
            prompts=state.prompts,
            seeds=state.seeds,
            c=c,
            xt=state.xt.detach(),
            x0bar_hat=x0bar_hat,
            updated=update.moved,
            distance=distance,
            decode=self.backbone.decode,
            eps_c=prediction.eps_c.detach(),
            eps_u=None if prediction.eps_u is None else prediction.eps_u.detach(),
            notes=update.notes
            | prediction.notes
            | installed
            | _fed(c, state.c_org, self.backbone.dtype),
            **seen,
        )

    def __repr__(self) -> str:
        return (
            f"Sampler({self.backbone!r}, {self.method!r}, num_steps={self.num_steps}, "
            f"guidance_scale={self.guidance_scale:g}, solver={str(self.solver)!r}, eta={self.solver.eta:g})"
        )


def _undecoded(error: BaseException, latents: Tensor) -> torch.OutOfMemoryError:
    free = free_bytes(latents.device) / 2**30
    return torch.OutOfMemoryError(
        f"pictures of latents {tuple(latents.shape)} cannot be decoded even one at a time ({free:.2f} GiB free): "
        "take smaller ones (height, width) or load the model in half precision (dtype)"
    )


def _fed(c: Tensor, c_org: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """How far the network sees the embedding move, where its precision rounds some of a small update away."""
    if torch.finfo(dtype).eps <= torch.finfo(c.dtype).eps:
        return {}
    return {"distance_fed": norm(c.to(dtype).to(c.dtype) - c_org.to(dtype).to(c.dtype))}


def _conditioning(state: State, c: Tensor | Conditioning | None) -> Conditioning | None:
    return state.cond.replace(sequence=c) if isinstance(c, Tensor) else c


def _count(what: str, value: object) -> int | None:
    return None if value is None else whole(what, value, 1)


def _finite(what: str, value: object) -> float:
    if not is_finite(value):
        raise ValueError(f"{what} must be a finite number, got {value!r}")
    return float(value)


def _seeds(seeds) -> tuple[int, ...]:
    seeds = [seeds] if is_whole(seeds) else list(seeds)
    for seed in seeds:
        if not is_whole(seed) or not 0 <= seed < 2**63:
            raise ValueError(f"a seed is a whole number from 0 to 2**63 - 1, got {seed!r}")
    return tuple(int(seed) for seed in seeds)


def _prompts(prompts, count: int, latents) -> tuple[str, ...]:
    if isinstance(prompts, str):
        return (prompts,) * (
            count if latents is None or latents.ndim != 4 else max(count, len(latents))
        )
    prompts = tuple(prompts)
    if not prompts:
        raise ValueError("no prompts: give at least one")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"a prompt is a string, got {type(prompt).__name__}")
    return prompts


def _negatives(negative_prompts, count: int) -> tuple[str | None, ...]:
    if negative_prompts is None or isinstance(negative_prompts, str):
        return (negative_prompts,) * count
    negatives = _prompts(negative_prompts, count, None)
    if len(negatives) != count:
        raise ValueError(
            f"{count} prompts need {count} negative prompts (or one string for all), got {len(negatives)}"
        )
    return negatives


def _latents(latents: Tensor, count: int, shape: tuple[int, int, int], sized: bool) -> Tensor:
    if (
        not isinstance(latents, Tensor)
        or latents.ndim != 4
        or len(latents) != count
        or latents.shape[1] != shape[0]
        or (sized and tuple(latents.shape[1:]) != tuple(shape))
    ):
        found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise ValueError(f"latents must be a tensor of shape {(count, *shape)}, got {found}")
    if not latents.isfinite().all():
        raise ValueError("latents hold NaN or infinity")
    return latents
