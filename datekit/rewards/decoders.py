"""Cheaper decoders for the reward only: an approximate, fast update. Pictures are decoded as ever.

dk.DATE(reward, decoder="linear")

A decoder here makes, for a backbone, a function of latents (B, C, h, w) to images (B, 3, H, W),
nominally in [0, 1], with gradient. There are "resized", "linear" and "tiny"; any module or function
of the latents alone serves too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import noise
from ..backbones import SHIPPED
from ..errors import unknown
from ..files import shipped
from ..registry import Registered, entries, option
from .base import Reward, as_reward

Decode = Callable[[Tensor], Tensor]

_made: WeakKeyDictionary = WeakKeyDictionary()  # backbone -> decoder -> what was fitted or loaded


class Decoder(Registered, ABC):
    """A way to show a reward its pictures; `label` is the word that asks for it."""

    kind: ClassVar[str] = "decoder"

    def fitted(self, backbone) -> Decode:
        """The function from latents to images for a backbone, made once and kept."""
        known = _made.setdefault(backbone, {})
        if self not in known:
            known[self] = self.make(backbone)
        return known[self]

    @abstractmethod
    def make(self, backbone) -> Decode:
        """Fit or load it. Raises ValueError for a backbone that it does not fit."""


@dataclass(frozen=True)
class Resized(Decoder):
    """The latent made smaller before the backbone decodes it."""

    label: ClassVar[str] = "resized"
    scale: float = option(
        0.5, help="The share of the latent's sides that is left.", range=(0.1, 1.0)
    )

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale must be above 0 and at most 1, got {self.scale!r}")

    def make(self, backbone) -> Decode:
        def decode(latents: Tensor) -> Tensor:
            size = [max(1, round(side * self.scale)) for side in latents.shape[-2:]]
            small = F.interpolate(latents.float(), size, mode="bilinear", antialias=True)
            return backbone.decode(small.to(latents.dtype))

        return decode


@dataclass(frozen=True)
class Linear(Decoder):
    """A linear map from each latent cell and its eight neighbours to the pixels it becomes.

    It is fitted to the backbone's own decoder by least squares, over 16 random latents. In the
    shapes worlds its updates are as near to the exact ones as after a fit to latents of runs.
    """

    label: ClassVar[str] = "linear"

    @torch.no_grad()
    def make(self, backbone) -> Decode:
        """image = pixel_shuffle(conv_{3 x 3}(latent)), in float32 at least."""
        shape, exact = backbone.latent_shape(), torch.promote_types(backbone.dtype, torch.float32)
        latents = noise.normal(range(16), 0, shape, exact, purpose="linear decoder")
        squares: Any = 0.0
        products: Any = 0.0
        for row in latents.to(backbone.device).split(1):
            image = backbone.decode(row).double()
            factor = image.shape[-1] // shape[2]
            cells = F.unfold(F.pad(row.double(), [1] * 4, mode="replicate"), 3)[0]
            x = torch.cat([cells, torch.ones_like(cells[:1])])
            y = F.pixel_unshuffle(image, factor)[0].flatten(1)
            squares, products = squares + x @ x.T, products + x @ y.T
        solution = torch.linalg.solve(squares, products).T
        edges = {"padding": 1, "padding_mode": "replicate"}
        conv = nn.utils.skip_init(nn.Conv2d, shape[0], len(solution), 3, **edges)
        conv.to(backbone.device, exact)
        conv.weight.copy_(solution[:, :-1].view_as(conv.weight))
        conv.bias.copy_(solution[:, -1])
        return _of_module(nn.Sequential(conv, nn.PixelShuffle(factor)))


@dataclass(frozen=True)
class Tiny(Decoder):
    """diffusers' `AutoencoderTiny`, that of the shapes world or as published for the family."""

    label: ClassVar[str] = "tiny"

    def make(self, backbone) -> Decode:
        from diffusers import AutoencoderTiny

        source = _tiny_of_shapes(backbone) or backbone.tiny
        if source is None:
            raise ValueError(f"no small autoencoder for {backbone.name}; take decoder='linear'")
        tiny = AutoencoderTiny.from_pretrained(source)
        channels, own = tiny.config.latent_channels, backbone.latent_shape()[0]
        if channels != own:
            raise ValueError(f"{source} decodes {channels} channels, {backbone.name} has {own}")
        return _of_module(tiny.to(backbone.device).float())


@dataclass(frozen=True, repr=False)
class DecodedWith(Reward):
    """A reward that a gradient reaches through a cheaper decoder; of pictures it is the reward."""

    reward: Reward
    through: Decoder | Decode

    @property
    def name(self) -> str:
        return f"{self.reward.name} through {getattr(self.through, 'name', repr(self.through))}"

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.reward.forward(images, prompts)

    def decoder(self, backbone) -> Decode:
        """What makes the reward's pictures, (B, 3, H, W), of latents (B, C, h, w)."""
        is_fitted = isinstance(self.through, Decoder)
        return self.through.fitted(backbone) if is_fitted else self.through


def through(reward: Reward | Callable, decoder: Any) -> DecodedWith:
    """The reward as seen through a word, a `Decoder`, or a module or function of latents.

    An `AutoencoderTiny` is scaled as diffusers does; any other function maps latents to images in
    [0, 1]. Raises ValueError for an unknown word, and TypeError for what cannot decode.
    """
    reward = reward.reward if isinstance(reward, DecodedWith) else as_reward(reward)
    words = {cls.label: cls for cls in entries("decoder").values()}
    if isinstance(decoder, str):
        if decoder not in words:
            raise unknown("decoder", decoder, words)
        decoder = words[decoder]()
    elif isinstance(decoder, nn.Module):
        decoder = _of_module(decoder)
    elif isinstance(decoder, type) or not (isinstance(decoder, Decoder) or callable(decoder)):
        raise TypeError(f"a decoder is a word, a module, or a function of latents, got {decoder!r}")
    return DecodedWith(reward, decoder)


def _of_module(module: nn.Module) -> Decode:
    module = module.requires_grad_(False).eval()
    if type(module).__name__ != "AutoencoderTiny":
        return module
    shift, scale = module.config.get("shift_factor", 0.0) or 0.0, module.config.scaling_factor

    def decode(latents: Tensor) -> Tensor:
        latents = (latents / scale + shift).to(module.dtype)
        return module.decode(latents, return_dict=False)[0] / 2 + 0.5

    decode.name = "AutoencoderTiny"
    return decode


def _tiny_of_shapes(backbone) -> Path | None:
    """The small autoencoder beside a model of the shapes world, shipped or trained."""
    source = backbone.source or ""
    folder = shipped(SHIPPED[source]) if source in SHIPPED else Path(source)
    return folder.parent / "tiny" if (folder / "datekit.json").is_file() else None
