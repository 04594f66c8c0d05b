"""Sums, norms, units and pictures of batches of tensors, with one number a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import check_finite

NO_PICTURE = (
    "a decoder in half precision may overflow, which backbone.vae.float() mends, and a latent may "
    "where guidance or rho is too large: NaN or infinity in the picture"
)


def add_along(base: Tensor, rho: float | Tensor, direction: Tensor) -> Tensor:
    """base + rho direction, the sum of Eq. 14, (B, ...), with one rho or one a sample, (B,)."""
    if isinstance(rho, Tensor) and rho.ndim:
        rho = per_sample(rho.to(direction), direction)
    return base + rho * direction


def norm(x: Tensor) -> Tensor:
    """Norm per sample over all other axes, (B, ...) -> (B,), without over- or underflow."""
    scaled, largest = _rescale(x)
    return largest * scaled.flatten(1).norm(dim=1)


def distance(a, b) -> Tensor:
    """||a - b|| per sample of two `Conditioning`s over all that a method moves, (B,)."""
    apart = norm(a.sequence.detach() - b.sequence)
    return apart if a.pooled is None else torch.hypot(apart, norm(a.pooled.detach() - b.pooled))


def unit(x: Tensor) -> Tensor:
    """x / ||x|| per sample over all other axes, zero where x is zero; (B, ...) -> (B, ...)."""
    scaled, largest = _rescale(x)
    length = scaled.flatten(1).norm(dim=1) + (largest == 0)
    return scaled / per_sample(length, x)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) in a shape that multiplies (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _rescale(x: Tensor) -> tuple[Tensor, Tensor]:
    """x with the largest entry of each sample made 1, so that squares keep within the numbers."""
    largest = x.flatten(1).abs().amax(1)
    return x / per_sample(largest + (largest == 0), x), largest


def power_of_two(x: Tensor) -> Tensor:
    """The exponent that brings the norm of each sample near 1, (B, 1, ...): scaling by it is exact.

    With it half precision does not lose small gradients.
    """
    return per_sample(torch.frexp(norm(x))[1].clamp(-100, 100), x)


def to_pil(images: Tensor, first: int = 0) -> list:
    """Images (B, 3, H, W) in [0, 1], clamped, as a list of PIL images.

    Raises NonFiniteError for NaN, with the number of the sample, counted from `first`.
    """
    from PIL import Image

    check_finite(images, NO_PICTURE, first=first)
    pixels = images.detach().float().clamp(0, 1).mul(255).round().byte()
    rows = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row) for row in rows]
