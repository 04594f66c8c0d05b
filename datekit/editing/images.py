"""Pictures and masks as tensors of a model's size."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ..backbones import Backbone

ROUNDING = 1e-3  # how far outside [0, 1] a float may lie to be taken for one that was rounded


def as_images(
    image: Any, backbone: Backbone, *, height: int | None = None, width: int | None = None
) -> Tensor:
    """A picture, or a list of them, as (B, 3, H, W) float32 in [0, 1] of the backbone's size.

    image: a path, a PIL image, a tensor (3, H, W) or (B, 3, H, W) of 8 bits or of floats in [0, 1],
    or a list of these; height, width: in pixels, the model's own by default. A picture of another
    size is scaled until it covers this one, and cut to it around the middle. A photograph is turned
    as its EXIF tag says, and transparency is laid on white.
    """
    size = backbone.image_size(height, width)
    items = image if isinstance(image, (list, tuple)) else [image]
    return torch.cat([_cover(_pixels(item), size) for item in items])


def as_keep(keep, backbone, latents: Tensor) -> Tensor:
    """A mask of what stays as it is, at the latents' cells: (B, 1, h, w) bool.

    It is True where all of a cell's pixels are kept, so that a region thinner than a cell can still
    change. keep: a path or a PIL image, white where it keeps, or a tensor (H, W) or (B, H, W) of
    bool or of floats in [0, 1]; a pixel is kept from one half up.
    """
    factor = backbone.image_size()[0] // backbone.latent_shape()[1]
    size = [side * factor for side in latents.shape[-2:]]
    masks = _cover(_mask(keep), size)
    if len(masks) not in (1, len(latents)):
        raise ValueError(f"{len(latents)} pictures take one mask or as many, got {len(masks)}")
    cells = F.adaptive_max_pool2d((masks < 0.5).float(), latents.shape[-2:]) == 0
    if cells.flatten(1).all(1).any():
        raise ValueError("the mask keeps the whole picture; black is what may change")
    if ((masks.flatten(1) > 0).any(1) & ~cells.flatten(1).any(1)).any():
        cell = f"a cell of {factor} x {factor}"
        warnings.warn(f"the mask keeps nothing: all of {cell} has to be white", stacklevel=3)
    return cells.expand(len(latents), -1, -1, -1).to(latents.device)


def _pixels(item) -> Tensor:
    """One item as (B, 3, H, W) float32 in [0, 1]."""
    item = _open(item)
    if isinstance(item, Image.Image):
        values = torch.from_numpy(np.array(item.convert("RGBA"))).permute(2, 0, 1) / 255
        colour, alpha = values[:3], values[3:]
        return (alpha * colour + (1 - alpha))[None]
    values = item[None] if item.ndim == 3 else item
    if values.ndim != 4 or values.shape[1] != 3:
        raise ValueError(f"an image has shape (3, H, W) or (B, 3, H, W), got {tuple(item.shape)}")
    return _unit_range(values / 255 if values.dtype == torch.uint8 else values)


def _mask(item) -> Tensor:
    """One item as (B, 1, H, W) float32 in [0, 1], 1 where it keeps."""
    item = _open(item)
    if isinstance(item, Image.Image):
        return torch.from_numpy(np.array(item.convert("L")))[None, None] / 255
    values = item[None] if item.ndim == 2 else item
    if values.ndim != 3:
        raise ValueError(f"a mask has shape (H, W) or (B, H, W), got {tuple(item.shape)}")
    return _unit_range(values.float() if values.dtype == torch.bool else values)[:, None]


def _open(item) -> Image.Image | Tensor:
    """The PIL image of a path, turned as its EXIF tag says, or the tensor on the CPU."""
    if isinstance(item, Tensor):
        return item.detach().cpu()
    item = Image.open(item) if isinstance(item, (str, Path)) else item
    if not isinstance(item, Image.Image):
        raise TypeError(f"give a path, a PIL image or a tensor, got {type(item).__name__}")
    if item.mode[0] in "IF":
        raise ValueError(f"a picture of mode {item.mode} has no known range; save it with 8 bits")
    return ImageOps.exif_transpose(item)


def _unit_range(values: Tensor) -> Tensor:
    low, high = values.min().item(), values.max().item()
    if not values.is_floating_point() or not -ROUNDING <= low <= high <= 1 + ROUNDING:
        wanted = "numbers of an image are uint8 or lie in [0, 1], of a mask bool or lie in [0, 1]"
        raise ValueError(f"{wanted}; got {values.dtype} from {low:.4g} to {high:.4g}")
    return values.float().clamp(0, 1)


def _cover(values: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) scaled to cover a size, and cut to it; smooth, and never outside [0, 1]."""
    shape = values.shape[-2:]
    if tuple(shape) == tuple(size):
        return values
    scale = max(size[0] / shape[0], size[1] / shape[1])
    h, w = max(size[0], round(shape[0] * scale)), max(size[1], round(shape[1] * scale))
    resized = F.interpolate(values, (h, w), mode="bicubic", antialias=True, align_corners=False)
    top, left = (h - size[0]) // 2, (w - size[1]) // 2
    return resized.clamp(0, 1)[..., top : top + size[0], left : left + size[1]]
