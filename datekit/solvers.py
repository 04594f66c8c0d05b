"""diffusers' schedulers behind a pure step: (out, xt, i, memory) -> (next xt, next memory).

A scheduler object changes while it samples. Here the object is a template; what changes lives in `State.memory`.
Each step has a level (alpha, sigma) with xt = alpha x0 + sigma eps; from it x0bar follows for any parametrisation of the
network. For the variance-preserving solvers alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar).
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

from torch import Tensor

from . import noise
from .errors import unknown

SOLVERS = {"ddim": "DDIMScheduler"}


class Solver:
    """A diffusers scheduler for a fixed number of steps.

    scheduler: the pipeline's own, whose configuration (betas, prediction type) is kept; name: one of `SOLVERS`, a
    diffusers scheduler to use instead, or None for the pipeline's; eta: 0 deterministic to 1 DDPM-like, where the
    scheduler knows it. Raises ValueError on an unknown name, a bad number of steps, or an eta that nothing reads.
    """

    def __init__(self, scheduler, num_steps: int, name: Any = None, *, eta: float = 0.0, device="cpu") -> None:
        self.name = name.lower() if isinstance(name, str) else None
        self.template = scheduler if name is None else name
        self._scheduler = _build(scheduler, name)
        config = self._scheduler.config
        limit = config.num_train_timesteps
        if isinstance(num_steps, bool) or not isinstance(num_steps, int) or not 1 <= num_steps <= limit:
            raise ValueError(f"num_steps must be a whole number from 1 to {limit}, got {num_steps!r}")
        self._accepts = set(inspect.signature(self._scheduler.step).parameters)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie between 0 (DDIM) and 1 (DDPM), got {eta!r}")
        if eta and "eta" not in self._accepts:
            raise ValueError(f"{self} has no eta; leave eta=0 or use solver='ddim'")
        self.num_steps, self.eta = num_steps, float(eta)
        self.prediction_type = config.prediction_type
        self._scheduler.set_timesteps(num_steps, device=device)
        self.timesteps = [t.item() for t in self._scheduler.timesteps]
        if max(self.timesteps) >= limit:
            raise ValueError(f"num_steps={num_steps} visits timestep {max(self.timesteps)}, but the model ends at {limit - 1}; take fewer")
        self.levels = _levels(self._scheduler)

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation that the first xt has."""
        return float(self._scheduler.init_noise_sigma)

    def level(self, i: int) -> tuple[float, float]:
        """(alpha, sigma) of xt before step i: xt = alpha x0 + sigma eps."""
        return self.levels[i]

    def scale_input(self, xt: Tensor, i: int) -> Tensor:
        """What the network is fed for xt (the same, for the variance-preserving solvers)."""
        return xt

    def x0bar(self, out: Tensor, xt: Tensor, i: int) -> Tensor:
        """Mean predicted latent from the network's output, Eq. 11, never clamped; carries gradient to both."""
        alpha, sigma = self.level(i)
        if self.prediction_type == "epsilon":
            return (xt - sigma * out) / alpha
        if self.prediction_type == "v_prediction":
            r = math.hypot(alpha, sigma)  # 1 for the variance-preserving solvers
            return (alpha * xt / r - sigma * out) / r
        return out  # "sample"

    def eps(self, out: Tensor, xt: Tensor, i: int) -> Tensor:
        """The network's output as noise, so that score = -eps / sigma; carries gradient to both."""
        alpha, sigma = self.level(i)
        return out if self.prediction_type == "epsilon" else (xt - alpha * self.x0bar(out, xt, i)) / sigma

    def out(self, eps: Tensor, xt: Tensor, i: int) -> Tensor:
        """The inverse of `eps`: what the network would have said; carries gradient to both."""
        alpha, sigma = self.level(i)
        if self.prediction_type == "epsilon":
            return eps
        x0 = (xt - sigma * eps) / alpha
        if self.prediction_type == "v_prediction":
            r = math.hypot(alpha, sigma)
            return (alpha * xt / r - x0 * r) / sigma
        return x0

    def step(self, out: Tensor, xt: Tensor, i: int, memory: dict, seeds, given: Tensor | None = None):
        """One step of the scheduler: (xt of step i + 1, new memory); `memory` is left as it was.

        given: (B, C, H, W) step noise to use instead of the seeds' own.
        """
        scheduler = copy.copy(self._scheduler)
        vars(scheduler).update(_copied(vars(scheduler)) | _copied(memory))
        kwargs = {"return_dict": False}
        if "eta" in self._accepts:
            kwargs["eta"] = self.eta
        if given is not None and not self.eta:
            raise ValueError("this state brings its own step noise, but eta = 0 uses none; sample it with eta > 0")
        if given is not None:
            kwargs["variance_noise"] = given
        elif self.eta:
            kwargs["generator"] = noise.generators(seeds, i)
        following = scheduler.step(out, self._scheduler.timesteps[i], xt, **kwargs)[0]
        before = vars(self._scheduler)
        return following, {k: v for k, v in vars(scheduler).items() if k not in before or not _same(before[k], v)}


    def __repr__(self) -> str:
        return self.name or type(self._scheduler).__name__


def _levels(scheduler) -> list[tuple[float, float]]:
    """(alpha, sigma) of each timestep, in double precision."""
    alpha_bar = scheduler.alphas_cumprod.double()
    return [(alpha_bar[int(t)].sqrt().item(), (1 - alpha_bar[int(t)]).sqrt().item()) for t in scheduler.timesteps]


def _copied(attributes: dict) -> dict:
    """Lists copied, so that a scheduler which appends to one does not reach into another state."""
    return {key: list(value) if isinstance(value, list) else value for key, value in attributes.items()}


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))
    return old is new


def _build(scheduler, name):
    import diffusers

    if isinstance(name, str) and name.lower() not in SOLVERS:
        raise unknown("solver", name, SOLVERS)
    if isinstance(name, str):
        # a configuration that does not mention clipping does not want it; DDIMScheduler's own default would add it
        clip = {"clip_sample": scheduler.config.get("clip_sample", False)}
        built = getattr(diffusers, SOLVERS[name.lower()]).from_config(scheduler.config, **clip)
    else:
        built = copy.deepcopy(scheduler if name is None else name)
    if type(built).__name__ not in SOLVERS.values():
        raise TypeError(f"solver must be one of {sorted(SOLVERS)} or such a diffusers scheduler, not {type(built).__name__}")
    if built.config.prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise unknown("prediction type", built.config.prediction_type, ("epsilon", "v_prediction", "sample"))
    return built
