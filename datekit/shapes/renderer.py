"""Exact anti-aliased rendering of scenes by signed distances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import cycle

import torch

from .world import COLOURS, REACH, Scene, Thing

SIZE = 64  # pixels a side


def _ring(n: int, radii: Sequence[float]) -> list[tuple[float, float]]:
    """n points around the origin, the first straight up, radii in turn."""
    angles = [2 * math.pi * i / n - math.pi / 2 for i in range(n)]
    polar = zip(angles, cycle(radii))
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle, radius in polar]


_HALF = REACH["square"] / math.sqrt(2)
POLYGONS = {
    "square": [(-_HALF, -_HALF), (_HALF, -_HALF), (_HALF, _HALF), (-_HALF, _HALF)],
    "triangle": _ring(3, [REACH["triangle"]]),
    "star": _ring(10, [REACH["star"], 0.47 * REACH["star"]]),
}


def area(shape: str) -> float:
    """Area of a shape of size 1."""
    if shape == "circle":
        return math.pi
    points = POLYGONS[shape]
    edges = zip(points, points[1:] + points[:1], strict=True)
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in edges) / 2


def distance(points: torch.Tensor, shape: str) -> torch.Tensor:
    """Signed distance (..., 2) -> (...) to a shape of size 1 at the origin, negative inside."""
    if shape == "circle":
        return points.norm(dim=-1) - 1
    x, y = points.unbind(-1)
    corners = POLYGONS[shape]
    squared = torch.full_like(x, torch.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        squared = torch.minimum(squared, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
        if ey:  # even-odd rule: does a ray to the right cross this edge?
            inside ^= ((y < ay) != (y < by)) & (x < ax + (y - ay) * (ex / ey))
    return torch.where(inside, -squared.sqrt(), squared.sqrt())


@cache
def _grid(resolution: int) -> torch.Tensor:
    """(H, W, 2) pixel centres as fractions of the side."""
    ticks = (torch.arange(resolution) + 0.5) / resolution
    return torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1)


def coverage(things: Sequence[Thing], resolution: int = SIZE) -> torch.Tensor:
    """Share of each pixel that each thing covers, (N, H, W) in [0, 1]."""
    out = torch.zeros(len(things), resolution, resolution)
    for shape in {thing.shape for thing in things}:
        index = [i for i, thing in enumerate(things) if thing.shape == shape]
        geometry = torch.tensor([(things[i].x, things[i].y, things[i].size) for i in index])
        centre, size = geometry[:, None, None, :2], geometry[:, None, None, 2]
        pixels = distance((_grid(resolution) - centre) / size[..., None], shape) * size * resolution
        out[index] = (0.5 - pixels).clamp(0, 1)
    return out


def render(scenes: Sequence[Scene], resolution: int = SIZE) -> torch.Tensor:
    """Images (B, 3, H, W) float32 in [0, 1]."""
    images = torch.tensor([scene.background for scene in scenes])[:, None, None, None]
    images = images.repeat(1, 3, resolution, resolution)
    for slot in range(max((len(scene.things) for scene in scenes), default=0)):
        index = [i for i, scene in enumerate(scenes) if slot < len(scene.things)]
        things = [scenes[i].things[slot] for i in index]
        alpha = coverage(things, resolution)[:, None]
        paint = torch.tensor([COLOURS[thing.colour] for thing in things])[:, :, None, None]
        images[index] += alpha * (paint - images[index])
    return images
