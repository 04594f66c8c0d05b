"""Feynman-Kac steering: several samples of a prompt, of which the promising ones multiply."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import noise
from .errors import finite, unknown, whole
from .inputs import check_prompts
from .methods import Method
from .registry import option
from .rewards.base import as_reward, decoder_of
from .sampler import Sampler
from .schedules import Schedule, as_schedule, fraction
from .types import Conditioning, State, StepInfo

POTENTIALS = ("max", "difference", "sum")
EXACT = torch.float64  # of the weights, on the CPU


@dataclass(init=False, repr=False, eq=False)  # for its options
class FKSteering(Sampler):
    """Feynman-Kac steering (arXiv 2501.06848): K particles of each prompt take the sampler's steps.

    The particles are samples of the batch, those of a prompt one after the other, under any method,
    and `images` shows them all; `best(run.state)` has the row of each prompt's best.
    After each step i of `when` and after the last, each is given a potential by h of its x0bar,

        "max"         G_i = exp(strength max_{j <= i} h_j)
        "difference"  G_i = exp(strength (h_i - h_j)), j the time before, h = 0 before the first
        "sum"         G_i = exp(strength sum_{j <= i} h_j)
        the last      G   = exp(strength h(x0)) / prod_i G_i, whichever the others are,

    so that their product is exp(strength h(x0)), and its weight is multiplied by it. Where a
    prompt's effective sample size, (sum W)^2 / sum W^2, is below threshold K, its particles are
    drawn anew by systematic resampling: positions (u + j) / K on their cumulated weights, one u by
    (seed, step). Their weights are equal then. xt, embedding, the solver's past and all extras
    follow a particle; its seed stays where it was, so that copies part by the noise to come.

    Particle 0 has the seed s of its prompt and particle j `noise.derived(s, j, "best-of")`, as the
    candidates of `best_of`, which these are as long as nothing is resampled. reward: h, without
    gradient, the method's own by default; when: 20 % of the steps, of 100 steps 0, 20, 40, 60, 80.

    K = 4, strength 10 for ImageReward and threshold 0.5 are those of the authors' code, which takes
    steps 20, 40, 60, 80 and the last of 100 of DDIM with eta = 1 for SDXL. It resamples by
    independent draws, forgets the weights where it does not resample, keeps a max of at least 0,
    and ends "max" and "sum" with what was kept in place of h(x0); nothing of this is so here.

    `StepInfo.extras` has fk_h, fk_log_weights (before resampling), fk_size, the effective sample
    size, and fk_ancestors, the row that each row goes on from; all (B K,). `State.extras` has fk_h,
    fk_kept (the max or sum), fk_log_product (of the potentials) and fk_log_weights.
    """

    options = (
        *Sampler.options, "reward", "particles", "potential", "strength", "threshold", "when"
    )  # fmt: skip
    fixed_by_the_past = (*Sampler.fixed_by_the_past, "particles", "potential")

    reward: Any = option(None, help="The reward h, by default that of the method.")
    particles: int = option(4, range=(1, 16), help="How many samples of a prompt there are.")
    potential: str = option("max", choices=POTENTIALS, help="Which rewards make a potential.")
    strength: float = option(10.0, range=(0.0, 1000.0), help="How sharply the reward chooses.")
    threshold: float = option(0.5, range=(0.0, 1.0), help="Below this share of K is resampling.")
    eta: float = option(0.0, range=(0.0, 1.0), help="0 for DDIM to 1 for DDPM.")

    def __init__(
        self,
        backbone: Any,
        method: Method | None = None,
        *,
        reward: Callable | None = None,
        particles: int = 4,
        potential: str = "max",
        strength: float = 10.0,
        threshold: float = 0.5,
        when: Schedule = fraction(0.2),  # noqa: B008 (it is frozen)
        **settings: Any,
    ) -> None:
        super().__init__(backbone, method, **settings)
        self.reward = self.method.reward if reward is None else reward
        as_reward(self.reward)  # raises TypeError for what is none
        decoder_of(self.reward, self.backbone)
        self.particles = whole("particles", particles, 1)
        if potential not in POTENTIALS:
            raise unknown("potential", potential, POTENTIALS)
        self.potential, self.strength = potential, float(finite("strength", strength))
        self.threshold = float(finite("threshold", threshold))
        self.when = as_schedule(when)
        self.when.indices(self.num_steps)  # raises ValueError for steps beyond the last
        if self.particles > 1 and not self.solver.stochastic:
            other = "a FlowMatchLCMScheduler" if self.solver.is_flow else "solver='ddim' and eta=1"
            told = f"{self.solver} adds no noise, so copies of a particle would stay copies"
            raise ValueError(f"{told}: take {other}, or dk.best_of, which needs none")

    def init(
        self,
        prompts: Sequence[str] | str,
        *,
        seeds: Sequence[int] | int | None = None,
        latents: Tensor | None = None,
        negative_prompts: Sequence[str] | str | None = None,
        **size: Any,
    ) -> State:
        """The state before step 0, with K rows a prompt; arguments as for `Sampler.init`.

        Raises ValueError for latents, unless K = 1: particles differ by the noise of their seeds.
        """
        prompts, seeds = check_prompts(prompts, seeds, latents)
        if latents is not None and self.particles > 1:
            raise ValueError("particles differ by the noise of their seeds, so give no latents")
        particles, slots = [], range(self.particles)
        for seed in seeds:
            particles += [noise.derived(seed, j, "best-of") if j else seed for j in slots]
        if negative_prompts is not None and not isinstance(negative_prompts, str):
            negative_prompts = [text for text in negative_prompts for _ in slots]
        prompts = [prompt for prompt in prompts for _ in slots]
        size |= {"latents": latents, "negative_prompts": negative_prompts}
        state = super().init(prompts, seeds=particles, **size)
        zeros = torch.zeros(len(state), dtype=EXACT)
        kept = zeros - math.inf if self.potential == "max" else zeros
        weights = {"fk_kept": kept, "fk_log_product": zeros, "fk_log_weights": zeros}
        return state.replace(extras=state.extras | weights)

    def step(self, state: State) -> tuple[State, StepInfo]:
        """One step of every particle, and then perhaps their resampling; as `Sampler.step`."""
        following, info = super().step(state)
        last = following.i == self.num_steps
        if not last and not self.when(state.i, self.num_steps):
            return following, info
        seen = following.xt.detach() if last else info.x0bar_hat
        h = self.denoiser(state).reward_of(self.reward, seen, f" at step {state.i}")
        weighed = self._weigh(state, h.to("cpu", EXACT), last)
        ancestors, sizes = self._resample(state, weighed["fk_log_weights"])
        told = {name: weighed[name] for name in ("fk_h", "fk_log_weights")}
        told |= {"fk_size": sizes, "fk_ancestors": ancestors}
        weighed["fk_log_weights"] = weighed["fk_log_weights"].where(sizes >= self._enough, 0)
        following = following.replace(extras=following.extras | weighed)
        return _follow(following, ancestors), info.replace(extras=info.extras | told)

    @property
    def _enough(self) -> float:
        """The effective sample size below which there is resampling; equal weights reach it."""
        return self.threshold * self.particles * (1 - 1e-9)

    def _weigh(self, state: State, h: Tensor, last: bool) -> dict[str, Tensor]:
        """What `State.extras` says of each particle once it has its potential, (B K,) each."""
        names = ("fk_kept", "fk_log_product", "fk_log_weights")
        kept, log_product, log_weights = (state.extras[name].cpu() for name in names)
        kept = torch.maximum(kept, h) if self.potential == "max" else kept + h
        log_potential = self.strength * kept
        if last or self.potential == "difference":
            log_potential = self.strength * h - log_product
        sums = {"fk_log_product": log_product + log_potential}
        sums |= {"fk_log_weights": log_weights + log_potential}
        return {"fk_h": h, "fk_kept": kept} | sums

    def _resample(self, state: State, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """The row that each row goes on from, and the effective sample size of its prompt."""
        ancestors, sizes = torch.arange(len(state)), torch.empty_like(log_weights)
        for first in range(0, len(state), self.particles):
            group = slice(first, first + self.particles)
            weights = log_weights[group].softmax(0)
            sizes[group] = 1 / weights.square().sum()
            if sizes[first] < self._enough:
                (source,) = noise.generators(state.seeds[first : first + 1], state.i, "resampling")
                u = torch.rand((), generator=source, dtype=EXACT)
                ancestors[group] = first + systematic(weights, u)
        return ancestors, sizes

    def best(self, state: State) -> list[int]:
        """The row of each prompt's particle with the highest h(x0), in a finished state.

        Raises RuntimeError for a state before the end.
        """
        if state.i < self.num_steps:
            raise RuntimeError(f"{state.i} of {self.num_steps} steps are taken: finish first")
        rows = state.extras["fk_h"].view(-1, self.particles).argmax(1).tolist()
        return [n * self.particles + j for n, j in enumerate(rows)]


def systematic(weights: Tensor, u: Tensor) -> Tensor:
    """K numbers below K, (K,): where (u + j) / K falls on the cumulated weights, which sum to 1."""
    count = len(weights)
    positions = (u + torch.arange(count)) / count
    return torch.searchsorted(weights.cumsum(0), positions, right=True).clamp(max=count - 1)


def _follow(state: State, rows: Tensor) -> State:
    """The state in which each row goes on from another; prompts, seeds and c_org stay."""

    def taken(value: Any) -> Any:
        if isinstance(value, Conditioning):
            return Conditioning.cat([value[n : n + 1] for n in rows.tolist()])
        if isinstance(value, (list, tuple)):
            return type(value)(taken(item) for item in value)
        if isinstance(value, Tensor) and value.shape[:1] == rows.shape:
            return value[rows.to(value.device)]
        return value

    past = {name: taken(value) for name, value in state.solver_state.items()}
    extras = {name: taken(value) for name, value in state.extras.items()}
    changes = {"xt": taken(state.xt), "cond": taken(state.cond), "extras": extras}
    return state.replace(solver_state=past, **changes)
