"""Cheaper decoders for the reward only: an approximate, fast update. Pictures are decoded as ever.

dk.DATE(reward, decoder="linear")

A new one is a `Decoder` with a label. Any function of latents (B, C, h, w) to images (B, 3, H, W),
nominally in [0, 1], that carries gradient serves too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import noise
from ..errors import unknown
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

    def fitted(self, backbone) -> Decode:
        return self.make(backbone)  # which holds the backbone, and so is not kept

    def make(self, backbone) -> Decode:
        def decode(latents: Tensor) -> Tensor:
            size = [max(1, round(side * self.scale)) for side in latents.shape[-2:]]
            small = F.interpolate(latents.float(), size, mode="bilinear", antialias=True)
            return backbone.decode(small.to(latents.dtype))

        return decode


@dataclass(frozen=True)
class Linear(Decoder):
    """A linear map from each latent cell and its eight neighbours to the pixels it becomes.

    It is fitted to the backbone's own decoder by least squares, over 16 random latents.
    """

    label: ClassVar[str] = "linear"

    @torch.no_grad()
    def make(self, backbone) -> Decode:
        """image = pixel_shuffle(conv_{3 x 3}(latent)), in float32 at least."""
        shape, exact = backbone.latent_shape(), torch.promote_types(backbone.dtype, torch.float32)
        latents = noise.normal(range(16), 0, shape, exact, purpose="linear decoder")
        squares = products = torch.zeros(())
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
        return nn.Sequential(conv, nn.PixelShuffle(factor)).requires_grad_(False)


@dataclass(frozen=True)
class Tiny(Decoder):
    """diffusers' `AutoencoderTiny`, as published for the family or as lies beside the model."""

    label: ClassVar[str] = "tiny"

    def make(self, backbone) -> Decode:
        from diffusers import AutoencoderTiny

        if backbone.tiny is None:
            raise ValueError(f"no small autoencoder for {backbone.name}; take decoder='linear'")
        tiny = AutoencoderTiny.from_pretrained(backbone.tiny).requires_grad_(False)
        tiny.to(backbone.device).float()

        def decode(latents: Tensor) -> Tensor:
            latents = latents.float() / tiny.config.scaling_factor + tiny.config.shift_factor
            return tiny.decode(latents).sample / 2 + 0.5

        return decode


@dataclass(frozen=True, repr=False)
class DecodedWith(Reward):
    """A reward that a gradient reaches through a cheaper decoder; of pictures it is the reward."""

    reward: Reward
    through: Decoder | Decode

    @property
    def name(self) -> str:
        return f"{self.reward.name} through {getattr(self.through, '__name__', repr(self.through))}"

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.reward.forward(images, prompts)

    def decoder(self, backbone) -> Decode:
        """What makes the reward's pictures, (B, 3, H, W), of latents (B, C, h, w)."""
        return self.through.fitted(backbone) if isinstance(self.through, Decoder) else self.through


def through(reward: Reward | Callable, decoder: Decoder | Decode | str) -> DecodedWith:
    """The reward as seen through a decoder, the word for one, or a function of latents.

    Raises ValueError for an unknown word, and TypeError for what cannot decode.
    """
    reward = reward.reward if isinstance(reward, DecodedWith) else as_reward(reward)
    if isinstance(decoder, str):
        words = {cls.label: cls for cls in entries("decoder").values()}
        if decoder not in words:
            raise unknown("decoder", decoder, words)
        decoder = words[decoder]()
    if not isinstance(decoder, Decoder) and not callable(decoder):
        raise TypeError(f"a decoder is a word or a function of latents, got {decoder!r}")
    return DecodedWith(reward, decoder)
