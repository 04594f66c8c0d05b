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
from torch import Tensor

from .. import noise
from ..backbones import SHIPPED
from ..errors import unknown
from ..files import shipped
from ..registry import Registered, entries, option
from ..solvers import Solver
from .base import Reward, as_reward

Decode = Callable[[Tensor], Tensor]

TINY = {  # on the hub, by the class of the pipeline and the channels of its latents
    ("StableDiffusionPipeline", 4): "madebyollin/taesd",
    ("PixArtAlphaPipeline", 4): "madebyollin/taesd",
    ("StableDiffusionXLPipeline", 4): "madebyollin/taesdxl",
    ("PixArtSigmaPipeline", 4): "madebyollin/taesdxl",
    ("StableDiffusion3Pipeline", 16): "madebyollin/taesd3",
    ("FluxPipeline", 16): "madebyollin/taef1",
}
CAPTIONS = (
    "a red car on a green meadow",
    "a portrait of an old woman",
    "a black cat on a yellow sofa",
    "a city street at night, neon lights",
    "a bowl of fruit on a wooden table",
    "snowy mountains under a blue sky",
    "a purple flower, close up",
    "a white boat on the sea",
)
SHAPES_CAPTIONS = (
    "a red square right of a cyan square",
    "a purple triangle left of a yellow star",
    "a blue circle above a yellow circle",
    "a green triangle left of a yellow square",
    "a yellow triangle right of a purple circle",
    "a cyan star right of a purple square",
    "a green circle right of a yellow circle",
    "a yellow square right of a purple square",
)

_fitted: WeakKeyDictionary = WeakKeyDictionary()  # backbone -> decoder -> what was fitted or loaded


class Decoder(Registered, ABC):
    """A way to show a reward its pictures; `label` is the word that asks for it."""

    kind: ClassVar[str] = "decoder"

    @abstractmethod
    def fitted(self, backbone, reward: Reward) -> Decode:
        """The function from latents to images for a backbone, and for what a reward takes."""

    def _once(self, backbone, make: Callable) -> Any:
        """What `make` gives for the backbone, made once and kept."""
        known = _fitted.setdefault(backbone, {})
        if self not in known:
            known[self] = make(backbone)
        return known[self]


@dataclass(frozen=True)
class Resized(Decoder):
    """The latent made smaller before the backbone decodes it."""

    label: ClassVar[str] = "resized"
    scale: float | None = option(
        None,
        help="The share of the latent's sides that is left; by default what the reward's network "
        "takes anyway, and all of it where the reward does not say.",
        range=(0.1, 1.0),
    )

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale <= 1:
            raise ValueError(f"scale must be above 0 and at most 1, got {self.scale!r}")

    def fitted(self, backbone, reward: Reward) -> Decode:
        """The backbone's decoder on the smaller latent."""

        def decode(latents: Tensor) -> Tensor:
            scale = self.scale or _fitting_scale(backbone, reward, latents)
            if scale == 1:
                return backbone.decode(latents)
            size = [max(1, round(side * scale)) for side in latents.shape[-2:]]
            small = F.interpolate(latents.float(), size, mode="bilinear", antialias=True)
            return backbone.decode(small.to(latents.dtype))

        return decode


@dataclass(frozen=True)
class Linear(Decoder):
    """A linear map from each latent cell and its neighbours to the pixels it becomes.

    image = pixel_shuffle(conv_{side x side}(latent)), fitted to the backbone's own decoder by least
    squares, once per backbone, over the pictures of a few short runs without a method.
    """

    label: ClassVar[str] = "linear"
    captions: tuple[str, ...] | None = option(
        None, help="What the pictures show, by default some common things."
    )
    steps: int = option(10, help="Steps of each run.", range=(2, 50))
    side: int = option(3, help="Cells on a side of the neighbourhood, an odd number.", range=(1, 7))
    ridge: float = option(
        1e-4, help="What is added to the diagonal of the normal equations, a share of its mean."
    )

    def __post_init__(self) -> None:
        if self.side % 2 == 0:
            raise ValueError(f"side must be odd, so that a cell is in the middle; got {self.side}")

    def fitted(self, backbone, reward: Reward | None = None) -> Decode:
        """The map; it is fitted when it is first used with the backbone."""
        weight, factor = self._once(backbone, self.fit)
        return lambda latents: apply(weight.to(latents.device), latents, factor)

    @torch.no_grad()
    def fit(self, backbone) -> tuple[Tensor, int]:
        """The map, (3 factor^2, C side^2 + 1), float32 at least, and the factor.

        The factor is that between the sides of image and latent.
        """
        latents = self.draw(backbone)
        squares: Any = 0.0
        products: Any = 0.0
        for row in latents.split(1):
            image = backbone.decode(row).double()
            factor = image.shape[-1] // row.shape[-1]
            cells = F.unfold(_padded(row.double(), self.side), self.side)[0]
            x = torch.cat([cells, torch.ones_like(cells[:1])]).T
            y = F.pixel_unshuffle(image, factor)[0].flatten(1).T
            squares, products = squares + x.T @ x, products + x.T @ y
        squares.diagonal().add_(self.ridge * squares.diagonal().mean())
        exact = torch.promote_types(latents.dtype, torch.float32)
        return torch.linalg.solve(squares, products).T.to(exact), factor

    def draw(self, backbone) -> Tensor:
        """The latents it is fitted to: of a run a caption, some x0bar and the last latent."""
        captions = self.captions or _captions(backbone)
        seeds = range(len(captions))
        runs = [_latents_of_run(backbone, captions[seed], seed, self.steps) for seed in seeds]
        return torch.cat(runs)


@dataclass(frozen=True)
class Tiny(Decoder):
    """diffusers' `AutoencoderTiny`."""

    label: ClassVar[str] = "tiny"
    source: str | None = option(
        None,
        help="Hub id or folder; by default what ships for the shapes world, or is published.",
    )

    def fitted(self, backbone, reward: Reward | None = None) -> Decode:
        """Its decoder, loaded once. Raises ValueError where none is published for the backbone."""
        return self._once(backbone, self._load)

    def _load(self, backbone) -> Decode:
        from diffusers import AutoencoderTiny

        tiny = AutoencoderTiny.from_pretrained(self.source or _published(backbone))
        return _of_module(tiny.to(backbone.device).float())


@dataclass(frozen=True, repr=False)
class DecodedWith(Reward):
    """A reward that a gradient reaches through a cheaper decoder. Made by `through`.

    Of pictures it is the reward itself.
    """

    reward: Reward
    through: Decoder | Decode

    @property
    def name(self) -> str:
        """The reward's own, and through what it sees."""
        return f"{self.reward.name} through {getattr(self.through, 'name', repr(self.through))}"

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The reward of pictures, (B,)."""
        return self.with_terms(images, prompts)[0]

    def with_terms(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict]:
        """The reward's own."""
        return self.reward.with_terms(images, prompts)

    def decoder(self, backbone) -> Decode:
        """What makes the reward's pictures, (B, 3, H, W), of latents (B, C, h, w).

        Raises ValueError for a backbone that the decoder does not fit.
        """
        if isinstance(self.through, Decoder):
            return self.through.fitted(backbone, self.reward)
        return self.through

    def check(self, backbone) -> None:
        """Fit or load the decoder before anything is sampled."""
        self.decoder(backbone)


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
        return DecodedWith(reward, words[decoder]())
    if isinstance(decoder, torch.nn.Module):
        return DecodedWith(reward, _of_module(decoder))
    if isinstance(decoder, type) or not (isinstance(decoder, Decoder) or callable(decoder)):
        raise TypeError(
            f"a decoder is a word, a module, or a function from latents to images, got {decoder!r}"
        )
    return DecodedWith(reward, decoder)


def apply(weight: Tensor, latents: Tensor, factor: int) -> Tensor:
    """The linear map (3 factor^2, C side^2 + 1) of latents (B, C, h, w); carries gradient.

    Gives images (B, 3, factor h, factor w).
    """
    latents = latents.to(weight.dtype)
    side = round(((weight.shape[1] - 1) / latents.shape[1]) ** 0.5)
    kernel = weight[:, :-1].view(len(weight), latents.shape[1], side, side)
    pixels = F.conv2d(_padded(latents, side), kernel, weight[:, -1])
    return F.pixel_shuffle(pixels, factor)


def _fitting_scale(backbone, reward: Reward, latents: Tensor) -> float:
    """The share of the latent's sides whose picture is as large as the reward takes it."""
    if reward.size is None:
        return 1.0
    factor = getattr(getattr(backbone, "pipe", None), "vae_scale_factor", None)
    sides = [None, None] if factor is None else [side * factor for side in latents.shape[-2:]]
    height, width = backbone.image_size(*sides)
    return min(1.0, max(reward.size[0] / height, reward.size[1] / width))


@torch.no_grad()
def _latents_of_run(backbone, caption: str, seed: int, steps: int) -> Tensor:
    """Every second x0bar and the last latent of a run without a method."""
    shape, w = backbone.latent_shape(), backbone.recommended.guidance_scale
    solver = Solver(
        backbone.scheduler,
        steps,
        backbone.recommended.solver,
        device=backbone.device,
        options=lambda scheduler, count: backbone.schedule(scheduler, count, shape),
    )
    cond, uncond = backbone.encode([caption]), backbone.encode([""], negative=True)
    cond = backbone.with_guidance(cond, w) if uncond is None else cond
    latents = noise.initial([seed], shape, backbone.dtype)
    xt = latents.to(backbone.device) * solver.init_noise_sigma
    exact = torch.promote_types(xt.dtype, torch.float32)
    kept, solver_state = [], {}
    for i, t in enumerate(solver.timesteps):
        scaled = solver.scale_input(xt, i)
        out = backbone.predict(scaled, t, cond)
        if uncond is not None:
            out = backbone.guide(backbone.predict(scaled, t, uncond), out, w)
        if i % 2:
            kept.append(solver.x0bar(out.to(exact), xt.to(exact), i))
        xt, solver_state = solver.step(out, xt, i, solver_state, [seed])
    return torch.cat([*kept, xt.to(exact)])


def _captions(backbone) -> tuple[str, ...]:
    """What the models of the shapes world have seen, or common things."""
    return CAPTIONS if _shapes_folder(backbone) is None else SHAPES_CAPTIONS


def _padded(latents: Tensor, side: int) -> Tensor:
    """Latents whose cells at the edge have neighbours too: their own likeness."""
    return F.pad(latents, [side // 2] * 4, mode="replicate")


def _of_module(module: torch.nn.Module) -> Decode:
    module = module.requires_grad_(False).eval()
    if type(module).__name__ != "AutoencoderTiny":
        return module
    shift, scale = module.config.get("shift_factor", 0.0) or 0.0, module.config.scaling_factor

    def decode(latents: Tensor) -> Tensor:
        latents = (latents / scale + shift).to(module.dtype)
        return module.decode(latents, return_dict=False)[0] / 2 + 0.5

    decode.name = "AutoencoderTiny"
    return decode


def _published(backbone) -> str:
    """Where the small autoencoder is: beside a model of the shapes world, or on the hub."""
    folder = _shapes_folder(backbone)
    if folder and (folder.parent / "tiny").is_dir():
        return str(folder.parent / "tiny")
    kind = type(getattr(backbone, "pipe", None)).__name__
    source = TINY.get((kind, backbone.latent_shape()[0]))
    if source is None:
        raise ValueError(
            f"no small autoencoder is published for {backbone.name}; take decoder='linear'"
        )
    return source


def _shapes_folder(backbone) -> Path | None:
    """The folder of a model of the shapes world, shipped or trained; None for another."""
    if not backbone.source:
        return None
    own = backbone.source in SHIPPED
    folder = shipped(SHIPPED[backbone.source]) if own else Path(backbone.source)
    return folder if (folder / "datekit.json").is_file() else None
