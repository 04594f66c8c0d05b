"""LiDAR: quick samples of a prompt, judged beforehand, draw the run to the better ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from .. import noise
from ..denoiser import Denoiser
from ..registry import option
from ..schedules import Schedule, every
from ..solvers import OWN, SOLVERS, Solver
from ..types import Conditioning, Prediction, State
from .base import Method, MethodUpdate
from .pushes import push, says_something

if TYPE_CHECKING:
    from ..sampler import Sampler


@dataclass(frozen=True)
class LiDAR(Method):
    """Look-ahead guidance (arXiv 2602.03211), without any gradient; c stays c_org.

    Before its first step a run draws n lookahead samples x0_k of each prompt in a few steps, each
    from a noise of its own, (seed, k), and judges them, h_k = h(x0_k). With xt = alpha x0 + sigma
    eps, a guided step then weighs them by how well they explain xt, alone and with the reward,

        w  = softmax_k(-||xt - alpha x0_k||^2 / (2 sigma^2))
        w' = softmax_k(-||xt - alpha x0_k||^2 / (2 sigma^2) + strength h_k)

    so that grad_xt log E[exp(strength h(x0)) | xt] = alpha / sigma^2 sum_k (w'_k - w_k) x0_k, and
        eps' = eps - scale sigma grad_xt, that is x0bar + scale sum_k (w'_k - w_k) x0_k at xt.

    From the authors' public code for Stable Diffusion v1.5 with ImageReward: 50 samples by 5 steps
    of DPM-Solver++ with the run's own guidance, strength 5000, which leaves the best sample that
    explains xt, and scale 12.5. There the run has 100 steps of DDIM with eta = 1, and those at
    t > 200 of 1000 are guided, the first 80 %; later all weight is on the nearest sample, with and
    without the reward. A step of pure noise, such as the first of a flow, is left alone.

    After the first step `State.extras` has lidar_x0 (B, n, C, h, w) and lidar_h (B, n), and
    `StepInfo.extras` has lidar_weights and lidar_tilted, w and w', (B, n), and lidar_push
    (B, C, h, w), what is added to x0bar.
    """

    label = "LiDAR"
    reward: Any = option(help="The reward h, which needs no gradient.")
    samples: int = option(
        50, label="lookaheads", range=(1, 200), help="How many samples are drawn."
    )
    lookahead_steps: int = option(
        5, label="lookahead steps", range=(1, 50), help="The steps that each of these takes."
    )
    strength: float = option(
        5000.0, range=(0.0, 10000.0), help="How sharply the reward chooses among them."
    )
    scale: float = option(12.5, range=(0.0, 100.0), help="The strength of the guidance.")
    lookahead_solver: str = option(
        "dpm++",
        label="lookahead solver",
        choices=(*SOLVERS, OWN),
        help="How these are taken; own for a distilled model.",
    )
    when: Schedule = option(every(), help="Which steps are guided.")

    def check(self, sampler: Sampler) -> None:
        """Raise ValueError where the lookahead cannot be drawn, before anything is sampled."""
        super().check(sampler)
        self._solver(sampler.backbone, sampler.backbone.latent_shape())
        if "patch" in sampler.method.stages:
            told = "it runs the network at other steps beforehand"
            raise ValueError(f"LiDAR does not go with a method that patches the network: {told}")

    def _solver(self, backbone, shape) -> Solver:
        with unset_fake_temporarily():  # its tables are numbers in `dk.estimate` too
            return Solver(backbone, self.lookahead_steps, self.lookahead_solver, shape=shape)

    def condition(self, denoiser: Denoiser, state: State) -> MethodUpdate:
        """c_org, and the lookahead samples, for all steps to come."""
        return MethodUpdate(state.cond_org, carry=self.look_ahead(denoiser))

    @torch.no_grad()
    def look_ahead(self, denoiser: Denoiser) -> dict[str, Tensor]:
        """The lookahead samples of a paused step and their rewards, drawn unless known."""
        found = denoiser.state.extras | denoiser.extras
        if "lidar_x0" in found:
            return {name: found[name] for name in ("lidar_x0", "lidar_h")}
        solver = self._solver(denoiser.backbone, denoiser.state.xt.shape[1:])
        samples, rewards = [], []
        for k in range(self.samples):
            samples.append(_draw(denoiser, solver, k))
            rewards.append(denoiser.reward_of(self.reward, samples[k], f" of lookahead {k}"))
        denoiser.extras |= {"lidar_x0": torch.stack(samples, 1), "lidar_h": torch.stack(rewards, 1)}
        return self.look_ahead(denoiser)

    def predict(self, denoiser: Denoiser, cond: Conditioning) -> Prediction:
        """The prediction, drawn to the lookahead samples; the push is a constant."""
        prediction, state = denoiser.predict(cond), denoiser.state
        guides = self.when(state.i, denoiser.num_steps) and says_something(denoiser)
        if not (guides and self.scale and self.strength):
            return prediction
        found, (alpha, sigma) = self.look_ahead(denoiser), denoiser.solver.level(state.i)
        x0, h = (each.to(prediction.eps.dtype) for each in found.values())
        xt = state.xt.detach().to(x0.dtype)
        fit = -(xt[:, None] - alpha * x0).square().flatten(2).sum(2) / (2 * sigma**2)
        weights, tilted = fit.softmax(1), (fit + self.strength * h).softmax(1)
        moved = self.scale * torch.einsum("bk,bk...->b...", tilted - weights, x0)
        denoiser.extras |= {"lidar_weights": weights, "lidar_tilted": tilted, "lidar_push": moved}
        return push(denoiser, prediction, -alpha / sigma * moved)


def _draw(denoiser: Denoiser, solver: Solver, k: int) -> Tensor:
    """Lookahead sample k of each prompt, (B, C, h, w)."""
    state, w = denoiser.state, denoiser.guidance_scale
    seeds = [noise.derived(seed, k, "lookahead") for seed in state.seeds]
    xt = noise.initial(seeds, state.xt.shape[1:], state.xt.dtype).to(state.xt.device)
    xt, past = xt * solver.init_noise_sigma, {}
    for i, t in enumerate(solver.timesteps):
        paused = state.replace(xt=xt, i=i, t=t, cond=state.cond_org)
        prediction = Denoiser(denoiser.backbone, solver, w, paused, denoiser.memory).predict()
        xt, past = solver.step(prediction.out, xt, i, past, seeds)
    return xt
