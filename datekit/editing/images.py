"""Pictures and masks of every usual kind as tensors of a model's size."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import unknown

FITS = ("crop", "stretch", "exact")
ROUNDING = 1e-3  # how far outside [0, 1] a float may lie to be taken for one that was rounded
WHITES = (1, 255, 65535)  # of a mask of integers: the first that no value exceeds


def as_images(
    image, backbone, *, height: int | None = None, width: int | None = None, fit: str | None = None
) -> Tensor:
    """Any picture or list of pictures as (B, 3, H, W) float32 in [0, 1] of the backbone's size.

    image: a path, a PIL image, an array (H, W), (H, W, 3) or (B, H, W, 3), a tensor (3, H, W) or
    (B, 3, H, W), or a list of these. Integers have 8 bits, or 16 where the type says so; floats lie
    in [0, 1], and are clipped to it where they are outside by a rounding (1e-3). height, width: in
    pixels, the model's own by default. fit: "crop" scales the shorter side and cuts the longer one
    at both ends, "stretch" scales each side, "exact" refuses another size; the default is "crop"
    with a warning that says what was done. A photograph is turned as its EXIF tag says, grey
    becomes RGB, and transparency is laid on white, with a warning. Raises TypeError or ValueError
    on what is no picture, FileNotFoundError for a path.
    """
    if fit not in (None, *FITS):
        raise unknown("fit", fit, FITS)
    size = backbone.image_size(height, width)
    items = list(image) if isinstance(image, (list, tuple)) else [image]
    if not items:
        raise ValueError("no image: give at least one")
    return torch.cat([_fitted(_pixels(item), size, fit, "image") for item in items])


def as_keep(keep, backbone, latents: Tensor, *, fit: str | None = None) -> Tensor:
    """A mask of what stays as it is, at the latents' cells: (B, 1, h, w) bool.

    It is True where all of a cell's pixels are kept, so that a region thinner than a cell can still
    change. keep: a path, a PIL image, an array or tensor (H, W) or (B, H, W), or a list of these;
    white, 1 and True keep, a pixel from one half up. Integers are 0 and 1, 0 to 255 or 0 to 65535;
    floats lie in [0, 1]. fit: how it is brought to the size of the pictures, as for `as_images`.
    Warns where a mask keeps no whole cell. Raises ValueError for a mask that keeps everything, or
    for the wrong number of masks.
    """
    factor = backbone.image_size()[0] // backbone.latent_shape()[1]
    size = tuple(side * factor for side in latents.shape[-2:])
    items = list(keep) if isinstance(keep, (list, tuple)) else [keep]
    if not items:
        raise ValueError("no mask: give at least one, or keep=None for an edit without")
    masks = torch.cat([_fitted(_mask(item), size, fit, "mask") for item in items])
    if len(masks) not in (1, len(latents)):
        raise ValueError(
            f"{len(latents)} pictures take one mask or {len(latents)}, got {len(masks)}"
        )
    cells = F.adaptive_max_pool2d((masks < 0.5).float(), latents.shape[-2:]) == 0
    if cells.flatten(1).all(1).any():
        raise ValueError(
            "the mask keeps the whole picture, so there is nothing left to edit; white is what "
            "stays, black what may change"
        )
    if ((masks.flatten(1) > 0).any(1) & ~cells.flatten(1).any(1)).any():
        _warn(
            f"the mask keeps nothing: all pixels of a cell of {factor} x {factor} have to be white "
            "(one half at least)"
        )
    return cells.expand(len(latents), -1, -1, -1).to(latents.device)


def _pixels(item) -> Tensor:
    """One item as (B, 3, H, W) float32 in [0, 1]."""
    item = _opened(item)
    if isinstance(item, Image.Image):
        item = _array_of(item)
    if isinstance(item, np.ndarray):
        item = item[..., None] if item.ndim == 2 else item
        if item.ndim not in (3, 4):
            raise ValueError(f"an image array has shape (H, W, 3), got {item.shape}")
        item = torch.from_numpy(np.ascontiguousarray(np.moveaxis(item, -1, -3)))
    if not isinstance(item, Tensor):
        kind = type(item).__name__
        raise TypeError(f"an image is a path, a PIL image, an array or a tensor, got {kind}")
    item = item[None] if item.ndim == 3 else item
    if item.ndim != 4 or item.shape[1] not in (1, 3, 4) or 0 in item.shape:
        raise ValueError(
            "an image tensor has shape (3, H, W) or (B, 3, H, W) and an array (H, W, 3), got "
            f"{tuple(item.shape)} channels first"
        )
    values = _unit_range(item.detach().cpu(), "an image")
    if values.shape[1] == 1:
        return values.repeat(1, 3, 1, 1)
    if values.shape[1] == 3:
        return values
    colour, alpha = values[:, :3], values[:, 3:]
    if (alpha < 1).any():
        _warn("an image with transparency is laid on white")
    return alpha * colour + (1 - alpha)


def _mask(item) -> Tensor:
    """One item as (B, 1, H, W) float32 in [0, 1], 1 where it keeps."""
    item = _opened(item)
    if isinstance(item, Image.Image):
        if item.has_transparency_data:
            _warn("a mask's transparency is left out: its brightness says what stays")
        deep = item.mode.startswith("I") or item.mode == "F"
        item = np.array(item if deep else item.convert("L"))
        item = item / np.float32(255) if item.dtype == np.uint8 else item  # may hold no white
    if isinstance(item, np.ndarray):
        item = torch.from_numpy(np.ascontiguousarray(item, item.dtype.newbyteorder("=")))
    if not isinstance(item, Tensor):
        kind = type(item).__name__
        raise TypeError(f"a mask is a path, a PIL image, an array or a tensor, got {kind}")
    values = item.detach().cpu()
    if values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    values = values[None] if values.ndim == 2 else values
    picture = values.ndim == 3 and values.shape[2] in (1, 3, 4) and values.shape[1] > 4
    if values.ndim != 3 or 0 in values.shape or picture:
        raise ValueError(
            "a mask has shape (H, W) or (B, H, W), one number a pixel (take mask[..., 0] of a "
            f"picture), got {tuple(values.shape)}"
        )
    if values.dtype == torch.bool:
        values = values.float()
    if values.is_floating_point():
        return _unit_range(values, "a mask")[:, None]
    low, high = values.long().min().item(), values.long().max().item()
    if low < 0 or high > WHITES[-1]:
        raise ValueError(
            f"a mask of integers holds 0 and 1, 0 to 255 or 0 to 65535, got {low} to {high}"
        )
    return values[:, None].float() / min(white for white in WHITES if high <= white)


def _opened(item):
    """The PIL image of a path, or the item itself; turned as its EXIF tag says."""
    if isinstance(item, (str, Path)):
        if not Path(item).is_file():
            raise FileNotFoundError(f"there is no image at {item}")
        try:
            item = Image.open(item)
        except UnidentifiedImageError as error:
            raise ValueError(f"{item} is not an image that Pillow can read") from error
    return ImageOps.exif_transpose(item) if isinstance(item, Image.Image) else item


def _array_of(image: Image.Image) -> np.ndarray:
    """The numbers of a PIL image, (H, W) or (H, W, C)."""
    if image.mode.startswith("I"):  # "I;16" and, of older files, "I"
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"an image of mode {image.mode} has values from {values.min()} to {values.max()}; "
                "save it with 8 or 16 bits"
            )
        return values.astype(np.uint16)
    if image.mode == "F":
        return np.asarray(image)
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _unit_range(values: Tensor, what: str) -> Tensor:
    if values.dtype == torch.uint8:
        return values.float() / 255
    if values.dtype == torch.uint16:
        return values.to(torch.int32).float() / 65535
    if not values.is_floating_point():
        raise ValueError(
            f"{what} of {values.dtype} has no known range; make it 8 bits (uint8), 16 bits "
            "(uint16) or floats in [0, 1]"
        )
    if not values.isfinite().all():
        raise ValueError(f"{what} holds NaN or infinity")
    low, high = values.min().item(), values.max().item()
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"{what} of floats lies in [0, 1], got {low:.4g} to {high:.4g}; divide by 255 what "
            "goes up to 255, take (x + 1) / 2 of what lies in [-1, 1]"
        )
    return values.float().clamp(0, 1)


def _fitted(values: Tensor, size: tuple[int, int], fit: str | None, what: str) -> Tensor:
    """(B, C, H, W) brought to a size; smooth, antialiased, and never outside [0, 1]."""
    shape = tuple(values.shape[-2:])
    if shape == tuple(size):
        return values
    told = f"the {what} has {shape[0]} x {shape[1]} pixels (height x width)"
    wanted = f"{size[0]} x {size[1]}"
    if fit == "exact":
        raise ValueError(f"{told} and {wanted} are needed; resize it, or let fit crop or stretch")
    if fit == "stretch":
        return _resized(values, size)
    scale = max(size[0] / shape[0], size[1] / shape[1])
    h, w = max(size[0], round(shape[0] * scale)), max(size[1], round(shape[1] * scale))
    if fit is None:
        _warn(
            f"{told}: it is resized to {h} x {w} and cropped to {wanted}; fit='crop' says that you "
            "know, fit='stretch' keeps all of it"
        )
    top, left = (h - size[0]) // 2, (w - size[1]) // 2
    return _resized(values, (h, w))[..., top : top + size[0], left : left + size[1]]


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    resized = F.interpolate(values, size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def _warn(what: str) -> None:
    warnings.warn(what, stacklevel=4)
