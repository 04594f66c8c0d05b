"""The first half of the chain rule:

latents are decoded and scored, and h is differentiated in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import RewardError, check_finite
from ..memory import MemorySettings
from .base import decoder_of, score


@torch.no_grad()
def value(
    reward: Callable,
    backbone,
    latents: Tensor,
    prompts: Sequence[str],
    memory: MemorySettings,
    where: str = "",
    first: int = 0,
) -> Tensor:
    """h of decoded latents (B, C, H, W), `memory.decode_batch` at a time; (B,), without gradient.

    where, first: the place and the number of the first sample, for error messages.
    """
    decode, values = decoder_of(reward, backbone), []
    size = memory.decode_batch or len(latents)
    for start in range(0, len(latents), size):
        rows = slice(start, start + size)
        values.append(score(reward, decode(latents[rows]), prompts[rows], where, first + start))
    return torch.cat(values)


def value_and_grad(
    reward: Callable,
    backbone,
    latents: Tensor,
    prompts: Sequence[str],
    memory: MemorySettings,
    where: str = "",
    first: int = 0,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """h (B,), its gradient in the latents (B, C, H, W), and the terms of a combined reward;
    detached.

    Raises NonFiniteError for a reward or gradient that is not finite, RewardError for a reward of
    another shape than (B,) or without gradient.
    """
    size, parts = memory.decode_batch or len(latents), []
    for start in range(0, len(latents), size):
        rows = slice(start, start + size)
        with torch.enable_grad(), backbone.checkpointing(memory.checkpointing):
            parts.append(
                _slice(reward, backbone, latents[rows], prompts[rows], where, first + start)
            )
    terms = {name: torch.cat([part[2][name] for part in parts]) for name in parts[0][2]}
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), terms


def _slice(reward, backbone, latents: Tensor, prompts, where: str, first: int):
    terms: dict[str, Tensor] = {}
    leaf = latents.detach().requires_grad_()
    h = score(reward, decoder_of(reward, backbone)(leaf), prompts, where, first, terms)
    grad = None
    if h.requires_grad:
        (grad,) = torch.autograd.grad(h.sum(), leaf, allow_unused=True)
    if grad is None:
        raise RewardError(
            "the reward carries no gradient to the images; write it with differentiable torch "
            "operations"
        )
    check_finite(grad, "the reward's gradient in x0bar is not finite", where, first)
    return h.detach(), grad, {name: term.detach() for name, term in terms.items()}
