"""The gradient opened: its two factors by the chain rule, and which words it pushes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..run import Run
from ..tensors import norm, per_sample, unit
from .base import StepResult, along, inner, lengths, reward_of


@dataclass(frozen=True, eq=False, repr=False)
class ChainRule(StepResult):
    """grad_c h = (d x0bar / dc)^T grad_{x0bar} h, factor by factor."""

    how: str  # how the derivative along eps_hat was taken
    grad_x0bar: Tensor  # (B, C, h, w)
    image: Tensor  # (B, 3, H, W), x0bar decoded
    push: Tensor  # (B, 3, H, W), its change as x0bar moves by 1 % of its length along grad_x0bar
    grad: Tensor  # (B, L, D), the pull-back
    reach: Tensor  # (B, C, h, w), (d x0bar / dc) eps_hat, where the update takes x0bar

    @property
    def map(self) -> Tensor:
        """Root mean square of grad_{x0bar} h over channels, (B, h, w): where the reward pushes."""
        return self.grad_x0bar.cpu().double().square().mean(1).sqrt()

    @property
    def closes(self) -> Tensor:
        """grad_{x0bar} h . (d x0bar / dc) eps_hat, (B,): by the chain rule ||grad_c h||."""
        return inner(self.grad_x0bar, self.reach)

    def rows(self) -> list[dict]:
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
        return self.rows_of(columns)


def chain_rule(run: Run, *, reward: Callable | None = None) -> ChainRule:
    """The two factors of grad_c h_t at the paused step.

    The first is grad_{x0bar} h, through decoder and reward; the second its pull-back through the
    network.
    """
    seen, decode = run.peek(reward_of(run, reward)), run.sampler.backbone.decode

    def x0bar_at(c: Tensor) -> Tensor:
        return run.sampler.predict(run.state, c).x0bar

    reach, how = along(run, x0bar_at, seen.c, seen.direction)
    one_percent = unit(seen.grad_x0bar) * per_sample(norm(seen.x0bar), seen.x0bar) * 1e-2
    push, _ = along(run, decode, seen.x0bar, one_percent)
    with torch.no_grad():
        image = decode(seen.x0bar)
    factors = {"grad_x0bar": seen.grad_x0bar, "grad": seen.grad, "reach": reach}
    return ChainRule.of(seen, how=how, image=image, push=push, **factors)


@dataclass(frozen=True, eq=False, repr=False)
class TokenShares(StepResult):
    """Which words the gradient has its length from."""

    tokens: tuple[tuple[str, ...], ...]  # L words a sample
    share: Tensor  # (B, L), of ||grad_c h||^2; a row is 0 where the gradient is

    def rows(self) -> list[dict]:
        """One row a token."""
        rows = []
        for b, words in enumerate(self.tokens):
            sample = {"prompt": self.prompts[b], "seed": self.seeds[b]}
            for word, share in zip(words, self.share[b].tolist(), strict=True):
                rows.append(sample | {"token": word, "share": share})
        return rows


def token_shares(run: Run, *, reward: Callable | None = None) -> TokenShares:
    """Each token's share of ||grad_c h||^2 at the paused step.

    Special tokens and padding are labelled '<start>', '<end>' and '<pad>'.
    """
    seen = run.peek(reward_of(run, reward))
    squares = seen.grad.cpu().double().square().sum(2)
    total = squares.sum(1, keepdim=True)
    numbered = tuple(f"token {n}" for n in range(squares.shape[1]))
    tokens = run.state.cond_org.tokens or (numbered,) * len(squares)
    return TokenShares.of(seen, tokens=tokens, share=squares / (total + (total == 0)))
