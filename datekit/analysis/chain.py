"""The chain rule opened: grad_{x0bar} h as a picture beside x0bar, and its pull-back to c."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..run import Run
from ..sampler import Sampler
from ..types import State, norm, unit
from .base import Result, along, lengths, paused, precision, reward_of


@dataclass(frozen=True, eq=False, repr=False)
class ChainRule(Result):
    """grad_c h = (d x0bar / dc)^T grad_{x0bar} h, factor by factor.

    i, t: the step; prompts, seeds: one a sample; x0bar, grad_x0bar: (B, C, h, w); image: (B, 3, H, W), x0bar decoded; push:
    (B, 3, H, W), the first-order change of the picture as x0bar moves by 1 % of its length along grad_x0bar; grad: (B, L, D),
    the pull-back; reach: (B, C, h, w), (d x0bar / dc) eps_hat, where the update takes x0bar; how: the way that was computed.
    """

    i: int
    t: float
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    x0bar: Tensor
    grad_x0bar: Tensor
    image: Tensor
    push: Tensor
    grad: Tensor
    reach: Tensor
    how: str

    @property
    def map(self) -> Tensor:
        """Root mean square of grad_{x0bar} h over channels, (B, h, w): where the reward wants a change."""
        return self.grad_x0bar.double().square().mean(1).sqrt()

    @property
    def closes(self) -> Tensor:
        """grad_{x0bar} h . (d x0bar / dc) eps_hat, which the chain rule says is ||grad_c h||; (B,)."""
        return (self.grad_x0bar.double() * self.reach).flatten(1).sum(1)

    @property
    def title(self) -> str:
        """Where, and how the derivative was taken."""
        return f"step {self.i}, t = {self.t:g}; {self.how}"

    def to_frame(self):
        """One row a sample: both gradients' norms, the two sides of the chain rule, and the cosine of what h wants and what c can do."""
        import pandas as pd

        want, reach, closes = (
            lengths(self.grad_x0bar).cpu(),
            lengths(self.reach).cpu(),
            self.closes.cpu(),
        )
        return pd.DataFrame(
            {
                "prompt": self.prompts,
                "seed": self.seeds,
                "||grad_x0bar h||": want,
                "||grad_c h||": lengths(self.grad).cpu(),
                "by the chain rule": closes,
                "cosine(wanted, reached)": closes / (want * reach),
            }
        )

    def _pictures(self) -> str:
        from ..display import _data_url
        from ..types import to_pil

        size = (
            self.push.abs()
            .amax((1, 2, 3), keepdim=True)
            .clamp_min(torch.finfo(self.push.dtype).tiny)
        )
        urls = [
            _data_url(image)
            for pair in zip(to_pil(self.image), to_pil(0.5 + 0.5 * self.push / size), strict=True)
            for image in pair
        ][:6]
        return (
            "<div>"
            + "".join(
                f'<img src="{url}" alt="{("x0bar", "grad_x0bar h")[n % 2]}" style="width:144px;margin:4px">'
                for n, url in enumerate(urls)
            )
            + "</div>"
        )


def chain_rule(
    run: Run | State,
    *,
    reward: Callable | None = None,
    sampler: Sampler | None = None,
    derivative: str = "auto",
) -> ChainRule:
    """The two factors of grad_c h_t at the paused step: grad_{x0bar} h, through decoder and reward, and its pull-back through the network.

    reward: the method's own by default; derivative: see `analysis.base.along`. Raises ValueError without a reward, NonFiniteError
    as `run.peek`.
    """
    state, sampler = paused(run, sampler)
    look = sampler.look(state, reward_of(sampler, reward))
    decode = sampler.backbone.decode
    reach, how = along(
        lambda c: sampler.predict(state, c).x0bar,
        look.c,
        look.direction,
        derivative,
        precision(sampler),
    )
    with torch.no_grad():
        image = decode(look.x0bar)
    push, _ = along(
        decode,
        look.x0bar,
        unit(look.grad_x0bar) * norm(look.x0bar).view(-1, 1, 1, 1) * 1e-2,
        derivative,
        precision(sampler),
    )
    return ChainRule(
        i=state.i,
        t=state.t,
        prompts=state.prompts,
        seeds=state.seeds,
        x0bar=look.x0bar,
        grad_x0bar=look.grad_x0bar,
        image=image,
        push=push,
        grad=look.grad,
        reach=reach,
        how=how,
    )
