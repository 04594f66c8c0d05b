"""Universal Guidance: the reward of x0bar pushes the prediction itself, and a step can be taken again from fresh noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..rewards.base import check_finite
from ..schedules import Schedule, as_schedule, every
from ..types import Conditioning, RewardGradient, Prediction, Record
from .base import Method, finite, whole

PURE_NOISE = (
    1e-3  # alpha / sigma below which xt says nothing of x0, so that there is nothing to guide
)


@dataclass(frozen=True, eq=False)
class Push(Record):
    """What Universal Guidance does to a step: look: x0bar, its reward and grad_{x0bar} h; forward, backward: (B, C, H, W), what each
    part adds to eps."""

    look: RewardGradient
    forward: Tensor
    backward: Tensor


@dataclass(frozen=True)
class UniversalGuidance(Method):
    """Universal Guidance (arXiv 2302.07121) with the loss -h: xt is guided, the embedding stays c_org.

    With xt = alpha x0 + sigma eps and x0bar(xt) the guided mean prediction, a step does
        forward      eps'  = eps - scale sigma grad_xt h(x0bar(xt))                                              (their Eq. 6)
        backward     Delta <- Delta + backward_rate grad h(x0bar + Delta), backward_steps times from 0           (Eq. 7)
                     eps'' = eps' - (alpha / sigma) Delta, which is x0bar + Delta at the same xt                 (Eq. 9)
        recurrence   the step is taken `recurrence` times, its result brought back to xt's noise level by
                     (alpha_i / alpha_{i+1}) x_{i+1} + noise, drawn from (seed, step, repetition)                (Eq. 10)

    The paper has alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar). Other levels follow from rescaling: for r xt in place of xt,
    sigma becomes r sigma and grad_xt becomes grad_xt / r, so that sigma grad_xt h, and with it eps', stays the same, for Euler's
    alpha = 1 and for a flow's alpha = 1 - sigma too. Other predictions follow from x0 = (xt - sigma eps) / alpha: a change d of
    eps is one of -(sigma / alpha) d in x0bar, hence of d / alpha in v = alpha eps - sigma x0, as alpha^2 + sigma^2 = 1, and of
    d / alpha in a flow's v = eps - x0 as well, as alpha + sigma = 1. Where alpha = 0, at the start of a flow, xt is pure noise and
    tells nothing of x0: such a step is left alone.

    reward: h, (images (B, 3, H, W), prompts) -> (B,); scale: 0 for no forward guidance; backward_steps: 0 for none;
    backward_rate: length of such a step per unit of gradient; recurrence: 1 for none; when: which steps are guided and
    repeated. For CLIP on Stable Diffusion the paper has scale 10, no backward steps, recurrence 8 and no text branch. grad_xt
    goes through both branches of classifier-free guidance, as in the authors' `sample` (their `sample_seperate` takes the
    unconditional one alone); Delta takes plain steps from the unguided x0bar, as in the paper (their ImageNet code takes Adam's,
    from the guided one). `StepInfo.notes` has ug_h (B,), ug_forward and ug_backward (B, C, H, W), what each part added to
    eps; with recurrence, `StepInfo` is about the last repetition, xt included.
    """

    reward: Any
    scale: float = 1.0
    backward_steps: int = 0
    backward_rate: float = 1.0
    recurrence: int = 1
    when: Schedule = field(default_factory=every)

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise TypeError(
                f"reward must be callable as (images, prompts) -> (B,), got {type(self.reward).__name__}"
            )
        object.__setattr__(self, "scale", finite("scale", self.scale))
        object.__setattr__(self, "backward_rate", finite("backward_rate", self.backward_rate))
        object.__setattr__(self, "backward_steps", whole("backward_steps", self.backward_steps, 0))
        object.__setattr__(self, "recurrence", whole("recurrence", self.recurrence, 1))
        object.__setattr__(self, "when", as_schedule(self.when))

    def check(self, sampler) -> None:
        """Raise ValueError if the schedule does not fit the run."""
        self.when.indices(sampler.num_steps)

    def repeats(self, denoiser) -> int:
        """`recurrence` at the steps that are guided, else 1."""
        return self.recurrence if self._acts(denoiser) else 1

    def predict(self, denoiser, cond: Conditioning) -> Prediction:
        """The prediction pushed towards the reward, at the steps that are guided. Raises NonFiniteError (step and sample named) for a
        reward, gradient or guided prediction that is not finite or too large to go on with, RewardError for a reward without gradient."""
        prediction = denoiser.recall(cond)
        if not self._acts(denoiser) or not (self.scale or self.backward_steps):
            return prediction
        push, state, solver = self.push(denoiser, cond), denoiser.state, denoiser.solver
        eps = prediction.eps + push.forward + push.backward
        xt = state.xt.to(eps.dtype)
        out = solver.out(eps, xt, state.i)
        x0bar = solver.x0bar(out, xt, state.i)
        turn = " or ".join(
            name
            for name, used in (("scale", self.scale), ("backward_rate", self.backward_steps))
            if used
        )
        check_finite(
            out.to(prediction.out.dtype),
            f"the guided prediction is not finite (is {turn} too large?)",
            denoiser.where,
        )
        _check_size(denoiser, x0bar, turn)
        notes = {"ug_h": push.look.h, "ug_forward": push.forward, "ug_backward": push.backward}
        return prediction.replace(
            x0bar=x0bar,
            out=out.to(prediction.out.dtype),
            eps=eps,
            look=push.look,
            notes=prediction.notes | notes,
        )

    def push(self, denoiser, cond: Conditioning) -> Push:
        """Both parts at an embedding, whatever the schedule says; as many samples at a time as `denoiser.limits` say, all detached."""
        state = denoiser.state
        with torch.no_grad():
            x0bar = denoiser.recall(cond).x0bar.detach()
        parts = denoiser.within_memory(
            self.reward,
            False,
            lambda: [
                self._part(part, cond[rows], x0bar[rows], rows.start)
                for rows, part in denoiser.parts()
            ],
            "predict",
        )
        h, grad_x0bar, grad_xt, delta = (torch.cat(rows) for rows in zip(*parts, strict=True))
        alpha, sigma = denoiser.solver.level(state.i)
        look = RewardGradient(
            i=state.i,
            t=state.t,
            prompts=state.prompts,
            seeds=state.seeds,
            c=cond.sequence.detach(),
            x0bar=x0bar,
            h=h,
            grad_x0bar=grad_x0bar,
            decode=denoiser.backbone.decode,
        )
        return Push(look, forward=-self.scale * sigma * grad_xt, backward=-alpha / sigma * delta)

    def _part(
        self, denoiser, cond: Conditioning, x0bar: Tensor, first: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h, grad_x0bar = denoiser.reward_gradient(self.reward, x0bar, first)
        grad_xt = (
            denoiser.pull_back_to_xt(cond, grad_x0bar, first)
            if self.scale
            else torch.zeros_like(x0bar)
        )
        delta, uphill = torch.zeros_like(x0bar), grad_x0bar
        for step in range(self.backward_steps):
            if step:
                uphill = denoiser.reward_gradient(self.reward, x0bar + delta, first)[1]
            delta = delta + self.backward_rate * uphill
            _check_size(denoiser, x0bar + delta, "backward_rate", first)
        return h, grad_x0bar, grad_xt, delta

    def _acts(self, denoiser) -> bool:
        alpha, sigma = denoiser.solver.level(denoiser.state.i)
        return alpha > PURE_NOISE * sigma and self.when(denoiser.state.i, denoiser.num_steps)


def _check_size(denoiser, x0bar: Tensor, turn: str, first: int = 0) -> None:
    """Raise NonFiniteError, saying what to turn, for an x0bar that the network's precision cannot square."""
    squares = (
        x0bar.detach().to(denoiser.backbone.dtype).square()
    )  # beyond that, network and decoder overflow sooner or later
    check_finite(
        squares,
        f"the guided x0bar is too large for the model's precision (is {turn} too large?)",
        denoiser.where,
        first,
    )
