"""Cheaper decoders for the reward only, as in `dk.DATE(reward, decoder="tiny")`: a faster update.

It is approximate; pictures are decoded as ever. A new one is a `Decoder` with a label. Any function
of latents (B, C, h, w) to images (B, 3, H, W), nominally in [0, 1], that carries gradient serves
too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor

from ..backbones import Backbone
from ..errors import unknown
from ..registry import Registered, entries
from .base import Reward, as_reward

Decode = Callable[[Tensor], Tensor]

_made: WeakKeyDictionary = WeakKeyDictionary()  # backbone -> decoder -> what was fitted or loaded


class Decoder(Registered, ABC):
    """A way to show a reward its pictures; `label` is the word that asks for it."""

    kind: ClassVar[str] = "decoder"

    def fit(self, backbone: Backbone) -> Decode:
        """The function from latents to images for a backbone, made once and kept."""
        known = _made.setdefault(backbone, {})
        if self not in known:
            known[self] = self.make(backbone)
        return known[self]

    @abstractmethod
    def make(self, backbone: Backbone) -> Decode:
        """Fit or load it. Raises ValueError for a backbone that it does not fit."""


@dataclass(frozen=True)
class Tiny(Decoder):
    """diffusers' `AutoencoderTiny`, as published for the family or as lies beside the model."""

    label: ClassVar[str] = "tiny"

    def make(self, backbone: Backbone) -> Decode:
        from diffusers import AutoencoderTiny

        if backbone.tiny is None:
            raise ValueError(f"there is no small autoencoder for {backbone.name}")
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

    def decoder(self, backbone: Backbone) -> Decode:
        """What makes the reward's pictures, (B, 3, H, W), of latents (B, C, h, w)."""
        return self.through.fit(backbone) if isinstance(self.through, Decoder) else self.through


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
    whole_model = hasattr(decoder, "vae") or hasattr(decoder, "decode")
    other = isinstance(decoder, type) or whole_model or not callable(decoder)
    if not isinstance(decoder, Decoder) and other:
        kind = repr(decoder) if isinstance(decoder, type) else type(decoder).__name__
        raise TypeError(f"a decoder is a word or a function of latents to images, got {kind}")
    return DecodedWith(reward, decoder)
