"""Which word is being pushed: the gradient and the update of c, token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..run import Run
from ..sampler import Sampler
from ..types import State
from .base import Result, paused, reward_of


@dataclass(frozen=True, eq=False, repr=False)
class TokenShares(Result):
    """Squared lengths by token.

    i, t: the step; prompts, seeds: one a sample; tokens: B tuples of L words; grad: (B, L), ||grad_c h||^2 by token; moved: (B, L),
    ||c_hat - c_org||^2 by token, c_hat what the method feeds the network in this step.
    """

    i: int
    t: float
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    tokens: tuple[tuple[str, ...], ...]
    grad: Tensor
    moved: Tensor

    @property
    def share(self) -> Tensor:
        """Each token's share of the gradient, (B, L); rows sum to 1, or are 0 where the gradient is."""
        return _shares(self.grad)

    @property
    def moved_share(self) -> Tensor:
        """Each token's share of the displacement, (B, L); rows sum to 1, or are 0 where nothing moved."""
        return _shares(self.moved)

    @property
    def title(self) -> str:
        """Where."""
        return f"step {self.i}, t = {self.t:g}"

    def to_frame(self):
        """One row a token."""
        import pandas as pd

        columns = {
            "||grad||^2": self.grad,
            "share": self.share,
            "||c_hat - c_org||^2": self.moved,
            "share moved": self.moved_share,
        }
        rows = [
            {"prompt": prompt, "seed": seed, "token": word}
            | {name: values[b, n].item() for name, values in columns.items()}
            for b, (prompt, seed) in enumerate(zip(self.prompts, self.seeds, strict=True))
            for n, word in enumerate(self.tokens[b])
        ]
        return pd.DataFrame(rows)


def token_shares(
    run: Run | State, *, reward: Callable | None = None, sampler: Sampler | None = None
) -> TokenShares:
    """||grad_c h||^2 and ||c_hat - c_org||^2 by token at the paused step, labelled with the prompt's words.

    reward: the method's own by default. Special tokens and padding are labelled as such ('<start>', '<end>', '<pad>'). A method that does not
    update in this step shows what it holds. Raises ValueError without a reward, NonFiniteError as `run.peek`.
    """
    state, sampler = paused(run, sampler)
    denoiser = sampler.denoiser(state)
    look = sampler.look(state, reward_of(sampler, reward))
    with sampler.method.patch(denoiser):
        c_hat = sampler.method.condition(denoiser, state).cond.sequence
    squares = lambda x: (x.detach().double() ** 2).sum(2).cpu()
    words = state.cond_org.tokens or tuple(
        tuple(f"token {n}" for n in range(state.c.shape[1])) for _ in state.prompts
    )
    return TokenShares(
        i=state.i,
        t=state.t,
        prompts=state.prompts,
        seeds=state.seeds,
        tokens=words,
        grad=squares(look.grad),
        moved=squares(c_hat - state.c_org),
    )


def _shares(squares: Tensor) -> Tensor:
    total = squares.sum(1, keepdim=True)
    return squares / (total + (total == 0))
