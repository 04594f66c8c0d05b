"""What rewards by a network share: frozen weights, and pictures resized and normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import unknown
from ..files import weights_path
from ..registry import option
from .base import Reward

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
INTERPOLATIONS, FITS = ("bilinear", "bicubic"), ("squash", "own")


@dataclass(repr=False, eq=False, kw_only=True)
class NetworkReward(Reward):
    """A reward by a frozen network, `network`; `network.double()` makes all of it float64.

    A subclass is a dataclass whose `__post_init__` gives what it loaded to `hold`. resize_mode:
    what fit="own" does with images of other proportions, by open_clip's names for it.
    """

    kind = "reward"  # said here, as this class alone is no reward that could be asked for by name
    resize_mode: ClassVar[str] = "shortest"
    device: str | torch.device | None = option(
        None, help="Where the weights are, by default CUDA where there is one."
    )
    antialias: bool = option(
        True,
        help="Whether images are made smaller without aliasing. False is what torchvision did when "
        "the published methods were written.",
    )
    interpolation: str = option(
        "bilinear", help="How images come to the network's size.", choices=INTERPOLATIONS
    )
    fit: str = option(
        "squash",
        help="Whether images that are not square are squeezed, so that every pixel gets a "
        "gradient, or cut or padded as the score's own preprocessing does.",
        choices=FITS,
    )

    def locate(self, source: str | Path) -> Path | str:
        """Where the weights are: the folder of a name of `SHIPPED`, or what was given."""
        if source not in self.SHIPPED:
            return source
        self.name = source
        return weights_path(self.SHIPPED[source])

    def hold(
        self,
        network: nn.Module,
        size: int | tuple[int, int] | None,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Keep the network, frozen; size (None where it depends), mean, std: of its pictures."""
        words = {"interpolation": INTERPOLATIONS, "fit": FITS, "antialias": (True, False)}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        self.device = str(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = network.to(self.device, dtype).eval().requires_grad_(False)
        self.size = (size, size) if isinstance(size, int) else size
        statistics = torch.tensor([mean, std], dtype=torch.float64, device="cpu")  # MPS has none
        self.mean, self.std = statistics.view(2, 1, 3, 1, 1)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights, in which everything is computed."""
        return next(self.network.parameters()).dtype

    def _fitted(self, height: int, width: int, wanted: tuple[int, int]) -> tuple[int, int]:
        """The size at which an image is cut or padded to the network's."""
        if self.fit == "squash" or self.resize_mode == "squash":
            return wanted
        ratios = wanted[0] / height, wanted[1] / width
        if self.resize_mode == "longest":
            return round(height * min(ratios)), round(width * min(ratios))
        scale = max(ratios) * (1 + 1e-9)  # torchvision cuts off what is behind the point
        return int(height * scale), int(width * scale)

    def pixels(self, images: Tensor, wanted: tuple[int, int] | None = None) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] as the network takes them; wanted: a size for `size`."""
        x = images.to(self.device, torch.promote_types(self.dtype, torch.float32))
        wanted = wanted or self.size
        if x.shape[-2:] != wanted:
            size = self._fitted(*x.shape[-2:], wanted)
            x = F.interpolate(x, size, mode=self.interpolation, antialias=self.antialias)
            x = F.pad(x, (*_margins(size[1], wanted[1]), *_margins(size[0], wanted[0])))
        return (x - self.mean.to(x)) / self.std.to(x)


def _margins(side: int, wanted: int) -> tuple[int, int]:
    """What torchvision's `center_crop` adds before and after a side, or cuts below 0."""
    before = (wanted - side) // 2 if wanted > side else -round((side - wanted) / 2)
    return before, wanted - side - before


def published_head(
    weights: Mapping[str, Tensor],
    prefix: str,
    layers: Sequence[str] = ("0", "2", "4", "6", "7"),  # dropout has numbers too
    between: nn.Module | None = None,
) -> nn.Sequential:
    """The linear maps in which a published score ends, with an activation between them or none.

    Two scores end in five maps without any. Raises ValueError for weights that lack one.
    """
    head = nn.Sequential()
    for layer in layers:
        names = {part: f"{prefix}.{layer}.{part}" for part in ("weight", "bias")}
        if lacking := names.values() - weights.keys():
            raise ValueError(f"these weights lack {min(lacking)}, so they are not that score's")
        own = {part: weights[name] for part, name in names.items()}
        if between is not None and len(head):
            head.append(between)
        head.append(nn.Linear(*own["weight"].shape[::-1]))
        head[-1].load_state_dict(own)
    return head
