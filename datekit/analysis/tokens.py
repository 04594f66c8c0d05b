"""Which word, and which concept, is pushed: the gradient and the update of c, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..run import Run
from ..sampler import Sampler
from ..types import State
from .base import StepResult, look, paused, reward_of, step_fields


@dataclass(frozen=True, eq=False, repr=False)
class TokenShares(StepResult):
    """Squared lengths by token."""

    tokens: tuple[tuple[str, ...], ...]  # L words a sample
    grad: Tensor  # (B, L), ||grad_c h||^2
    moved: Tensor  # (B, L), ||c_hat - c_org||^2, with c_hat what the step feeds the network

    @property
    def share(self) -> Tensor:
        """Each token's share of the gradient, (B, L); a row is 0 where the gradient is."""
        return _shares(self.grad)

    @property
    def moved_share(self) -> Tensor:
        """Each token's share of the displacement, (B, L); a row is 0 where nothing moved."""
        return _shares(self.moved)

    def to_frame(self):
        """One row a token."""
        import pandas as pd

        columns = {
            "||grad||^2": self.grad,
            "share": self.share,
            "||c_hat - c_org||^2": self.moved,
            "share moved": self.moved_share,
        }
        rows = []
        for b, (prompt, seed) in enumerate(zip(self.prompts, self.seeds, strict=True)):
            for n, word in enumerate(self.tokens[b]):
                numbers = {name: values[b, n].item() for name, values in columns.items()}
                rows.append({"prompt": prompt, "seed": seed, "token": word} | numbers)
        return pd.DataFrame(rows)


def token_shares(
    run: Run | State, *, reward: Callable | None = None, sampler: Sampler | None = None
) -> TokenShares:
    """||grad_c h||^2 and ||c_hat - c_org||^2 by token at the paused step, labelled with its words.

    reward: the method's own by default. Special tokens and padding are labelled '<start>', '<end>'
    and '<pad>'. A method that does not update in this step shows what it holds. Raises ValueError
    without a reward, NonFiniteError as `run.peek` does.
    """
    state, sampler = paused(run, sampler)
    gradient = look(sampler, state, reward_of(sampler, reward))
    with sampler.paused(state) as denoiser:
        c_hat = sampler.method.condition(denoiser, state).cond.sequence
    numbered = tuple(f"token {n}" for n in range(state.c.shape[1]))
    return TokenShares(
        **step_fields(state),
        tokens=state.cond_org.tokens or (numbered,) * len(state.prompts),
        grad=_squares(gradient.grad),
        moved=_squares(c_hat - state.c_org),
    )


def concept_shares(
    shares: TokenShares, split: Callable[[str], Sequence[str]]
) -> tuple[Tensor, ...]:
    """Each concept's share of the gradient (`analysis.token_shares`), B tensors (K_b,).

    split: gives the parts of a prompt, as `evaluation.prompt_sets.parts` does. A part is a run of
    tokens that spell it, and every place where it stands counts, as some families read a prompt
    twice; what is on no part's words is left out. Raises ValueError for a part that no tokens
    spell.
    """
    by_sample = []
    for prompt, tokens, row in zip(shares.prompts, shares.tokens, shares.share, strict=True):
        parts = [row[_places(tokens, part, prompt)].sum() for part in split(prompt)]
        by_sample.append(torch.stack(parts))
    return tuple(by_sample)


def _places(tokens: Sequence[str], part: str, prompt: str) -> list[int]:
    """The positions of all runs of tokens that spell a part, whatever its case and spaces."""
    wanted, places = "".join(part.lower().split()), []
    for start in range(len(tokens)):
        spelt, end = "", start
        while end < len(tokens) and len(spelt) < len(wanted) and not tokens[end].startswith("<"):
            spelt += tokens[end].lower()
            end += 1
        if spelt == wanted:
            places += range(start, end)
    if not places:
        raise ValueError(
            f"no tokens of {prompt!r} spell its part {part!r}; "
            "was the prompt cut, or does split change its words?"
        )
    return places


def _squares(x: Tensor) -> Tensor:
    return x.detach().double().square().sum(2).cpu()


def _shares(squares: Tensor) -> Tensor:
    total = squares.sum(1, keepdim=True)
    return squares / (total + (total == 0))
