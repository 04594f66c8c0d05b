"""Which concept of a prompt is pushed: shares of tokens, added up over the parts of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .tokens import TokenShares


def concept_shares(
    shares: TokenShares, split: Callable[[str], Sequence[str]], *, moved: bool = False
) -> tuple[Tensor, ...]:
    """Each concept's share of the gradient (`analysis.token_shares`), B tensors (K_b,).

    split: gives the parts of a prompt, as `evaluation.prompt_sets.parts` does. moved: take shares
    of the displacement instead. A part is a run of tokens that spell it, and every place where it
    stands counts, as some families read a prompt twice; what is on no part's words is left out.
    Raises ValueError for a part that no tokens spell.
    """
    rows = shares.moved_share if moved else shares.share
    by_sample = []
    for prompt, tokens, row in zip(shares.prompts, shares.tokens, rows, strict=True):
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
