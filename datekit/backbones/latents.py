"""What the families share about latents: an autoencoder's statistics, and a schedule's shift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def statistics_of(vae: Any, latents: Tensor) -> tuple:
    """Mean and deviation of latents, numbers or (1, C, 1, 1), and the factor that scales them."""
    config, known = vae.config, ("latents_mean", "latents_std")
    scale = config.get("scaling_factor", 1.0)
    if any(config.get(name) is None for name in known):
        return config.get("shift_factor") or 0.0, 1.0, scale
    rows = [torch.tensor(config[name]).to(latents) for name in known]
    return *[row.view(1, -1, 1, 1) for row in rows], scale


def linear_shift(config: Mapping[str, Any], tokens: int, max_shift: float) -> float:
    """The shift mu of a schedule, linear in the number of image tokens."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    return base + (top - base) * (tokens - low) / (high - low)
