"""Which concept of a prompt is being pushed: shares of tokens, added up over the parts of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .tokens import TokenShares


def concept_shares(
    shares: TokenShares, split: Callable[[str], Sequence[str]], *, moved: bool = False
) -> tuple[Tensor, ...]:
    """Each concept's share of the gradient (`analysis.token_shares`), B tensors (K_b,); what is on no concept's words is left out.

    split: from a prompt to its parts, such as `evaluation.prompt_sets.parts`; moved: shares of the displacement instead. A part
    is found as a run of tokens that spell it, each place where it stands counts (some families read a prompt twice). Raises ValueError
    for a part that no tokens spell.
    """
    values = shares.moved_share if moved else shares.share
    found = []
    for prompt, tokens, row in zip(shares.prompts, shares.tokens, values, strict=True):
        found.append(
            torch.stack([row[_places(tokens, part, prompt)].sum() for part in split(prompt)])
        )
    return tuple(found)


def _places(tokens: Sequence[str], part: str, prompt: str) -> list[int]:
    """The positions of all runs of tokens that spell a part, letters only compared."""
    wanted, found = "".join(part.lower().split()), []
    for start in range(len(tokens)):
        spelt, end = "", start
        while end < len(tokens) and len(spelt) < len(wanted) and not tokens[end].startswith("<"):
            spelt, end = spelt + tokens[end].lower(), end + 1
        if spelt == wanted:
            found += range(start, end)
    if not found:
        raise ValueError(
            f"no tokens of {prompt!r} spell its part {part!r}; was the prompt cut, or does split change its words?"
        )
    return found
