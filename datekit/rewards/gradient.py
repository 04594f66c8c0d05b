"""The first half of the chain rule: latents are decoded and scored, and h differentiated in them.

Both functions take latents (B, C, H, W), `memory.decode_batch` at a time; where and first are the
place and the number of the first sample, for error messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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
    """h of decoded latents, (B,), without gradient."""
    decode, values = decoder_of(reward, backbone), []
    for rows in _slices(len(latents), memory):
        images = decode(latents[rows])
        values.append(score(reward, images, prompts[rows], where, first + rows.start))
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
    """h (B,), its gradient in the latents, and the terms of a combined reward; detached.

    Raises NonFiniteError for a reward or gradient that is not finite, RewardError for a reward of
    another shape than (B,) or without gradient.
    """
    decode = decoder_of(reward, backbone)
    values, grads, parts = [], [], []
    for rows in _slices(len(latents), memory):
        leaf, terms = latents[rows].detach().requires_grad_(), {}
        with torch.enable_grad(), backbone.checkpointing(memory.checkpointing):
            h = score(reward, decode(leaf), prompts[rows], where, first + rows.start, terms)
            grads.append(_gradient(h, leaf))
        check_finite(
            grads[-1], "the reward's gradient in x0bar is not finite", where, first + rows.start
        )
        values.append(h.detach())
        parts.append({name: term.detach() for name, term in terms.items()})
    terms = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(values), torch.cat(grads), terms


def _slices(count: int, memory: MemorySettings) -> Iterator[slice]:
    size = min(n for n in (memory.decode_batch, memory.micro_batch, count) if n is not None)
    return (slice(start, start + size) for start in range(0, count, size))


def _gradient(h: Tensor, leaf: Tensor) -> Tensor:
    grad = None
    if h.requires_grad:
        (grad,) = torch.autograd.grad(h.sum(), leaf, allow_unused=True)
    if grad is None:
        raise RewardError("the reward is not differentiable: it carries no gradient to the images")
    return grad
