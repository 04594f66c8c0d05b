"""The protocol that a text-to-image model fulfils to be sampled, and what all diffusers pipelines share."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..types import Conditioning


@dataclass(frozen=True)
class Recommended:
    """What a backbone is best sampled with when the user does not say."""

    num_steps: int = 50
    guidance_scale: float = 7.5
    solver: str | None = "ddim"  # None: the pipeline's own scheduler


class Backbone(ABC):
    """A frozen text-to-image model: encode, predict, decode.

    `predict` and `decode` carry gradient to their tensor arguments; no weight does. `source` is what `dk.load`
    takes to load it again, None for a wrapped pipeline.
    """

    name: str = "backbone"
    source: str | None = None
    recommended: Recommended = Recommended()
    scheduler: Any
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def encode(self, prompts: Sequence[str | None], *, negative: bool = False) -> Conditioning:
        """Prompts to text embeddings, sequence (B, L, D), in float32 at least, so that a small update is not rounded away.

        negative: they are negative prompts, None where the user gave none.
        """

    @abstractmethod
    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """(B, C, H, W) latent at timestep t to the network's raw output; the embedding is cast to its precision here."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W), nominally in [0, 1], not clamped."""

    @abstractmethod
    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, h, w) for an image size in pixels; ValueError if the size does not fit the model."""

    @contextlib.contextmanager
    def checkpointing(self, on: bool = True) -> Iterator[None]:
        """Inside, activations are recomputed in backward instead of kept, where the model can."""
        yield

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, device={str(self.device)!r}, dtype={self.dtype})"


class DiffusersBackbone(Backbone):
    """What the families share. Wrapping freezes the pipeline's weights and puts its modules in eval mode."""

    def __init__(self, pipe, *, name: str | None = None, source: str | None = None, recommended=None) -> None:
        self.pipe = pipe
        self.name = name or type(pipe).__name__
        self.source = source
        self.recommended = recommended or self.recommended
        for module in self._modules():
            module.requires_grad_(False).eval()

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
    @abstractmethod
    def network(self) -> torch.nn.Module:
        """The denoising network."""

    @property
    def dtype(self) -> torch.dtype:
        """The network's precision, which latents and embeddings share."""
        return self.network.dtype

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W), nominally in [0, 1], not clamped; carries gradient."""
        config = self.pipe.vae.config
        shifted = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        return self.pipe.vae.decode(shifted.to(self.pipe.vae.dtype), return_dict=False)[0] / 2 + 0.5

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, h, w) for an image size in pixels; ValueError if the size is no multiple of the latent's."""
        config, factor = self.network.config, self.pipe.vae_scale_factor
        size, channels = config.sample_size, config.in_channels
        side = (size, size) if isinstance(size, int) else tuple(size)
        pixels = (side[0] * factor if height is None else height, side[1] * factor if width is None else width)
        for what, value in zip(("height", "width"), pixels, strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0 or value % 8 or value % factor:
                need = max(8, factor)
                raise ValueError(f"{what} must be a positive multiple of {need} pixels for {self.name}, got {value!r}")
        return channels, pixels[0] // factor, pixels[1] // factor

    @contextlib.contextmanager
    def checkpointing(self, on: bool = True) -> Iterator[None]:
        """Inside, diffusers' gradient checkpointing is on for the network and the decoder; restored afterwards."""
        modules = [m for m in (self.network, self.pipe.vae) if getattr(m, "_supports_gradient_checkpointing", False)]
        turned = [m for m in modules if on and not m.is_gradient_checkpointing]
        for module in turned:
            module.enable_gradient_checkpointing()
        try:
            yield
        finally:
            for module in turned:
                module.disable_gradient_checkpointing()


def warn_truncated(tokenizer, prompts: Sequence[str]) -> None:
    """One warning with the words that do not fit the text encoder's window, attributed to the caller outside datekit."""
    limit = tokenizer.model_max_length
    lost = {}
    for prompt in dict.fromkeys(prompts):
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(ids) > limit:
            lost[prompt] = tokenizer.decode(ids[limit - 1 : -1]).strip()
    if lost:
        cut = "; ".join(f"...{words!r}" for words in lost.values())
        package = __name__.split(".")[0]
        depth = next((n for n, frame in enumerate(inspect.stack(0), 1) if not frame.frame.f_globals.get("__name__", "").startswith(package)), 2)
        warnings.warn(f"the text encoder reads {limit} tokens; cut from the end of {len(lost)} prompt(s): {cut}", stacklevel=depth)


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
