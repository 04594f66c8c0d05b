"""The protocol of a text-to-image model, and what all pipelines of diffusers share."""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import is_whole
from ..registry import Registered
from ..types import Conditioning

_LOCKS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Recommended:
    """What a backbone is best sampled with when the user does not say."""

    num_steps: int = 50
    guidance_scale: float = 7.5
    solver: str = "ddim"  # "own": the pipeline's own scheduler


class Backbone(ABC, Registered):
    """A frozen text-to-image model with three verbs: encode, predict, decode.

    `predict` and `decode` carry gradient to their tensor arguments; no weight does. `source` and
    `settings` are what `dk.load` takes to load the model again; `source` is None for one that no
    name leads to. A family in its own file is found by its class attributes. pipelines: the
    diffusers pipelines that it wraps; load_settings: the keywords that it takes from `dk.load`;
    models: the names of models that it makes itself, each with the keywords to make it.
    """

    kind = "backbone"
    pipelines: ClassVar[tuple[str, ...]] = ()
    load_settings: ClassVar[tuple[str, ...]] = ()
    models: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    name: str = "backbone"
    source: str | None = None
    settings: Mapping[str, Any] = MappingProxyType({})
    recommended: Recommended = Recommended()
    pooled: bool = False  # whether `Conditioning.pooled` is used
    tiny: str | None = None  # the hub id of a small autoencoder for the same latents
    one_batch: bool = True  # whether both branches of guidance run as one batch
    scheduler: Any
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def encode(
        self, prompts: Sequence[str | None], *, negative: bool = False
    ) -> Conditioning | None:
        """Prompts to embeddings, (B, L, D), in float32 at least, so that no small update is lost.

        negative: whether these are negative prompts, None where the user gave none. The answer to
        those may be None, which means that there is no second branch.
        """

    @abstractmethod
    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The network's raw output, (B, C, H, W), at a latent (B, C, H, W) and a timestep.

        The embedding is cast to the network's precision here.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W), nominally in [0, 1], not clamped."""

    @abstractmethod
    def latent_shape(
        self, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int]:
        """(C, h, w) for an image size in pixels. Raises ValueError for a size that does not fit."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to latents (B, C, h, w), the inverse of `decode`.

        Raises TypeError for a model that cannot do it.
        """
        raise TypeError(
            f"{self.name} cannot turn pictures into latents: its backbone defines no encode_images"
        )

    def check_latents(self, latents: Tensor) -> None:
        """Raise ValueError for latents (B, C, h, w) of a size that the network cannot take."""
        return

    def image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """(H, W) of its pictures in pixels, by default those of the model's own size.

        Raises ValueError for a size that does not fit the model.
        """
        shape = self.latent_shape(height, width)
        with torch.no_grad():
            latents = torch.zeros(1, *shape, device=self.device, dtype=self.dtype)
            return tuple(self.decode(latents).shape[-2:])

    def schedule(self, scheduler, num_steps: int, shape: tuple[int, int, int]) -> dict:
        """What `scheduler.set_timesteps` is told beside `num_steps`, for latents (C, h, w)."""
        return {}

    def with_guidance(self, cond: Conditioning, guidance_scale: float) -> Conditioning:
        """The embedding for sampling without a second branch.

        A model that was distilled from guidance is told the scale here.
        """
        return cond

    def guide(self, out_u: Tensor, out_c: Tensor, w: float) -> Tensor:
        """The guided output of both branches, out_u + w (out_c - out_u)."""
        return out_u + w * (out_c - out_u)

    @property
    def lock(self) -> threading.RLock:
        """Whoever patches the network holds this, so that no other thread runs it meanwhile."""
        return _LOCKS.setdefault(self, threading.RLock())

    @contextlib.contextmanager
    def checkpointing(self, on: bool = True) -> Iterator[None]:
        """Inside, a model that can do it recomputes activations in the backward pass."""
        yield

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"{kind}({self.name!r}, device={str(self.device)!r}, dtype={self.dtype})"


class DiffusersBackbone(Backbone):
    """What the families share. Wrapping freezes the pipeline's weights and sets eval mode."""

    def __init__(
        self, pipe, *, name: str | None = None, source: str | None = None, recommended=None
    ) -> None:
        self.pipe = pipe
        self.name = name or type(pipe).__name__
        self.source = source
        self.recommended = recommended or self.recommended
        for module in self._modules():
            module.requires_grad_(False).eval()
        self.vae = self._decoder()

    def _decoder(self):
        """The autoencoder that decodes; the pipeline's own, unless a family needs another."""
        return self.pipe.vae

    def _modules(self) -> list[torch.nn.Module]:
        return [m for m in self.pipe.components.values() if isinstance(m, torch.nn.Module)]

    @property
    def scheduler(self):
        """The pipeline's scheduler, read for its configuration only."""
        return self.pipe.scheduler

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return self.pipe._execution_device

    @property
    def network(self) -> torch.nn.Module:
        """The denoising network, a U-Net or a transformer."""
        unet = getattr(self.pipe, "unet", None)
        return self.pipe.transformer if unet is None else unet

    @property
    def dtype(self) -> torch.dtype:
        """The network's precision, which latents and embeddings share."""
        return self.network.dtype

    @property
    def lock(self) -> threading.RLock:
        """The network's own lock, which all backbones that wrap it share."""
        return _LOCKS.setdefault(self.network, threading.RLock())

    def exact(self, x: Tensor) -> Tensor:
        """A tensor in the network's precision, or in float32 if that is higher."""
        return x.to(torch.promote_types(self.dtype, torch.float32))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W), nominally in [0, 1], not clamped.

        Carries gradient to the latents.
        """
        mean, std = self._latent_statistics(latents)
        shifted = latents * std / self.vae.config.scaling_factor + mean
        return self.vae.decode(shifted.to(self.vae.dtype), return_dict=False)[0] / 2 + 0.5

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to latents (B, C, h, w), shifted and scaled.

        The latents are the mode of the VAE's posterior; gradient is carried to the images.
        """
        vae = self.vae
        latents = vae.encode((2 * images - 1).to(self.device, vae.dtype)).latent_dist.mode()
        mean, std = self._latent_statistics(latents)
        return ((latents - mean) * vae.config.scaling_factor / std).to(self.dtype)

    def _latent_statistics(self, latents: Tensor) -> tuple:
        """Mean and deviation of latents before scaling, numbers or (1, C, 1, 1)."""
        config = self.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or std is None:
            return getattr(config, "shift_factor", None) or 0.0, 1.0
        return tuple(torch.tensor(v).to(latents).view(1, -1, 1, 1) for v in (mean, std))

    def check_latents(self, latents: Tensor) -> None:
        """Raise ValueError for latents (B, C, h, w) of a size that the network cannot take."""
        self.latent_shape(*(side * self.pipe.vae_scale_factor for side in latents.shape[-2:]))

    def image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """(H, W) of its pictures in pixels, by default those of the model's own size.

        Raises ValueError for a size that does not fit the model.
        """
        _, h, w = self.latent_shape(height, width)
        return h * self.pipe.vae_scale_factor, w * self.pipe.vae_scale_factor

    def latent_shape(
        self, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int]:
        """(C, h, w) for an image size in pixels. Raises ValueError for a size that does not fit."""
        factor, (channels, size, patch) = self.pipe.vae_scale_factor, self._geometry()
        side = (size, size) if isinstance(size, int) else tuple(size)
        height = side[0] * factor if height is None else height
        width = side[1] * factor if width is None else width
        step = math.lcm(8, factor * patch)  # 8: diffusers' own pipelines ask for it
        for what, value in (("height", height), ("width", width)):
            if not is_whole(value) or value <= 0 or value % step:
                raise ValueError(
                    f"{what} must be a positive multiple of {step} pixels for {self.name}, "
                    f"got {value!r}"
                )
        return channels, int(height) // factor, int(width) // factor

    def _geometry(self) -> tuple[int, Any, int]:
        """Channels of the latent, its side or sides by default, and the side of a patch."""
        config = self.network.config
        return config.in_channels, config.sample_size, getattr(config, "patch_size", 1)

    def tuned(
        self, *, channels_last: bool | None = None, compile: bool | str = False
    ) -> DiffusersBackbone:
        """The same backbone with network and decoder changed in place, for speed.

        channels_last: the memory layout of convolutions, by default on a GPU only, where it helps;
        compile: `torch.compile`, True or the name of its backend. Each new shape then costs minutes
        once, so it pays for many pictures of one size. Results stay the same up to rounding.
        """
        if self.device.type == "cuda" if channels_last is None else channels_last:
            for module in (self.network, self.vae):
                module.to(memory_format=torch.channels_last)
        if compile:
            options = {"backend": compile} if isinstance(compile, str) else {}
            self.network.compile(**options)
            self.vae.decoder.compile(**options)
        return self

    @contextlib.contextmanager
    def checkpointing(self, on: bool = True) -> Iterator[None]:
        """Inside, diffusers' gradient checkpointing is on for network and decoder."""
        able = [
            m
            for m in (self.network, self.vae)
            if getattr(m, "_supports_gradient_checkpointing", False)
        ]
        with self.lock:
            off = [m for m in able if on and not m.is_gradient_checkpointing]
            try:
                for module in off:
                    module.enable_gradient_checkpointing()
                yield
            finally:
                for module in off:
                    module.disable_gradient_checkpointing()


def check_unet(config) -> None:
    """Raise ValueError for a U-Net that is not made for plain text-to-image sampling."""
    if config.in_channels != config.out_channels:
        raise ValueError(
            "this U-Net takes more channels than it predicts, as for inpainting; "
            "only text-to-image works"
        )
    if config.time_cond_proj_dim is not None:
        raise ValueError(
            "guidance-distilled U-Nets (LCM) have no second branch and are not supported"
        )


def dynamic_shift(config, tokens: int, default_max: float) -> float:
    """mu of a flow schedule that shifts linearly with the number of image tokens."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", default_max)
    return base + (top - base) * (tokens - low) / (high - low)
