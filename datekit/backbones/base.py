"""The protocol that a text-to-image model fulfils to be sampled, and what all diffusers pipelines share."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import is_whole
from ..types import Conditioning

_LOCKS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


@dataclass(frozen=True)
class Recommended:
    """What a backbone is best sampled with when the user does not say."""

    num_steps: int = 50
    guidance_scale: float = 7.5
    solver: str = "ddim"  # "own": the pipeline's own scheduler


class Backbone(ABC):
    """A frozen text-to-image model: encode, predict, decode.

    `predict` and `decode` carry gradient to their tensor arguments; no weight does. `source` and `settings` are what
    `dk.load` takes to load it again; `source` is None for a wrapped pipeline.
    """

    name: str = "backbone"
    source: str | None = None
    settings: Mapping[str, Any] = MappingProxyType({})
    recommended: Recommended = Recommended()
    pooled: bool = False  # whether `Conditioning.pooled` is used
    one_batch: bool = True  # whether both branches of guidance run as one batch
    scheduler: Any
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def encode(
        self, prompts: Sequence[str | None], *, negative: bool = False
    ) -> Conditioning | None:
        """Prompts to text embeddings, sequence (B, L, D), in float32 at least, so that a small update is not rounded away.

        negative: they are negative prompts, None where the user gave none; the answer may then be None: no second branch.
        """

    @abstractmethod
    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """(B, C, H, W) latent at timestep t to the network's raw output; the embedding is cast to its precision here."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W), nominally in [0, 1], not clamped."""

    @abstractmethod
    def latent_shape(
        self, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int]:
        """(C, h, w) for an image size in pixels; ValueError if the size does not fit the model."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to latents (B, C, h, w), the inverse of `decode`; TypeError for a model that cannot."""
        raise TypeError(
            f"{self.name} cannot turn pictures into latents (its backbone defines no encode_images)"
        )

    def check_latents(self, latents: Tensor) -> None:
        """Raise ValueError for latents (B, C, h, w) of a size that the network cannot take."""
        return

    def image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """(H, W) of its pictures in pixels, the model's own by default; ValueError if a size does not fit the model."""
        with torch.no_grad():
            latents = torch.zeros(
                1, *self.latent_shape(height, width), device=self.device, dtype=self.dtype
            )
            return tuple(self.decode(latents).shape[-2:])

    def schedule(self, scheduler, num_steps: int, shape: tuple[int, int, int]) -> dict:
        """What `scheduler.set_timesteps` is to be told beside the number of steps, for latents of a shape (C, h, w)."""
        return {}

    def with_guidance(self, cond: Conditioning, guidance_scale: float) -> Conditioning:
        """The embedding as it is sampled without a second branch: models that were distilled from guidance are told its scale."""
        return cond

    def guide(self, out_u: Tensor, out_c: Tensor, w: float) -> Tensor:
        """The guided output of both branches, out_u + w (out_c - out_u)."""
        return out_u + w * (out_c - out_u)

    @property
    def lock(self) -> threading.RLock:
        """Held by whoever patches the network or turns on checkpointing, so that no other thread runs it meanwhile."""
        with _LOCKS_LOCK:
            return _LOCKS.setdefault(self, threading.RLock())

    @contextlib.contextmanager
    def checkpointing(self, on: bool = True) -> Iterator[None]:
        """Inside, activations are recomputed in backward instead of kept, where the model can."""
        yield

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, device={str(self.device)!r}, dtype={self.dtype})"
        )


class DiffusersBackbone(Backbone):
    """What the families share. Wrapping freezes the pipeline's weights and puts its modules in eval mode."""

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

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W), nominally in [0, 1], not clamped; carries gradient."""
        vae, config = self.vae, self.vae.config
        mean, std = self._latent_statistics(latents)
        if mean is not None:
            shifted = latents * std / config.scaling_factor + mean
        else:
            shifted = latents / config.scaling_factor + (
                getattr(config, "shift_factor", None) or 0.0
            )
        return vae.decode(shifted.to(vae.dtype), return_dict=False)[0] / 2 + 0.5

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to latents (B, C, h, w): the mode of the VAE's posterior, shifted and scaled; carries gradient."""
        vae, config = self.vae, self.vae.config
        latents = vae.encode((2 * images - 1).to(self.device, vae.dtype)).latent_dist.mode()
        mean, std = self._latent_statistics(latents)
        if mean is not None:
            scaled = (latents - mean) * config.scaling_factor / std
        else:
            scaled = (
                latents - (getattr(config, "shift_factor", None) or 0.0)
            ) * config.scaling_factor
        return scaled.to(self.dtype)

    def check_latents(self, latents: Tensor) -> None:
        """Raise ValueError for latents (B, C, h, w) of a size that the network cannot take."""
        self.latent_shape(*(side * self.pipe.vae_scale_factor for side in latents.shape[-2:]))

    def _latent_statistics(self, latents: Tensor) -> tuple:
        """The mean and standard deviation that the VAE's configuration names, (1, C, 1, 1) each, or (None, None)."""
        mean, std = (
            getattr(self.vae.config, name, None) for name in ("latents_mean", "latents_std")
        )
        if mean is None or std is None:
            return None, None
        return tuple(torch.tensor(v).to(latents).view(1, -1, 1, 1) for v in (mean, std))

    def image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """(H, W) of its pictures in pixels, the model's own by default; ValueError if a size does not fit the model."""
        _, h, w = self.latent_shape(height, width)
        return h * self.pipe.vae_scale_factor, w * self.pipe.vae_scale_factor

    def latent_shape(
        self, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int]:
        """(C, h, w) for an image size in pixels; ValueError if the size is no multiple of the latent's."""
        factor, (channels, size, patch) = self.pipe.vae_scale_factor, self._geometry()
        side = (size, size) if isinstance(size, int) else tuple(size)
        need = math.lcm(8, factor * patch)  # 8: diffusers' own pipelines ask for it
        pixels = (
            side[0] * factor if height is None else height,
            side[1] * factor if width is None else width,
        )
        for what, value in zip(("height", "width"), pixels, strict=True):
            if not is_whole(value) or value <= 0 or value % need:
                raise ValueError(
                    f"{what} must be a positive multiple of {need} pixels for {self.name}, got {value!r}"
                )
        return channels, int(pixels[0]) // factor, int(pixels[1]) // factor

    def _geometry(self) -> tuple[int, Any, int]:
        """Channels of the latent, its side (or sides) where the user names none, and the side of a patch."""
        config = self.network.config
        return config.in_channels, config.sample_size, getattr(config, "patch_size", 1)

    def tuned(
        self, *, channels_last: bool | None = None, compile: bool | str = False
    ) -> DiffusersBackbone:
        """Lays out and compiles network and decoder for speed, in place, and returns the backbone; updates stay the same up to rounding.

        channels_last: the memory layout of convolutions, by default on a GPU, not on a CPU (where the shipped model takes a tenth
        longer with it). compile: `torch.compile` of network and decoder, True or a backend's name; each new shape costs minutes once, so
        it pays for many pictures of one size.
        """
        if channels_last is None:
            channels_last = self.device.type == "cuda"
        if channels_last:
            for module in (self.network, self.vae):
                module.to(memory_format=torch.channels_last)
        if compile:
            options = {"backend": compile} if isinstance(compile, str) else {}
            self.network.compile(**options)
            self.vae.decoder.compile(**options)
        return self

    @contextlib.contextmanager
    def checkpointing(self, on: bool = True) -> Iterator[None]:
        """Inside, diffusers' gradient checkpointing is on for the network and the decoder; restored afterwards."""
        modules = [
            m
            for m in (self.network, self.vae)
            if getattr(m, "_supports_gradient_checkpointing", False)
        ]
        turned = [m for m in modules if on and not m.is_gradient_checkpointing]
        for module in turned:
            module.enable_gradient_checkpointing()
        try:
            yield
        finally:
            for module in turned:
                module.disable_gradient_checkpointing()


def check_unet(config) -> None:
    """Raise ValueError for a U-Net that is not made for plain text-to-image sampling."""
    if config.in_channels != config.out_channels:
        raise ValueError(
            "this U-Net takes more channels than it predicts (inpainting?); only text-to-image works"
        )
    if config.time_cond_proj_dim is not None:
        raise ValueError(
            "guidance-distilled U-Nets (LCM) have no second branch and are not supported"
        )


_held: ContextVar[list[str] | None] = ContextVar("_held", default=None)


@contextlib.contextmanager
def one_warning() -> Iterator[None]:
    """Inside, `warn_truncated` keeps what it has to say, for one warning at the end."""
    lines: list[str] = []
    token = _held.set(lines)
    try:
        yield
    finally:
        _held.reset(token)
    _warn(lines)


def warn_truncated(prompts: Sequence[str], *windows: tuple[Any, int]) -> None:
    """One warning with the words that do not fit an encoder's window, attributed to the caller outside datekit; windows: (tokenizer, limit)."""
    lines = []
    for tokenizer, limit in windows:
        lost = {}
        for prompt in dict.fromkeys(prompts):
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
            if len(ids) > limit:
                lost[prompt] = tokenizer.decode(ids[limit - 1 : -1]).strip()
        if lost:
            cut = "; ".join(f"...{words!r}" for words in lost.values())
            lines.append(
                f"the text encoder reads {limit} tokens; cut from the end of {len(lost)} prompt(s): {cut}"
            )
    held = _held.get()
    if held is None:
        _warn(lines)
    else:
        held += lines


def _warn(lines: Sequence[str]) -> None:
    if lines:
        package = __name__.split(".")[0]
        outside = lambda frame: (
            not frame.frame.f_globals.get("__name__", "").startswith((package, "contextlib"))
        )
        depth = next((n for n, frame in enumerate(inspect.stack(0), 1) if outside(frame)), 2)
        warnings.warn(" And ".join(dict.fromkeys(lines)), stacklevel=depth)


def clip_words(tokenizer, prompts: Sequence[str], length: int) -> tuple[tuple[str, ...], ...]:
    """What each position of a CLIP encoder holds, for people: words, '<start>', '<end>' once, then '<pad>'."""
    rows = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=length
    ).input_ids
    return tuple(_named(tokenizer, row) for row in rows)


def t5_words(tokenizer, prompts: Sequence[str], length: int) -> tuple[tuple[str, ...], ...]:
    """What each position of a T5 encoder holds, for people: words, '<end>', then '<pad>'."""
    rows = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=length
    ).input_ids
    special = {tokenizer.eos_token_id: "<end>", tokenizer.pad_token_id: "<pad>"}
    read = lambda row: zip(row, tokenizer.convert_ids_to_tokens(row), strict=True)
    return tuple(
        tuple(special.get(i, piece.replace("\u2581", "") or "_") for i, piece in read(row))
        for row in rows
    )


def t5_mask(tokenizer, prompts: Sequence[str], length: int) -> Tensor:
    """(B, length) bool: where a T5 encoder read something."""
    batch = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    return batch.attention_mask.bool()


def dynamic_shift(config, tokens: int, default_max: float) -> float:
    """mu of a flow schedule that shifts with the number of image tokens: linear between two resolutions."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", default_max)
    return base + (top - base) * (tokens - low) / (high - low)


def _named(tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    words, ended = [], False
    for token, piece in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if token == tokenizer.bos_token_id and not words:
            words.append("<start>")
        elif token == tokenizer.eos_token_id and not ended:
            words.append("<end>")
            ended = True
        else:
            words.append("<pad>" if ended else piece.replace("</w>", ""))
    return tuple(words)


@contextlib.contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """Inside, these libraries log nothing below errors (what they would say here, `warn_truncated` says better)."""
    loggers = [logging.getLogger(name) for name in libraries]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
