"""Noise as a function of (seed, step, purpose), drawn on the CPU.

Nothing here has state, so stepping again, forking, and putting a prompt into another batch change
no number.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def fresh_seeds(count: int) -> tuple[int, ...]:
    """Seeds nobody chose, to be recorded."""
    return tuple(secrets.randbelow(2**31) for _ in range(count))


def initial(seeds: Sequence[int], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The noise of diffusers for `torch.Generator("cpu").manual_seed(seed)`, (B, *shape)."""
    return _draw([Generator("cpu").manual_seed(seed) for seed in seeds], shape, dtype)


def generators(seeds: Sequence[int], step: int, purpose: str = "step") -> list[Generator]:
    """One CPU generator a sample, independent across seeds, steps and purposes."""
    return [Generator("cpu").manual_seed(derived(seed, step, purpose)) for seed in seeds]


def normal(
    seeds: Sequence[int], step: int, shape: Sequence[int], dtype: torch.dtype, purpose: str = "step"
) -> Tensor:
    """Standard normal numbers for one step, (B, *shape), float32 or float64 on the CPU."""
    return _draw(generators(seeds, step, purpose), shape, dtype)


def repeated(seeds: Sequence[int], repetition: int) -> tuple[int, ...]:
    """The seeds of a step that is taken again: the samples' own for repetition 0, then others."""
    if repetition == 0:
        return tuple(seeds)
    return tuple(derived(seed, repetition, "repetition") for seed in seeds)


def derived(seed: int, step: int, purpose: str) -> int:
    """A seed made of a seed, a step and a purpose; different ones are as good as independent."""
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes seeds below 2**63


def _draw(sources: Sequence[Generator], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    shape, put = (1, *shape), {"dtype": dtype, "device": "cpu"}
    return torch.cat([torch.randn(shape, generator=g, **put) for g in sources])
