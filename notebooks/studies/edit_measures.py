"""Measures of an edit: what it changed, what it kept, and how far it is from an ideal.

Images are (B, 3, H, W) in [0, 1]; each is compared with its own other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datekit.lazy import needs
from datekit.shapes.oracle import judge


def pixel_distance(images: Tensor, others: Tensor, where: Tensor | None = None) -> Tensor:
    """Root of the mean squared difference of pixels, (B,).

    where: (B, H, W) bool, the pixels that count, all by default. Raises ValueError for images of
    different shapes, and for an image in which no pixel counts.
    """
    _check(images, others)
    squared = (images - others).double().square().mean(1).flatten(1)
    weight = torch.ones_like(squared) if where is None else where.flatten(1).to(squared)
    if (weight.sum(1) == 0).any():
        raise ValueError("an image has no pixel that counts")
    return ((squared * weight).sum(1) / weight.sum(1)).sqrt()


def background_distance(images: Tensor, sources: Tensor, changed: Tensor) -> Tensor:
    """How far the pixels outside `changed` (B, H, W) bool have moved, (B,); 0 is perfect."""
    return pixel_distance(images, sources, ~changed)


@torch.no_grad()
def feature_distance(images: Tensor, others: Tensor, reward) -> Tensor:
    """1 - the cosine of the image features of a CLIP reward, (B,)."""
    _check(images, others)
    if not hasattr(reward, "image_features"):
        name = getattr(reward, "name", reward)
        raise TypeError(f"{name!r} has no image features; take a CLIP reward")
    a = reward.image_features(images.to(reward.device))
    b = reward.image_features(others.to(reward.device))
    return (1 - (a * b).sum(1)).clamp_min(0).to(images.device)


@torch.no_grad()
def lpips(images: Tensor, others: Tensor, net: str = "alex") -> Tensor:
    """LPIPS (Zhang et al., arXiv 1801.03924) by torchmetrics, (B,).

    It is the sum over layers of the mean over places of w (a - b)^2, with a and b the images'
    features of unit length. images, others: of 32 pixels a side at least; values outside [0, 1] are
    clipped. net: "alex", "vgg" or "squeeze"; torchvision downloads the network at the first call,
    or finds it in `checkpoints` of the folder `torch.hub.get_dir()`. Raises ImportError, naming the
    command that installs it, where torchmetrics is missing.
    """
    _check(images, others)
    needs("torchmetrics", "lpips", "LPIPS")
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    a, b = images.float().clamp(0, 1), others.float().clamp(0, 1)
    distance = learned_perceptual_image_patch_similarity(
        a, b, net_type=net, reduction="none", normalize=True
    )
    return distance.reshape(-1)


def statements(images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """How much of its prompt each image of the shapes world shows, by the oracle.

    Gives the share of the prompt's statements that hold, and whether all do, both (B,) in float64.
    """
    shares, right = [], []
    for verdict in judge(images, prompts):
        truths = [truth for _, truth in verdict.statements]
        shares.append(sum(truths) / len(truths))
        right.append(float(verdict.right))
    return torch.tensor(shares, dtype=torch.float64), torch.tensor(right, dtype=torch.float64)


def _check(images: Tensor, others: Tensor) -> None:
    if images.shape != others.shape or images.ndim != 4:
        raise ValueError(
            "images are compared in pairs of one shape (B, 3, H, W), "
            f"got {tuple(images.shape)} and {tuple(others.shape)}"
        )
    if not (images.isfinite().all() and others.isfinite().all()):
        raise ValueError("an image holds NaN or infinity")
