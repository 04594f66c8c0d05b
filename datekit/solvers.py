"""diffusers' schedulers behind a pure step: (out, xt, i, solver_state) -> (next xt, next state).

A scheduler object changes while it samples. Here the object is a template; what changes (the past
of a multistep solver) lives in `State.solver_state`. Each step has a level (alpha, sigma) with
xt = alpha x0 + sigma eps, from which x0bar follows for any parametrisation of the network:
alpha^2 + sigma^2 = 1 for the variance-preserving solvers, alpha = 1 for Euler's, and
alpha = 1 - sigma for flows.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import noise
from .errors import is_whole, unknown

SOLVERS = {
    "ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler", "unipc": "UniPCMultistepScheduler",
}  # fmt: skip
FLOW_SOLVERS = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "dpm++": SOLVERS["dpm++"],
    "unipc": SOLVERS["unipc"],
}
OWN = "own"  # the name of the pipeline's own scheduler
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


class Solver:
    """A diffusers scheduler for a fixed number of steps.

    scheduler: the pipeline's own, whose configuration (betas, prediction type, shift) is kept;
    name: one of `SOLVERS`, "own" for the pipeline's, or a diffusers scheduler; eta: 0 for
    deterministic to 1 for DDPM-like, where the scheduler knows it; options: gives what
    `set_timesteps` is told besides, as a function of the scheduler and the number of steps. Raises
    ValueError for an unknown name, a bad number of steps, or an eta that nothing reads.
    """

    def __init__(
        self,
        scheduler,
        num_steps: int,
        name: Any = OWN,
        *,
        eta: float = 0.0,
        device="cpu",
        options: Callable[[Any, int], dict] | None = None,
    ) -> None:
        self.name = name.lower() if isinstance(name, str) else None
        self.template = name
        self._scheduler = _build(scheduler, name)
        self._kind = type(self._scheduler).__name__
        self.prediction_type = _prediction_type(self._scheduler)
        self.is_flow = _is_flow(self._scheduler)  # whether it was trained by flow matching
        limit = self._scheduler.config.num_train_timesteps
        if not is_whole(num_steps) or not 1 <= num_steps <= limit:
            raise ValueError(
                f"num_steps must be a whole number from 1 to {limit}, got {num_steps!r}"
            )
        self._accepts = set(inspect.signature(self._scheduler.step).parameters)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie between 0 (DDIM) and 1 (DDPM), got {eta!r}")
        if eta and "eta" not in self._accepts:
            raise ValueError(f"{self} has no eta; leave eta=0 or use solver='ddim'")
        self.num_steps, self.eta = int(num_steps), float(eta)
        sde = str(self._scheduler.config.get("algorithm_type", "")).startswith("sde")
        self.stochastic = bool(eta) or sde or self._kind == "DDPMScheduler"
        settings = options(self._scheduler, num_steps) if options else {}
        if "sigmas" not in settings:
            settings = {"num_inference_steps": num_steps} | settings
        device = "cpu" if torch.device(device).type == "meta" else device
        self._scheduler.set_timesteps(**settings, device=device)
        self.timesteps = [t.item() for t in self._scheduler.timesteps]
        if not self.is_flow and max(self.timesteps) >= limit:
            raise ValueError(
                f"num_steps={num_steps} visits timestep {max(self.timesteps)}, but the model ends "
                f"at {limit - 1}; take fewer"
            )
        self.levels = _levels(self._scheduler)  # (alpha, sigma) before each step, and at the end
        self.init_noise_sigma = float(getattr(self._scheduler, "init_noise_sigma", 1.0))

    def level(self, i: int) -> tuple[float, float]:
        """(alpha, sigma) of xt before step i; i = num_steps is what the last step leaves."""
        return self.levels[i]

    def noised(self, x0: Tensor, eps: Tensor, i: int) -> Tensor:
        """alpha x0 + sigma eps, the latent of step i that belongs to this x0 and this noise."""
        alpha, sigma = self.level(i)
        return alpha * x0 + sigma * eps

    def renoised(self, xt: Tensor, i: int, fresh: Tensor) -> Tensor:
        """A latent of step i + 1 brought back to the level of step i.

        (alpha_i / alpha_{i+1}) xt, and fresh noise (B, C, H, W) of the variance that is missing.
        """
        (alpha, sigma), (alpha_next, sigma_next) = self.level(i), self.level(i + 1)
        kept = alpha / alpha_next
        spread = math.sqrt(max(0.0, sigma**2 - (kept * sigma_next) ** 2))
        return kept * xt + spread * fresh.to(xt)

    def scale_input(self, xt: Tensor, i: int) -> Tensor:
        """What the network is fed for xt; it differs where alpha^2 + sigma^2 is not 1 (Euler)."""
        if not hasattr(self._scheduler, "scale_model_input"):
            return xt
        return self._at(i).scale_model_input(xt, self._scheduler.timesteps[i])

    def x0bar(self, out: Tensor, xt: Tensor, i: int) -> Tensor:
        """The mean predicted latent, Eq. 11, never clamped; carries gradient to out and xt."""
        alpha, sigma = self.level(i)
        if self.prediction_type == "epsilon":
            return (xt - sigma * out) / alpha
        if self.prediction_type == "v_prediction":
            r = math.hypot(alpha, sigma)  # 1 for the variance-preserving solvers
            return (alpha * xt / r - sigma * out) / r
        if self.is_flow:
            return xt - sigma * out
        return out  # "sample"

    def eps(self, out: Tensor, xt: Tensor, i: int) -> Tensor:
        """The network's output as noise, so that score = -eps / sigma; carries gradient to both."""
        alpha, sigma = self.level(i)
        if self.is_flow:
            return xt + alpha * out
        if self.prediction_type == "epsilon":
            return out
        return (xt - alpha * self.x0bar(out, xt, i)) / sigma

    def out(self, eps: Tensor, xt: Tensor, i: int) -> Tensor:
        """The inverse of `eps`: what the network would have said; carries gradient to both.

        Raises ValueError where alpha = 0, as where some schedules start: xt is all noise there.
        """
        alpha, sigma = self.level(i)
        if self.prediction_type == "epsilon":
            return eps
        if alpha == 0:
            raise ValueError(
                f"step {i} starts from pure noise: there eps is xt, and no output follows from it"
            )
        if self.is_flow:
            return (eps - xt) / alpha
        x0 = (xt - sigma * eps) / alpha
        if self.prediction_type == "v_prediction":
            r = math.hypot(alpha, sigma)
            return (alpha * xt / r - x0 * r) / sigma
        return x0

    def step(
        self,
        out: Tensor,
        xt: Tensor,
        i: int,
        solver_state: dict,
        seeds,
        given: Tensor | None = None,
    ) -> tuple[Tensor, dict]:
        """(xt of step i + 1, the solver's new state); `solver_state` is left as it was.

        given: (B, C, H, W) step noise to use instead of the seeds' own.
        """
        scheduler = self._at(i, solver_state)
        kwargs = {"return_dict": False}
        if "eta" in self._accepts:
            kwargs["eta"] = self.eta
        if given is not None:
            if not (self.stochastic and "variance_noise" in self._accepts):
                raise ValueError(
                    f"this state brings its own step noise, but {self} at eta = {self.eta:g} takes "
                    "none; sample it with solver='ddim' and eta > 0"
                )
            kwargs["variance_noise"] = given
        elif self.stochastic:
            kwargs["generator"] = noise.generators(seeds, i)
        following = scheduler.step(out, self._scheduler.timesteps[i], xt, **kwargs)[0]
        before = vars(self._scheduler)
        changed = {}
        for name, value in vars(scheduler).items():
            if name not in _POSITION and value is not before.get(name):
                changed[name] = value
        return following, changed

    @staticmethod
    def moved(solver_state: dict) -> dict:
        """The state for an xt that did not come from the last step.

        Without this, a corrector would draw xt back to where that step led.
        """
        return {name: value for name, value in solver_state.items() if name != "last_sample"}

    def _at(self, i: int, solver_state: dict | None = None):
        """The scheduler as it is before step i, a copy."""
        scheduler = copy.copy(self._scheduler)
        vars(scheduler).update(_copied(vars(scheduler) | (solver_state or {})))
        vars(scheduler).update(_step_index=i, is_scale_input_called=True)
        return scheduler

    def __repr__(self) -> str:
        return self.name if self.name not in (None, OWN) else self._kind


_POSITION = ("_step_index", "is_scale_input_called")  # what follows from i alone


def _levels(scheduler) -> list[tuple[float, float]]:
    """(alpha, sigma) of each timestep and of what the last step leaves, in double precision."""
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.double()
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
            pairs = [scheduler._sigma_to_alpha_sigma_t(sigma) for sigma in sigmas]
            return [(float(alpha), float(sigma)) for alpha, sigma in pairs]
        flow = _is_flow(scheduler)
        return [(1 - sigma if flow else 1.0, sigma) for sigma in sigmas.tolist()]
    last = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    alpha_bar = scheduler.alphas_cumprod.double()[scheduler.timesteps.long().cpu()].tolist()
    return [(math.sqrt(a), math.sqrt(1 - a)) for a in [*alpha_bar, last]]


def _copied(attributes: dict) -> dict:
    """Lists copied, so that a scheduler which appends to one does not reach into another state."""
    lists = {name: list(value) for name, value in attributes.items() if isinstance(value, list)}
    return attributes | lists


def _prediction_type(scheduler) -> str:
    flow = type(scheduler).__name__.startswith("FlowMatch")
    return "flow_prediction" if flow else scheduler.config.get("prediction_type", "epsilon")


def _is_flow(scheduler) -> bool:
    return _prediction_type(scheduler) == "flow_prediction"


def _build(scheduler, name):
    known = {*SOLVERS.values(), *FLOW_SOLVERS.values()}
    if isinstance(name, str) and name.lower() != OWN:
        built = _named(scheduler, name.lower())
    else:
        built = copy.deepcopy(scheduler if isinstance(name, str) else name)
    kind = type(built).__name__
    if kind not in known:
        raise TypeError(
            f"{kind} is not a solver here; take one of {sorted(SOLVERS)} or of diffusers' "
            f"{sorted(known)}"
        )
    if _prediction_type(built) not in PREDICTIONS:
        raise unknown("prediction type", _prediction_type(built), PREDICTIONS)
    if built.config.get("stochastic_sampling"):
        raise ValueError(
            "a flow scheduler with stochastic_sampling draws noise that no seed controls; "
            "turn it off"
        )
    if _is_flow(built) != _is_flow(scheduler):
        raise ValueError(
            f"{kind} as it is set up does not fit a model trained with {type(scheduler).__name__}"
        )
    return built


def _named(scheduler, name: str):
    import diffusers

    flow, config = _is_flow(scheduler), scheduler.config
    known = FLOW_SOLVERS if flow else SOLVERS
    if name not in known:
        raise unknown("solver of a flow" if flow else "solver", name, [*known, OWN])
    changes = {}
    if flow:
        shift = config.get("shift", config.get("flow_shift", 1.0))
        changes = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        changes = {"shift": shift} if name == "euler" else changes | {"flow_shift": shift}
    elif name in ("ddim", "ddpm"):
        # A configuration that does not mention clipping wants none; these classes would add it.
        changes = {"clip_sample": config.get("clip_sample", False)}
    return getattr(diffusers, known[name]).from_config(config, **changes)
