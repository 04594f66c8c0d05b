"""The exact judge: what is in an image, and which claims of a caption hold there.

It works by classical image analysis. Nothing here has a gradient, and nothing is ever optimised
against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from .captions import parse
from .renderer import area, coverage
from .world import COLOURS, SHAPES, Thing

CONTRAST = 0.2  # least difference to the ground, in any channel, that belongs to a thing
SPECK = 0.004  # least area of a thing, as a share of the image
OVERLAP = 0.78  # least overlap with a template for a shape to be recognised
TINT = 0.25  # farthest distance in RGB at which a colour is recognised
NOISE = 0.15  # least share of a pixel that is taken for more than noise
UNKNOWN = "unknown"


@dataclass(frozen=True, repr=False)
class Verdict:
    """The claims of one prompt with their truth in one image, and the things that were seen."""

    statements: tuple[tuple[str, bool], ...]
    things: tuple[Thing, ...] = ()

    @property
    def right(self) -> bool:
        """Whether every claim holds, the number of objects included."""
        return all(truth for _, truth in self.statements)

    def __repr__(self) -> str:
        said = [f"{text}: {'yes' if truth else 'no'}" for text, truth in self.statements]
        return f"<Verdict {'right' if self.right else 'wrong'}: {'; '.join(said)}>"


def as_array(images) -> np.ndarray:
    """A tensor (B, 3, H, W), an array (B, H, W, 3), PIL images, or one of these: (B, H, W, 3)."""
    if isinstance(images, torch.Tensor):
        images = images.detach().float().cpu().movedim(-3, -1).numpy()
    elif not isinstance(images, np.ndarray):
        pictures = images if isinstance(images, Sequence) else [images]
        images = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    images = images / 255 if images.dtype == np.uint8 else images
    return images if images.ndim == 4 else images[None]


def detect(image: Any) -> list[Thing]:
    """The things in one image; a colour or shape that is none of ours is "unknown"."""
    return _things(as_array(image)[:1])[0]


def _things(images: np.ndarray) -> list[list[Thing]]:
    """The things in each image (B, H, W, 3).

    The colour is the median inside, the shape the template of equal area that overlaps most.
    """
    regions = [(i, *region) for i, pixels in enumerate(images) for region in _regions(pixels)]
    options = [_options(colour, alpha) for _, colour, alpha in regions]
    things: list[list[Thing]] = [[] for _ in images]
    drawings = coverage(list(chain.from_iterable(options)), images.shape[1])
    templates = drawings.unflatten(0, (-1, len(SHAPES))).numpy()
    for (i, _, alpha), four, drawn in zip(regions, options, templates, strict=True):
        overlaps = np.minimum(drawn, alpha).sum((1, 2)) / np.maximum(drawn, alpha).sum((1, 2))
        best = four[int(overlaps.argmax())]
        things[i].append(best if overlaps.max() >= OVERLAP else replace(best, shape=UNKNOWN))
    return things


def _regions(pixels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Of each connected region of an image (H, W, 3) that stands out, colour and mask (H, W)."""
    sides = [pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)]
    border = np.concatenate([*sides, *pixels[:, [0, 1, -2, -1]]])
    difference = pixels - np.median(border, axis=0)
    labels, count = ndimage.label(np.abs(difference).max(-1) > CONTRAST, structure=np.ones((3, 3)))
    for region in (labels == i for i in range(1, count + 1)):
        if region.mean() < SPECK:
            continue
        inside = ndimage.binary_erosion(region)
        inside = inside if inside.any() else region
        paint = np.median(pixels[inside], axis=0)
        distances = {name: np.linalg.norm(paint - rgb) for name, rgb in COLOURS.items()}
        colour = min(distances, key=distances.get)
        # A pixel of the edge mixes thing and ground: its share follows from the difference.
        step = np.median(difference[inside], axis=0)
        share = np.clip(difference @ step / max(step @ step, 1e-6), 0, 1)
        alpha = share * ndimage.binary_dilation(region)
        yield colour if distances[colour] <= TINT else UNKNOWN, np.where(alpha < NOISE, 0, alpha)


def _options(colour: str, alpha: np.ndarray) -> list[Thing]:
    """One thing of each shape with the centre and the area of a soft mask (H, W)."""
    side = len(alpha)
    y, x = ((np.indices(alpha.shape) + 0.5) * alpha).sum((1, 2)) / alpha.sum() / side
    length = np.sqrt(alpha.sum()) / side
    sizes = {shape: float(length / np.sqrt(area(shape))) for shape in SHAPES}
    return [Thing(colour, shape, float(x), float(y), size) for shape, size in sizes.items()]


def judge(images: Any, prompts: Sequence[str]) -> list[Verdict]:
    """A verdict for each image, as for `as_array`, with its prompt."""
    pixels = as_array(images)
    if len(pixels) != len(prompts):
        raise ValueError(f"{len(pixels)} images for {len(prompts)} prompts")
    claims = [parse(prompt) for prompt in prompts]
    seen = chain.from_iterable(_things(pixels[i : i + 64]) for i in range(0, len(pixels), 64))
    pairs = zip(claims, seen, strict=True)
    return [Verdict(tuple(claim.check(things)), tuple(things)) for claim, things in pairs]
