"""Pictures and masks of every usual kind as tensors of a model's size. What changes them says so."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unknown

FITS = ("crop", "stretch", "exact")
ROUNDING = 1e-3  # how far outside [0, 1] a float may lie to be taken for one that was rounded
TOPS = (1, 255, 65535)  # what white is in a mask of integers: the first that no value exceeds


def as_images(
    image, backbone, *, height: int | None = None, width: int | None = None, fit: str | None = None
) -> Tensor:
    """Any picture or list of pictures as (B, 3, H, W) float32 in [0, 1], of the size that the backbone takes.

    image: a path, a PIL image, an array (H, W), (H, W, 3) or (B, H, W, 3), a tensor (3, H, W) or (B, 3, H, W), or a list of these;
    integers are 8 bits (0 to 255), or 16 bits where the type says so, floats lie in [0, 1] (within 1e-3, as rounding may leave them, they
    are clipped to it). height, width: pixels, the model's own by default. fit: "crop" scales the shorter side and cuts the longer one at
    both ends, "stretch" scales each side, "exact" refuses another size; by default "crop", with a warning that says what was done.
    A photograph is turned as its EXIF tag says. Transparency is laid on white, 16 bits become float, or 8 bits where Pillow reads
    colours so, grey becomes RGB, each with a warning. Raises TypeError or ValueError on what is no picture, FileNotFoundError for a path.
    """
    if fit not in (None, *FITS):
        raise unknown("fit", fit, FITS)
    size = backbone.image_size(height, width)
    items = list(image) if isinstance(image, (list, tuple)) else [image]
    if not items:
        raise ValueError("no image: give at least one")
    return torch.cat([_fitted(_pixels(item), size, fit) for item in items])


def as_keep(keep, backbone, latents: Tensor, *, fit: str | None = None) -> Tensor:
    """A mask of what stays as it is to the latents' cells: (B, 1, h, w) bool, True where all of a cell's pixels are kept.

    A cell that the mask's border crosses belongs to the edit, so that a region thinner than a cell can still change; what is kept in
    such a cell may move with it. keep: a path, a PIL image, an array or tensor (H, W) or (B, H, W), or a list; white, 1 and True keep, a
    pixel from one half up; integers are 0 and 1, 0 to 255 or 0 to 65535, floats lie in [0, 1]. It is brought to the size of the pictures
    as `as_images` does. Warns where a mask keeps no whole cell. Raises ValueError for a mask that keeps everything, or for the wrong number
    of masks.
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
            "the mask keeps the whole picture, so there is nothing left to edit; white is what stays, black what may change"
        )
    if ((masks.flatten(1) > 0).any(1) & ~cells.flatten(1).any(1)).any():
        _say(
            f"the mask keeps nothing: all pixels of a cell of {factor} x {factor} have to be white (one half at least)"
        )
    return cells.expand(len(latents), -1, -1, -1).to(latents.device)


def _pixels(item) -> Tensor:
    """One item as (B, 3, H, W) float32 in [0, 1]."""
    if isinstance(item, (str, Path)):
        item = _opened(item)
    if hasattr(item, "getbands"):
        return _from_pil(item)
    if isinstance(item, np.ndarray):
        item = torch.from_numpy(np.ascontiguousarray(_channels_first(item)))
    if not isinstance(item, Tensor):
        raise TypeError(
            f"an image is a path, a PIL image, an array or a tensor, got {type(item).__name__}"
        )
    item = item[None] if item.ndim == 3 else item
    if item.ndim != 4 or item.shape[1] not in (1, 3, 4) or 0 in item.shape:
        raise ValueError(
            f"an image tensor has shape (3, H, W) or (B, 3, H, W) and an array (H, W, 3), got {tuple(item.shape)} channels first"
        )
    return _three_channels(_unit_range(item.detach().cpu()))


def _mask(item) -> Tensor:
    """One item as (B, 1, H, W) float32 in [0, 1]."""
    if isinstance(item, (str, Path)):
        item = _opened(item)
    if hasattr(item, "getbands"):
        item = _upright(item)
        if "A" in item.getbands() or "transparency" in item.info:
            _say("a mask's transparency is left out: its brightness says what stays")
        item = np.array(
            item if item.mode == "F" or item.mode.startswith("I") else item.convert("L")
        )
        item = (
            item.astype(np.float32) / 255 if item.dtype == np.uint8 else item
        )  # whatever its brightest pixel is
    if not isinstance(item, (np.ndarray, Tensor)):
        raise TypeError(
            f"a mask is a path, a PIL image, an array or a tensor, got {type(item).__name__}"
        )
    if isinstance(item, np.ndarray):
        item = torch.from_numpy(np.ascontiguousarray(item, item.dtype.newbyteorder("=")))
    item = item.detach().cpu()
    if item.ndim == 4 and item.shape[1] == 1:
        item = item[:, 0]
    item = item[None] if item.ndim == 2 else item
    if item.ndim != 3 or 0 in item.shape:
        raise ValueError(f"a mask has shape (H, W) or (B, H, W), got {tuple(item.shape)}")
    if item.shape[2] in (1, 3, 4) and item.shape[1] > 4:
        raise ValueError(
            f"a mask has shape (H, W) or (B, H, W), one number a pixel; {tuple(item.shape)} is a picture's: take mask[..., 0]"
        )
    return _share(item)[:, None]


def _share(values: Tensor) -> Tensor:
    """A mask's numbers as float32 in [0, 1], 1 where it keeps."""
    if values.dtype == torch.bool:
        return values.float()
    if values.is_floating_point():
        return _unit_range(values, "a mask")
    if values.is_complex():
        raise ValueError(f"a mask holds booleans, integers or floats, got {values.dtype}")
    low, high = values.long().min().item(), values.long().max().item()
    if low < 0 or high > TOPS[-1]:
        raise ValueError(
            f"a mask of integers holds 0 and 1, 0 to 255 or 0 to 65535, got {low} to {high}"
        )
    return values.float() / next(top for top in TOPS if high <= top)


def _opened(path: str | Path):
    from PIL import Image, UnidentifiedImageError

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no image at {path}")
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image that Pillow can read") from error


def _upright(image):
    """A PIL image turned as its EXIF tag says, if it has one."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _cut_to_8_bits(image) -> bool:
    """Whether an image file has 16 bits a colour, of which Pillow is going to read 8; unknown once they are read."""
    modes = [
        (codec, args if isinstance(args, tuple) else (args,))
        for codec, _, _, args in getattr(image, "tile", ())
    ]
    deep = lambda args: (
        isinstance(args[0], str) and re.search(r";16[BLN]?$", args[0]) and args[0] != "BGR;16"
    )  # that one is 5 + 6 + 5 bits
    return not image.mode.startswith("I") and any(
        deep(args) or (codec.startswith("ppm") and args[-1] > 255) for codec, args in modes
    )


def _from_pil(image) -> Tensor:
    if _cut_to_8_bits(image):
        _say(
            "an image of 16 bits a colour is read with 8, as Pillow does; pass an array of uint16 to keep them"
        )
    image = _upright(image)
    if image.mode.startswith("I"):  # "I;16" and, of older files, "I"
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"an image of mode {image.mode} has values from {values.min()} to {values.max()}; save it with 8 or 16 bits"
            )
        return _pixels(values.astype(np.uint16))
    if image.mode == "F":
        raise ValueError(
            "an image of mode F has no known range; pass it as a float array in [0, 1]"
        )
    if "A" in image.getbands() or "transparency" in image.info:
        return _pixels(np.asarray(image.convert("RGBA")))
    if image.mode not in ("RGB", "L", "1", "P"):
        _say(f"an image of mode {image.mode} is converted to RGB")
    return _pixels(np.asarray(image.convert("L" if image.mode in ("L", "1") else "RGB")))


def _channels_first(array: np.ndarray) -> np.ndarray:
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"an image array has shape (H, W), (H, W, 3) or (B, H, W, 3), got {array.shape}"
        )
    return np.moveaxis(array, -1, -3)


def _unit_range(values: Tensor, what: str = "an image") -> Tensor:
    if values.dtype == torch.uint8:
        return values.float() / 255
    if values.dtype == torch.uint16:
        _say("an image of 16 bits is read as float, 65535 as 1")
        return values.to(torch.int32).float() / 65535
    if not values.is_floating_point():
        raise ValueError(
            f"an image of {values.dtype} has no known range; make it 8 bits (uint8), 16 bits (uint16), or floats in [0, 1]"
        )
    if not values.isfinite().all():
        raise ValueError(f"{what} holds NaN or infinity")
    low, high = values.min().item(), values.max().item()
    if low < -ROUNDING or high > 1 + ROUNDING:
        signed = low >= -1 - ROUNDING and high <= 1 + ROUNDING
        more = (
            "; divide it by 255"
            if high > 2
            else "; (x + 1) / 2 brings [-1, 1] there"
            if signed
            else ""
        )
        raise ValueError(f"{what} of floats lies in [0, 1], got {low:.4g} to {high:.4g}{more}")
    return values.float().clamp(0, 1)


def _three_channels(values: Tensor) -> Tensor:
    if values.shape[1] == 1:
        _say("a grey image is converted to RGB")
        return values.repeat(1, 3, 1, 1)
    if values.shape[1] == 3:
        return values
    colour, alpha = values[:, :3], values[:, 3:]
    if bool((alpha < 1).any()):
        _say("an image with transparency is laid on white")
    return alpha * colour + (1 - alpha)


def _fitted(values: Tensor, size: tuple[int, int], fit: str | None, what: str = "image") -> Tensor:
    """(B, C, H, W) brought to a size; smooth, antialiased, and never outside [0, 1]."""
    found = tuple(values.shape[-2:])
    if found == tuple(size):
        return values
    wanted = f"{size[0]} x {size[1]} pixels (height x width)"
    if fit == "exact":
        raise ValueError(
            f"the {what} has {found[0]} x {found[1]} pixels and {wanted} are needed; resize it, or take fit='crop' or 'stretch'"
        )
    if fit == "stretch":
        return _resized(values, size)
    scale = max(size[0] / found[0], size[1] / found[1])
    between = tuple(max(want, round(side * scale)) for want, side in zip(size, found, strict=True))
    top, left = ((side - want) // 2 for side, want in zip(between, size, strict=True))
    if fit is None:
        cut = "" if between == tuple(size) else f" and cropped to {wanted}"
        _say(
            f"the {what} of {found[0]} x {found[1]} pixels is resized to {between[0]} x {between[1]}{cut}; fit='crop' says that you know"
        )
    return _resized(values, between)[..., top : top + size[0], left : left + size[1]]


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(
        values, size=size, mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)


def _say(what: str) -> None:
    import inspect

    package = __name__.split(".")[0]
    frames = (
        n
        for n, frame in enumerate(inspect.stack(0), 1)
        if not frame.frame.f_globals.get("__name__", "").startswith(package)
    )
    warnings.warn(what, stacklevel=next(frames, 2))
