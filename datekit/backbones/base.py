"""The protocol of a text-to-image model, and what all pipelines of diffusers share."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import check_frozen
from ..registry import Registered
from ..schedulers import OWN, is_distilled
from ..types import Conditioning
from .latents import cells_of, linear_shift, statistics_of
from .patching import lock_of, patching
from .text import Window, positions, quiet, unchanged, warn_truncated, warn_unknown

Prompts = Sequence[str | None]
Shape = tuple[int, int, int]  # (C, h, w)


@dataclass(frozen=True)
class Recommended:
    """What a backbone is best sampled with when the user does not say."""

    num_steps: int = 50
    guidance_scale: float = 7.5
    solver: str = "ddim"  # "own": the pipeline's own scheduler


class Backbone(ABC, Registered):
    """A frozen text-to-image model with three verbs: encode, predict, decode.

    `predict` and `decode` carry gradient to their tensor arguments; no weight does.
    """

    kind = "backbone"
    pipelines: ClassVar[tuple[str, ...]] = ()  # of diffusers, which it wraps
    load_settings: ClassVar[tuple[str, ...]] = ()  # keywords that it takes from `dk.load`
    models: ClassVar[Mapping[str, Mapping]] = {}  # that it makes itself, with the keywords to do so

    name: str = "backbone"
    source: str | None = None  # what `dk.load` takes to load it again; None where nothing does
    settings: Mapping[str, Any] = MappingProxyType({})  # ... and the keywords
    recommended: Recommended = Recommended()
    pooled: bool = False  # whether `Conditioning.pooled` is used
    tiny: str | None = None  # hub id or folder of a small autoencoder for the same latents
    two_branches: bool = True  # of guidance, where nobody gave a negative prompt
    distilled: bool = False  # to a few steps without guidance, which a scale below 1 is too
    one_batch: bool = True  # whether both branches of guidance run as one batch
    unguided_scale: float = 1.0  # the guidance_scale of its pipeline's call that is w = 1
    factor: int  # pixels on a side for each cell of the latent
    scheduler: Any  # one of diffusers, read for its configuration only
    device: torch.device
    dtype: torch.dtype  # of latents and of what the network is fed

    @abstractmethod
    def encode(self, prompts: Prompts, *, negative: bool = False) -> Conditioning | None:
        """Prompts to embeddings, (B, L, D), in float32 at least, so that no small update is lost.

        A missing negative prompt is None. The answer to those may be None: no second branch.
        """

    @abstractmethod
    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The network's raw output at a latent, both (B, C, h, w); casts the embedding."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W), nominally in [0, 1], not clamped."""

    @abstractmethod
    def latent_shape(self, height: int | None = None, width: int | None = None) -> Shape:
        """(C, h, w) for an image size in pixels. Raises ValueError for a size that does not fit."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to latents (B, C, h, w), the inverse of `decode`."""
        raise NotImplementedError(f"{self.name} cannot turn pictures into latents")

    def image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """(H, W) of its pictures in pixels. Raises ValueError for a size that does not fit."""
        _, h, w = self.latent_shape(height, width)
        return h * self.factor, w * self.factor

    def schedule(self, scheduler: Any, num_steps: int, shape: Shape) -> dict:
        """What `scheduler.set_timesteps` is told beside `num_steps`, for latents (C, h, w)."""
        return {}

    def with_guidance(self, cond: Conditioning, guidance_scale: float) -> Conditioning:
        """The embedding without a second branch; a distilled model is told the scale here."""
        return cond

    def guide(self, out_u: Tensor, out_c: Tensor, w: float) -> Tensor:
        """The guided output of both branches, out_u + w (out_c - out_u)."""
        return out_u + w * (out_c - out_u)

    @property
    def lock(self) -> threading.RLock:
        """The network's own lock; who patches it holds this, so that no other thread runs it."""
        return lock_of(getattr(self, "network", self))

    @contextlib.contextmanager
    def patching(self, on: bool = True) -> Iterator[None]:
        """Inside, the network's lock is held; on: and it is this thread's, see `patching`."""
        network = getattr(self, "network", None)
        own = on and isinstance(network, torch.nn.Module)
        with self.lock, patching(network) if own else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def checkpointing(self, on: bool = True) -> Iterator[None]:
        """Inside, a model that can do it recomputes activations in the backward pass."""
        yield

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, device='{self.device}', dtype={self.dtype})"


class DiffusersBackbone(Backbone):
    """What the families share. Wrapping freezes the pipeline's weights and sets eval mode.

    A family says which windows its text encoders read, how the pipeline encodes texts, and how the
    network is called. Its `load_settings` are attributes that a user may set.
    """

    text_length: int  # of the language model, in positions, where there is one
    even_sigmas: bool = False  # whether Euler is told sigmas, which are even before their shift
    max_shift: float = 1.15  # of `schedule`, where the scheduler's configuration does not say
    captions: bool = False  # whether the captions of the shapes world are all that it has learnt
    exact_vae: torch.nn.Module | None = None  # decodes instead of the pipeline's own

    def __init__(
        self,
        pipe: Any,
        *,
        name: str | None = None,
        recommended: Recommended | None = None,
        tiny: str | None = None,
        **settings: Any,
    ) -> None:
        self._pipe, self._wrapped, self.factor = pipe, pipe.components, pipe.vae_scale_factor
        self.name = name or type(pipe).__name__
        few = Recommended(4, 1.0, OWN) if self.distilled else self.recommended
        self.recommended, self.tiny = recommended or few, tiny or self.tiny
        if unknown := settings.keys() - set(self.load_settings):
            raise TypeError(f"{type(self).__name__} has no setting {', '.join(sorted(unknown))}")
        for setting, value in settings.items():
            setattr(self, setting, value)
        for module in self._modules():
            module.requires_grad_(False).eval()

    @property
    def pipe(self) -> Any:
        """The pipeline. Raises RuntimeError where a part of it was exchanged since `dk.wrap`."""
        for name, part in self._wrapped.items():
            if getattr(self._pipe, name, None) is not part:
                changed = f"the {name} of {self.name} was exchanged after dk.wrap"
                raise RuntimeError(f"{changed}; wrap the pipeline again, so that all of it is new")
        return self._pipe

    @property
    def vae(self) -> torch.nn.Module:
        """The autoencoder, the pipeline's own or an exact copy of it."""
        own = self.pipe.vae
        return self.exact_vae or own

    def _modules(self) -> list[torch.nn.Module]:
        return [m for m in self.pipe.components.values() if isinstance(m, torch.nn.Module)]

    def windows(self) -> list[Window]:
        """What the text encoders read, in the order of the positions of the sequence."""
        return [Window(self.pipe.tokenizer, self.text_length, padded=True)]

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        """The pipeline's own encoding, without mask and words."""

    def spell(self, text: str, tokenizer: Any) -> str:
        """A text as a tokenizer reads it, with all vectors of a textual inversion."""
        return getattr(self.pipe, "maybe_convert_prompt", unchanged)(text, tokenizer)

    def encode(self, prompts: Prompts, *, negative: bool = False) -> Conditioning | None:
        """The pipeline's own text encoding; a missing prompt is "". Warns of words that are cut.

        Raises RuntimeError for a pipeline that is not frozen any more.
        """
        check_frozen(self._modules(), self.name)
        if negative and not self.two_branches and all(prompt is None for prompt in prompts):
            return None
        texts, windows = [prompt or "" for prompt in prompts], self.windows()
        with self.lock, quiet():  # tokenizers are not made for several threads
            warn_truncated(texts, windows, self.spell)
            if self.captions:
                warn_unknown(texts, windows[0].tokenizer)
            cond = self.encode_texts(texts)
            mask, tokens = positions(texts, windows, self.spell)
        mask = None if mask is None else mask.to(cond.sequence.device)
        pooled = None if cond.pooled is None else self.exact(cond.pooled)
        sequence = self.exact(cond.sequence)
        return cond.replace(sequence=sequence, pooled=pooled, mask=mask, tokens=tokens)

    @property
    def scheduler(self) -> Any:
        return self.pipe.scheduler

    @property
    def distilled(self) -> bool:
        return self.two_branches and is_distilled(self.scheduler)

    @property
    def device(self) -> torch.device:
        return self.pipe._execution_device

    @property
    def noise_dtype(self) -> torch.dtype:
        """The precision in which the pipeline draws its first noise."""
        return self.dtype

    @property
    def network(self) -> torch.nn.Module:
        """The denoising network, a U-Net or a transformer."""
        return getattr(self.pipe, "unet", None) or self.pipe.transformer

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    def exact(self, x: Tensor) -> Tensor:
        """A tensor in the network's precision, or in float32 if that is higher."""
        return x.to(torch.promote_types(self.dtype, torch.float32))

    def decode(self, latents: Tensor) -> Tensor:
        mean, std, scale = statistics_of(self.vae, latents)
        return self._decode((latents * std / scale + mean).to(self.vae.dtype)) / 2 + 0.5

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents, return_dict=False)[0]

    def encode_images(self, images: Tensor) -> Tensor:
        """The mode of the autoencoder's posterior, shifted and scaled; carries gradient."""
        latents = self._encode((2 * images - 1).to(self.device, self.vae.dtype))
        mean, std, scale = statistics_of(self.vae, latents)
        return ((latents - mean) * scale / std).to(self.dtype)

    def _encode(self, images: Tensor) -> Tensor:
        return self.vae.encode(images).latent_dist.mode()

    def call_arguments(self, cond: Conditioning) -> dict[str, Any]:
        """An embedding by the names that the pipeline's own call has for its parts."""
        told = {"prompt_embeds": cond.sequence.to(self.dtype)}
        if cond.pooled is not None:
            told["pooled_prompt_embeds"] = cond.pooled.to(self.dtype)
        if more := cond.extras.keys() - {"attention"}:
            raise ValueError(f"{self.name} has {', '.join(more)} besides: use dk.Sampler")
        if "attention" in cond.extras:
            told["prompt_attention_mask"] = cond.extras["attention"]
        return told

    def pack(self, xt: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the pipeline's own call takes them."""
        return xt

    def unpack(self, latents: Tensor, shape: Sequence[int]) -> Tensor:
        """Latents of the pipeline's own loop as (B, C, h, w), which is their shape here."""
        return latents

    def geometry(self) -> tuple[int, Any, int]:
        """Channels of the latent, its side or sides by default, and the side of a patch."""
        config = self.network.config
        return config.in_channels, config.sample_size, getattr(config, "patch_size", 1)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> Shape:
        factor, (channels, size, patch) = self.factor, self.geometry()
        sides = (size, size) if isinstance(size, int) else size
        given = zip(("height", "width"), (height, width), sides, strict=True)
        return channels, *[cells_of(*side, factor, patch, self.name) for side in given]

    def schedule(self, scheduler: Any, num_steps: int, shape: Shape) -> dict:
        """The shift mu, linear in the number of image tokens, and sigmas, where they are wanted."""
        config, patch, told = scheduler.config, self.geometry()[2], {}
        if self.even_sigmas and not config.get("use_flow_sigmas"):
            told["sigmas"] = np.linspace(1.0, 1 / num_steps, num_steps)
        if not config.get("use_dynamic_shifting"):
            return told
        tokens = (shape[1] // patch) * (shape[2] // patch)
        return told | {"mu": linear_shift(config, tokens, self.max_shift)}

    def tune(self, *, compile: bool | str = False) -> DiffusersBackbone:
        """The same backbone, changed in place for speed: on a GPU in the layout of convolutions.

        compile: whether network and decoder are compiled by torch, or by which backend. Each new
        shape then costs minutes once, so it pays for many pictures of one size. Under a method that
        patches the network (EBCA, SoftREPA) the network runs as if it had not been compiled.
        """
        layers = [*self.network.modules(), *self.vae.modules()]
        for layer in layers if self.device.type == "cuda" else ():
            if isinstance(layer, torch.nn.Conv2d):
                layer.to(memory_format=torch.channels_last)
        if compile:
            torch._dynamo.config.skip_nnmodule_hook_guards = False  # so that it sees a user's hooks
            for module in (self.network, self.vae.decoder):
                module.compile(backend="inductor" if compile is True else compile)
        return self

    @contextlib.contextmanager
    def checkpointing(self, on: bool = True) -> Iterator[None]:
        """Inside, diffusers' gradient checkpointing is on for network and decoder."""
        with self.lock, contextlib.ExitStack() as stack:
            for module in (self.network, self.vae) if on else ():
                if module._supports_gradient_checkpointing and not module.is_gradient_checkpointing:
                    stack.callback(module.disable_gradient_checkpointing)
                    module.enable_gradient_checkpointing()
            yield
