"""What a reward is given, checked, with messages that say what to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import RewardError, check_finite, has_numbers

# An x0bar overshoots [0, 1] on both sides. A picture that is hardly ever negative and goes beyond
# this value holds numbers from 0 to 255.
BYTES = 8.0


def check_shape(name: str, h: object, count: int, where: str = "") -> Tensor:
    """The values h of the reward `name`. Raises RewardError unless they are a tensor (count,)."""
    shape = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
    if shape != (count,):
        raise RewardError(
            f"{name} must return one score a sample, shape ({count},); it returned {shape}{where}"
        )
    return h


def check_inputs(images: Tensor, prompts: Sequence[str], where: str = "", first: int = 0) -> None:
    """Raise unless images are finite floats (B, 3, H, W), not of 0 to 255, with B prompts.

    Values somewhat outside of [0, 1] pass, since x0bar has them. Raises RewardError for the form
    and NonFiniteError for NaN or infinity; both name the sample, counted from `first`, and end in
    `where`.
    """
    shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
    if not isinstance(images, Tensor) or len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise RewardError(f"images must be a tensor of shape (B, 3, H, W), got {shape}{where}")
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise RewardError(f"prompts must be a list of strings, got {prompts!r}{where}")
    count = len(images)
    if count != len(prompts):
        raise RewardError(f"{count} images need {count} prompts, got {len(prompts)}{where}")
    if not images.is_floating_point():
        raise RewardError(f"images must be floats in [0, 1], got {images.dtype}{where}")
    check_finite(images, "the images hold NaN or infinity", where, first)
    if not has_numbers(images):
        return
    low, high = torch.aminmax(images.detach().flatten(1), dim=1)
    bytes_like = (high > BYTES) & (low > -high / 10)
    if bytes_like.any():
        row = int(bytes_like.nonzero()[0])
        raise RewardError(
            f"images must lie in [0, 1], but sample {first + row} reaches {high[row].item():g}"
            f"{where}; divide it by 255"
        )
