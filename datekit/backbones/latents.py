"""What the families share about latents: sides, statistics, lengths, the shift of a schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import is_whole


def cells_of(side: str, pixels: int | None, usual: int, factor: int, patch: int, name: str) -> int:
    """How many cells a side of a picture has, `usual` for None. Raises ValueError for a misfit."""
    pixels = usual * factor if pixels is None else pixels
    step = math.lcm(8, factor * patch)  # 8: diffusers' own pipelines ask for it
    if not is_whole(pixels) or pixels <= 0 or pixels % step:
        wanted = f"a positive multiple of {step} pixels for {name}"
        raise ValueError(f"{side} must be {wanted}, got {pixels!r}")
    return int(pixels) // factor


def statistics_of(vae: Any, latents: Tensor) -> tuple:
    """Mean and deviation of latents, numbers or (1, C, 1, 1), and the factor that scales them."""
    config, known = vae.config, ("latents_mean", "latents_std")
    scale = config.get("scaling_factor", 1.0)
    if any(config.get(name) is None for name in known):
        return config.get("shift_factor") or 0.0, 1.0, scale
    rows = [torch.tensor(config[name]).to(latents) for name in known]
    return *[row.view(1, -1, 1, 1) for row in rows], scale


def as_long_as(x: Tensor, like: Tensor) -> Tensor:
    """x, each of its rows along the last axis as long as that of `like`."""
    return x * (like.norm(dim=-1, keepdim=True) / x.norm(dim=-1, keepdim=True))


def linear_shift(config: Mapping[str, Any], tokens: int, max_shift: float) -> float:
    """The shift mu of a schedule, linear in the number of image tokens."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    return base + (top - base) * (tokens - low) / (high - low)
