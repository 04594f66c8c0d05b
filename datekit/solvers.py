"""diffusers' schedulers behind a pure step: (out, xt, i, solver_state) -> (next xt, next state).

A scheduler object changes while it samples. Here the object is a template; what changes (the past
of a multistep solver) lives in `State.solver_state`. Each step has a level (alpha, sigma) with
xt = alpha x0 + sigma eps, from which x0bar follows for any parametrisation of the network:
alpha^2 + sigma^2 = 1 for the variance-preserving solvers, alpha = 1 for Euler's kind and EDM, and
alpha = 1 - sigma for flows.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import noise, schedulers
from .errors import whole
from .schedulers import FLOW_SOLVERS, OWN, SOLVERS

if TYPE_CHECKING:
    from .backbones import Backbone

__all__ = ["FLOW_SOLVERS", "OWN", "SOLVERS", "Solver"]


class Solver:
    """A diffusers scheduler for a fixed number of steps, each of them one call of the network.

    backbone: its scheduler's configuration (betas, prediction type, shift) is kept; num_steps: as
    its pipeline counts, which for PNDM gives one step more, and for Heun's method one less than
    twice as many; name: one of `SOLVERS`, "own" for the pipeline's, or a diffusers scheduler;
    shape: of the latents, (C, h, w), on which some models' schedules depend; eta: 0 for
    deterministic to 1 for DDPM-like, where the scheduler knows it. Raises TypeError or ValueError
    for what does not fit.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_steps: int,
        name: Any = OWN,
        *,
        shape: Sequence[int] | None = None,
        eta: float = 0.0,
    ) -> None:
        self.name = name
        self._scheduler = scheduler = schedulers.build(backbone.scheduler, name)
        self._accepts = set(inspect.signature(scheduler.step).parameters)
        self.prediction_type = schedulers.prediction_type(scheduler)
        self.is_flow = schedulers.is_flow(scheduler)
        self.starts_anywhere = schedulers.kind_of(scheduler) not in schedulers.FROM_THE_START
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie between 0 (DDIM) and 1 (DDPM), got {eta!r}")
        if eta and "eta" not in self._accepts:
            raise ValueError(f"{self} has no eta; leave eta=0 or use solver='ddim'")
        self.eta, self.stochastic = float(eta), schedulers.adds_noise(scheduler, eta)
        num_steps = whole("num_steps", num_steps, 1, 100_000)
        self._set_timesteps(backbone, num_steps, shape or backbone.latent_shape())
        self.timesteps = [t.item() for t in scheduler.timesteps]
        self.num_steps = len(self.timesteps)
        if not all(map(math.isfinite, self.timesteps)):  # a shift that a single step divides by 0
            raise ValueError(f"{self} has no schedule of num_steps={num_steps}; take more")
        limit = scheduler.config.num_train_timesteps
        if not self.is_flow and max(self.timesteps) >= limit:
            visited = f"num_steps={num_steps} visits timestep {max(self.timesteps)}"
            raise ValueError(f"{visited}, but the model ends at {limit - 1}; take fewer")
        self._levels, self._k = schedulers.levels(scheduler), schedulers.deviation(scheduler)
        self.init_noise_sigma = float(getattr(scheduler, "init_noise_sigma", 1.0))

    def _set_timesteps(self, backbone, num_steps: int, shape: Sequence[int]) -> None:
        """Choose the timesteps as the model's pipeline does for latents of this shape."""
        settings = backbone.schedule(self._scheduler, num_steps, tuple(shape))
        if "sigmas" not in settings:
            settings = {"num_inference_steps": num_steps} | settings
        known = inspect.signature(self._scheduler.set_timesteps).parameters
        if more := ", ".join(settings.keys() - known):
            raise ValueError(f"{self} takes no {more}, as {backbone.name} has it; take another")
        device = backbone.device
        self._scheduler.set_timesteps(**settings, device="cpu" if device.type == "meta" else device)

    def level(self, i: int) -> tuple[float, float]:
        """(alpha, sigma) of xt before step i; i = num_steps is what the last step leaves."""
        return self._levels[i]

    def add_noise(self, x0: Tensor, eps: Tensor, i: int) -> Tensor:
        """alpha x0 + sigma eps, the latent of step i that belongs to this x0 and this noise."""
        alpha, sigma = self.level(i)
        return alpha * x0 + sigma * eps

    def renoise(self, xt: Tensor, i: int, fresh: Tensor) -> Tensor:
        """A latent of step i + 1 back at the level of step i, by scaling and fresh noise."""
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
        k, (alpha, sigma) = self._k, self.level(i)
        if self.prediction_type == "epsilon":
            return (xt - sigma * out) / alpha
        if self.prediction_type == "v_prediction":
            r = math.hypot(k * alpha, sigma)  # 1 for the variance-preserving solvers
            return (k * k * alpha * xt / r - k * sigma * out) / r
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
        """The inverse of `eps`: what the network would have said; carries gradient to both."""
        k, (alpha, sigma) = self._k, self.level(i)
        if self.prediction_type == "epsilon":
            return eps
        if alpha == 0:
            raise ValueError(f"step {i} starts from pure noise: no output follows from eps there")
        if self.is_flow:
            return (eps - xt) / alpha
        x0 = (xt - sigma * eps) / alpha
        if self.prediction_type == "v_prediction":
            r = math.hypot(k * alpha, sigma)
            return (k * k * alpha * xt / r - x0 * r) / (k * sigma)
        return x0

    def step(
        self,
        out: Tensor,
        xt: Tensor,
        i: int,
        solver_state: dict,
        seeds: Sequence[int],
        given: Tensor | None = None,
    ) -> tuple[Tensor, dict]:
        """(xt of step i + 1, the solver's new state); `solver_state` is left as it was.

        given: (B, C, H, W) step noise to use instead of the seeds' own.
        """
        options: dict[str, Any] = {"eta": self.eta} if "eta" in self._accepts else {}
        if given is not None:
            if not (self.stochastic and "variance_noise" in self._accepts):
                takes = f"{self} at eta = {self.eta:g} takes none"
                raise ValueError(f"this state brings its own step noise, but {takes}")
            options["variance_noise"] = given
        elif self.stochastic:
            options["generator"] = noise.generators(seeds, i)
        scheduler, t = self._at(i, solver_state), self._scheduler.timesteps[i]
        following = scheduler.step(out, t, xt, return_dict=False, **options)[0]
        before, changed = vars(self._scheduler), {}
        for name, value in vars(scheduler).items():
            if name not in _POSITION and value is not before.get(name):
                changed[name] = value
        return following, changed

    def forget_last_sample(self, solver_state: dict) -> dict:
        """The state for an xt that is not the last step's, to which a corrector would draw it.

        Raises ValueError where the step sets out from an earlier latent instead of xt.
        """
        if any(solver_state.get(name) is not None for name in ("sample", "cur_sample")):
            raise ValueError(f"{self} cannot take a step again; take solver='dpm++'")
        return {name: value for name, value in solver_state.items() if name != "last_sample"}

    def _at(self, i: int, solver_state: dict | None = None):
        """The scheduler as it is before step i: a copy, with its lists copied as steps append."""
        scheduler = copy.copy(self._scheduler)
        for name, value in (vars(self._scheduler) | (solver_state or {})).items():
            vars(scheduler)[name] = list(value) if isinstance(value, list) else value
        vars(scheduler).update(_step_index=i, is_scale_input_called=True)
        return scheduler

    def __repr__(self) -> str:
        own = not isinstance(self.name, str) or self.name == OWN
        return type(self._scheduler).__name__ if own else self.name


# What follows from i and the shape alone.
_POSITION = ("_step_index", "is_scale_input_called", "_init_size", "sigma_data")
