"""Rules for rho: how far an update goes, chosen at each step and for each sample from what can be measured there.

    dk.DATE(reward, rho=dk.rho_rules.Taylor(tolerance=0.5))
    dk.DATE(reward, rho=lambda line: 0.2 + 0.6 * line.i / line.num_steps)

A rule is any function of a `LineSearch`, the reward along the direction of the update, to one radius for all or one a sample, (B,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import noise
from ..errors import NonFiniteError, is_finite, whole
from ..rewards.base import decoder_of, score
from ..types import Conditioning, RewardGradient, norm


class LineSearch:
    """h(c + rho eps_hat) at a paused step, from the embedding where the gradient was taken; what a rule may ask.

    look: that gradient and what belongs to it; slope: (B,), the derivative in rho at 0, the norm of the gradient in all that
    moves together; denoiser: the paused step. Nothing here advances.
    """

    def __init__(
        self,
        denoiser,
        reward: Callable,
        cond: Conditioning,
        look: RewardGradient,
        directions: dict[str, Tensor],
        seen: str = "x0bar",
    ) -> None:
        self.denoiser, self.reward, self.cond, self.look, self.directions, self.seen = (
            denoiser,
            reward,
            cond,
            look,
            directions,
            seen,
        )
        self.slope = norm(torch.cat([g.flatten(1) for g in self._gradients(look)], 1))

    @property
    def i(self) -> int:
        """The step, from 0, the noisiest."""
        return self.denoiser.state.i

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.denoiser.num_steps

    @torch.no_grad()
    def h(self, rho: float | Tensor) -> Tensor:
        """h at c + rho eps_hat, (B,). Costs a conditional forward pass, a decoding and a scoring. Raises NonFiniteError, RewardError."""
        denoiser, moved = (
            self.denoiser,
            {
                name: stepped(getattr(self.cond, name), rho, d)
                for name, d in self.directions.items()
            },
        )
        latents, _ = judged(denoiser, denoiser.recall(self.cond.replace(**moved)).x0bar, self.seen)
        where = f" at step {self.i}, where the rule for rho measured it"
        decode = decoder_of(self.reward, denoiser.backbone)
        parts = denoiser.within_memory(
            self.reward,
            None,
            lambda: [
                score(self.reward, decode(latents[rows]), part.state.prompts, where, rows.start)
                for rows, part in denoiser.parts(denoiser.limits.decode_batch)
            ],
        )
        return torch.cat(parts).to(self.slope)

    def stable_share(self, *, strength: float = 0.2, draws: int = 1) -> Tensor:
        """The share of grad_c h that stays when xt is drawn again at the same t, (B,), at most 1; it can come out below 0.

        xt is written as alpha x0bar + sigma eps, a draw takes sqrt(1 - s^2) eps + s z for eps with z standard normal, a function of
        (seed, step); the share is the mean of g_m . g_n over pairs m != n over that of ||g||^2, the gradient at xt itself being
        one of the g. Costs `draws` gradients.
        """
        grads = torch.stack(
            [
                self._flat(self.look),
                *(self._flat(self._renoised(n, strength)) for n in range(draws)),
            ]
        )
        grads = (
            grads / grads.abs().amax((0, 2)).clamp_min(torch.finfo(grads.dtype).tiny)[:, None]
        )  # squares neither vanish nor overflow
        together, energy = grads.sum(0).square().sum(1), grads.square().sum((0, 2))
        count = draws + 1
        pairs = (together - energy) / (count * (count - 1))
        return pairs / (energy / count).where(energy > 0, 1)

    def _renoised(self, n: int, strength: float) -> RewardGradient:
        denoiser, state, x0bar = self.denoiser, self.denoiser.state, self.look.x0bar
        alpha, sigma = denoiser.solver.level(state.i)
        eps = (state.xt.to(x0bar) - alpha * x0bar) / sigma
        z = noise.normal(
            state.seeds, state.i, state.xt.shape[1:], torch.float64, purpose=f"radius {n}"
        ).to(eps)
        xt = alpha * x0bar + sigma * ((1 - strength**2) ** 0.5 * eps + strength * z)
        return looked(
            denoiser.at(xt.to(state.xt.dtype)),
            self.reward,
            self.cond,
            pooled="pooled" in self.directions,
            seen=self.seen,
        )

    def _gradients(self, look: RewardGradient) -> list[Tensor]:
        return [look.grad_pooled if name == "pooled" else look.grad for name in self.directions]

    def _flat(self, look: RewardGradient) -> Tensor:
        return torch.cat([g.flatten(1) for g in self._gradients(look)], 1)


class RhoRule:
    """A rule that can be described and rebuilt; subclasses answer `rule(line) -> (B,)`, one radius a sample."""

    def __call__(self, line: LineSearch) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Taylor(RhoRule):
    """The radius at which the first order is wrong by a given share of what it promises, from one measurement.

    The step is chosen to maximise h(c) + rho ||g||, so it is worth as much as that line is true. With r = trial,
    |h(c + r eps_hat) - h(c) - r ||g||| / (r ||g||) is measured; to second order it grows as rho, so that it is `tolerance` at
    rho = r tolerance / measured. At most `most`, which also holds where nothing is measured or the gradient is 0. Costs a conditional
    forward pass, a decoding and a scoring an update.
    """

    tolerance: float = 0.5
    trial: float = 0.5
    most: float = 2.0

    def __post_init__(self) -> None:
        _positive("tolerance", self.tolerance)
        _positive("trial", self.trial)
        _positive("most", self.most)

    def __call__(self, line: LineSearch) -> Tensor:
        promised = self.trial * line.slope
        wrong = (line.h(self.trial) - line.look.h.to(promised) - promised).abs()
        allowed = self.trial * self.tolerance * promised
        return (allowed / wrong.where(wrong > 0, 1)).where(allowed < self.most * wrong, self.most)


@dataclass(frozen=True)
class SignalToNoise(RhoRule):
    """`most`, times the share of the gradient that is a property of the picture under way and not of this draw of its noise.

    rho = most * max(0, `LineSearch.stable_share(strength, draws)`): what a Wiener filter leaves of a noisy gradient. Costs `draws`
    gradients an update more.
    """

    most: float = 1.0
    strength: float = 0.5
    draws: int = 1

    def __post_init__(self) -> None:
        _positive("most", self.most)
        _positive("strength", self.strength)
        if self.strength > 1:
            raise ValueError(
                f"strength is a share of the noise, above 0 and up to 1, got {self.strength!r}"
            )
        whole("draws", self.draws, 1)

    def __call__(self, line: LineSearch) -> Tensor:
        return self.most * line.stable_share(strength=self.strength, draws=self.draws).clamp(0, 1)


@dataclass(frozen=True)
class Unnormalised(RhoRule):
    """rho = scale ||grad_c h||, at most `most` where given: plain gradient ascent, c + scale g, which the normalisation of Eq. 14 replaces."""

    scale: float
    most: float | None = None

    def __post_init__(self) -> None:
        _positive("scale", self.scale)
        if self.most is not None:
            _positive("most", self.most)

    def __call__(self, line: LineSearch) -> Tensor:
        rho = self.scale * line.slope
        return rho if self.most is None else rho.clamp(max=self.most)


def looked(
    denoiser,
    reward: Callable,
    cond: Conditioning,
    *,
    pooled: bool,
    seen: str,
    keep_graph: bool | None = None,
) -> RewardGradient:
    """`Denoiser.look`, with h and its gradients taken of what the reward is shown, see `judged`; x0bar is x0bar in either case.

    keep_graph: as for `Denoiser.look`, where the reward is shown x0bar; no graph is kept for the other.
    """
    if seen == "x0bar":
        return denoiser.look(reward, cond, pooled=pooled, keep_graph=keep_graph)
    look = denoiser.look(None, cond)
    latents, factor = judged(denoiser, look.x0bar, seen)
    found, terms = [], []
    for rows, part in denoiser.parts():
        terms.append({})
        h, grad = part.reward_gradient(reward, latents[rows], rows.start, terms[-1])
        found.append(
            (
                h,
                factor * grad,
                *part.pull_back_to(cond[rows], factor * grad, rows.start, pooled=pooled),
            )
        )
    h, grad_x0bar, *grads = (torch.cat(parts) for parts in zip(*found, strict=True))
    return look.replace(
        h=h,
        grad_x0bar=grad_x0bar,
        grad=grads[0],
        grad_pooled=grads[1] if pooled else None,
        terms={name: torch.cat([part[name] for part in terms]) for name in terms[0]},
    )


def judged(denoiser, x0bar: Tensor, seen: str) -> tuple[Tensor, float]:
    """The latents that a reward is shown, (B, C, H, W), and their derivative in x0bar at fixed xt.

    "x0bar", Eq. 11; or "xt": the noisy latent that the step leads to, alpha' x0bar + sigma' eps at the next level (DDIM's mean).
    """
    if seen == "x0bar":
        return x0bar, 1.0
    state = denoiser.state
    (alpha, sigma), (alpha_next, sigma_next) = (
        denoiser.solver.level(state.i),
        denoiser.solver.level(state.i + 1),
    )
    return alpha_next * x0bar + sigma_next * (
        state.xt.to(x0bar) - alpha * x0bar
    ) / sigma, alpha_next - sigma_next * alpha / sigma


def ask(rule: Callable[[LineSearch], float | Tensor], line: LineSearch) -> Tensor:
    """What a rule answers, one radius a sample, (B,). Raises ValueError for another shape, NonFiniteError below 0 or not finite."""
    answer = torch.as_tensor(rule(line)).detach().to(line.slope)
    count = len(line.slope)
    if answer.ndim > 1 or (answer.ndim == 1 and len(answer) != count):
        raise ValueError(
            f"a rule for rho answers with one number or one a sample, ({count},); {rule!r} gave {tuple(answer.shape)}"
        )
    answer = answer.expand(count)
    bad = [
        str(n) for n, fine in enumerate((answer.isfinite() & (answer >= 0)).tolist()) if not fine
    ]
    if bad:
        raise NonFiniteError(
            f"{rule!r} gave a radius that is no finite number from 0 up for sample {', '.join(bad)} at step {line.i}; "
            "the embedding stays as it was"
        )
    return answer


def stepped(base: Tensor, rho: float | Tensor, direction: Tensor) -> Tensor:
    """base + rho direction, (B, ...), rho one number or (B,)."""
    if isinstance(rho, Tensor) and rho.ndim:
        rho = rho.to(direction).view(-1, *[1] * (direction.ndim - 1))
    return base + rho * direction


def _positive(what: str, value: object) -> None:
    if not is_finite(value) or value <= 0:
        raise ValueError(f"{what} must be a finite number above 0, got {value!r}")
