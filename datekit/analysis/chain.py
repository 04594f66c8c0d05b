"""The chain rule opened: grad_{x0bar} h as a picture beside x0bar, and its pull-back to c."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..run import Run
from ..sampler import Sampler
from ..tensors import norm, unit
from ..types import State
from .base import StepResult, look, paused, reward_of, step_fields
from .derivatives import along, inner, lengths, rounding


@dataclass(frozen=True, eq=False, repr=False)
class ChainRule(StepResult):
    """grad_c h = (d x0bar / dc)^T grad_{x0bar} h, factor by factor."""

    x0bar: Tensor  # (B, C, h, w)
    grad_x0bar: Tensor  # (B, C, h, w)
    image: Tensor  # (B, 3, H, W), x0bar decoded
    push: Tensor  # (B, 3, H, W), its change as x0bar moves by 1 % of its length along grad_x0bar
    grad: Tensor  # (B, L, D), the pull-back
    reach: Tensor  # (B, C, h, w), (d x0bar / dc) eps_hat, where the update takes x0bar
    how: str  # how the derivative along eps_hat was taken

    @property
    def map(self) -> Tensor:
        """Root mean square of grad_{x0bar} h over channels, (B, h, w): where the reward pushes."""
        return self.grad_x0bar.double().square().mean(1).sqrt()

    @property
    def closes(self) -> Tensor:
        """grad_{x0bar} h . (d x0bar / dc) eps_hat, (B,): by the chain rule ||grad_c h||."""
        return inner(self.grad_x0bar, self.reach)

    def to_frame(self):
        """One row a sample: the norms of both gradients, and of the latter by the chain rule.

        The cosine is that between what the reward wants of x0bar and what a change of c can reach.
        """
        want, reach = lengths(self.grad_x0bar), lengths(self.reach)
        columns = {
            "||grad_x0bar h||": want,
            "||grad_c h||": lengths(self.grad),
            "by the chain rule": self.closes,
            "cosine(wanted, reached)": self.closes / (want * reach),
        }
        return self.frame_of(columns)


def chain_rule(
    run: Run | State, *, reward: Callable | None = None, sampler: Sampler | None = None
) -> ChainRule:
    """The two factors of grad_c h_t at the paused step.

    The first is grad_{x0bar} h, through decoder and reward; the second its pull-back through the
    network. reward: the method's own by default. Raises ValueError without a reward, NonFiniteError
    as `run.peek` does.
    """
    state, sampler = paused(run, sampler)
    seen = look(sampler, state, reward_of(sampler, reward))
    decode = sampler.backbone.decode

    def x0bar_at(c: Tensor) -> Tensor:
        return sampler.predict(state, c).x0bar

    reach, how = along(x0bar_at, seen.c, seen.direction, rounding(sampler, seen.c))
    one_percent = unit(seen.grad_x0bar) * norm(seen.x0bar).view(-1, 1, 1, 1) * 1e-2
    push, _ = along(decode, seen.x0bar, one_percent, rounding(sampler, seen.x0bar))
    with torch.no_grad():
        image = decode(seen.x0bar)
    return ChainRule(
        **step_fields(state),
        x0bar=seen.x0bar,
        grad_x0bar=seen.grad_x0bar,
        image=image,
        push=push,
        grad=seen.grad,
        reach=reach,
        how=how,
    )
