"""Universal Guidance: the reward of x0bar pushes the prediction, and a step may be repeated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..registry import option
from ..schedules import Schedule, every
from ..types import Conditioning, Prediction
from .base import Method
from .pushes import push, says_something

if TYPE_CHECKING:
    from ..denoiser import Denoiser


@dataclass(frozen=True)
class UniversalGuidance(Method):
    """Universal Guidance (arXiv 2302.07121) with the loss -h: xt is guided, c stays c_org.

    With xt = alpha x0 + sigma eps and x0bar(xt) the guided mean prediction, a step does
        forward     eps'  = eps - scale sigma grad_xt h(x0bar(xt))                        (Eq. 6)
        backward    Delta <- Delta + backward_rate grad h(x0bar + Delta),
                    backward_steps times from 0                                           (Eq. 7)
                    eps'' = eps' - (alpha / sigma) Delta, that is x0bar + Delta at xt     (Eq. 9)
        recurrence  the step is taken `recurrence` times; before each further time its result is
                    noised again to the level of xt, by (seed, step, repetition)         (Eq. 10)

    The same holds for Euler's alpha = 1 and a flow's alpha = 1 - sigma. A step of pure noise, such
    as the first of a flow, is left alone. grad_xt goes through both branches of guidance, as in the
    authors' `sample`. For CLIP on Stable Diffusion the paper has scale 10, no backward steps and
    recurrence 8. `StepInfo.extras` has ug_h (B,), and ug_forward and ug_backward (B, C, H, W), what
    each part adds to eps; with recurrence, all of `StepInfo` is about the last repetition.
    """

    label = "Universal Guidance"
    reward: Any = option(help="The reward h that is to grow.")
    scale: float = option(1.0, range=(0.0, 100.0), help="The strength of the forward guidance.")
    backward_steps: int = option(
        0, label="backward steps", range=(0, 10), help="How many gradient steps x0bar takes."
    )
    backward_rate: float = option(
        1.0, label="backward rate", range=(0.0, 100.0), help="The step size of these steps."
    )
    recurrence: int = option(1, range=(1, 8), help="How often a guided step is taken.")
    when: Schedule = option(every(), help="Which steps are guided.")

    def repeats(self, denoiser: Denoiser) -> int:
        return self.recurrence if self._guides(denoiser) else 1

    def _guides(self, denoiser: Denoiser) -> bool:
        """Whether this step is one of those to guide, and not of pure noise."""
        return says_something(denoiser) and self.when(denoiser.state.i, denoiser.num_steps)

    def predict(self, denoiser: Denoiser, cond: Conditioning) -> Prediction:
        """The prediction, pushed towards the reward at guided steps; the push is detached."""
        prediction = denoiser.predict(cond)
        if not self._guides(denoiser) or not (self.scale or self.backward_steps):
            return prediction
        seen = denoiser.record(cond, prediction.x0bar)
        parts = []
        for rows, part in denoiser.parts():
            parts.append(self._gradients(part, cond[rows], seen.x0bar[rows]))
        h, grad_x0bar, grad_xt, delta = (torch.cat(each) for each in zip(*parts, strict=True))
        alpha, sigma = denoiser.solver.level(denoiser.state.i)
        forward, backward = -self.scale * sigma * grad_xt, -alpha / sigma * delta
        denoiser.extras |= {"ug_h": h, "ug_forward": forward, "ug_backward": backward}
        gradient = seen.replace(h=h, grad_x0bar=grad_x0bar)
        return push(denoiser, prediction, forward, backward).replace(gradient=gradient)

    def _gradients(self, denoiser: Denoiser, cond: Conditioning, x0bar: Tensor) -> tuple:
        """(h, grad_x0bar h, grad_xt h, Delta) of some of the samples."""
        h, grad_x0bar = denoiser.reward_gradient(self.reward, x0bar)
        delta, grad_xt, uphill = torch.zeros_like(x0bar), torch.zeros_like(x0bar), grad_x0bar
        if self.scale:
            grad_xt = denoiser.vjp_xt(cond, grad_x0bar)
        for step in range(self.backward_steps):
            if step:
                uphill = denoiser.reward_gradient(self.reward, x0bar + delta)[1]
            delta = delta + self.backward_rate * uphill
        return h, grad_x0bar, grad_xt, delta
