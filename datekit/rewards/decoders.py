"""Cheaper decoders for the reward only: an approximate, fast update. Pictures are decoded by the backbone as ever.

    dk.DATE(reward, decoder="linear")            # off by default; what it costs in accuracy: `datekit bench --decoders`

A decoder here is a function of latents (B, C, h, w) and the backbone to images (B, 3, H, W), nominally in [0, 1], with gradient:
"resized" (`Resized`), "linear" (`Linear`), "tiny" (`Tiny`), or any module or function of the latents alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unknown, whole
from .base import Reward, as_reward

TINY = {  # published small autoencoders, by the class of the pipeline and the channels of its latents
    ("StableDiffusionPipeline", 4): "madebyollin/taesd", ("PixArtAlphaPipeline", 4): "madebyollin/taesd",
    ("StableDiffusionXLPipeline", 4): "madebyollin/taesdxl", ("PixArtSigmaPipeline", 4): "madebyollin/taesdxl",
    ("StableDiffusion3Pipeline", 16): "madebyollin/taesd3", ("FluxPipeline", 16): "madebyollin/taef1",
}  # fmt: skip
CAPTIONS = (
    "a red car on a green meadow", "a portrait of an old woman", "a black cat on a yellow sofa", "a city street at night, neon lights",
    "a bowl of fruit on a wooden table", "snowy mountains under a blue sky", "a purple flower, close up", "a white boat on the sea",
)  # fmt: skip


@dataclass(frozen=True)
class Resized:
    """The latent made smaller before the backbone decodes it.

    scale: of its sides; None for the size that the reward's network takes anyway (1 where the reward does not say, or takes no less).
    """

    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and (
            isinstance(self.scale, bool)
            or not isinstance(self.scale, (int, float))
            or not 0 < self.scale <= 1
        ):
            raise ValueError(
                f"scale is a share of the latent's sides, above 0 and up to 1, got {self.scale!r}"
            )

    def fitted(self, backbone, reward) -> Callable[[Tensor], Tensor]:
        """The decoder of a backbone, for what a reward takes."""

        def decode(latents: Tensor) -> Tensor:
            scale = self.scale
            if scale is None:
                wanted, image = (
                    getattr(reward, "size", None),
                    backbone.image_size(*_pixels(backbone, latents)),
                )
                scale = (
                    1.0
                    if wanted is None
                    else min(1.0, max(w / s for w, s in zip(wanted, image, strict=True)))
                )
            if scale == 1:
                return backbone.decode(latents)
            size = [max(1, round(side * scale)) for side in latents.shape[-2:]]
            return backbone.decode(
                F.interpolate(latents.float(), size, mode="bilinear", antialias=True).to(
                    latents.dtype
                )
            )

        return decode


@dataclass(frozen=True)
class Linear:
    """A linear map from each latent cell and its neighbours to the pixels it becomes, fitted to the backbone's own decoder.

    Least squares over the pictures of a few short plain runs, once per backbone: image = pixel_shuffle(conv_{side x side}(latent)).
    captions: what they show, some common things by default (of the shapes world, its own captions); seed: of the noise; steps: of
    each run; side: of the neighbourhood, odd; ridge: added to the normal equations' diagonal, as a share of its mean.
    """

    captions: tuple[str, ...] | None = None
    seed: int = 0
    steps: int = 10
    side: int = 3
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        if whole("side", self.side, 1) % 2 == 0:
            raise ValueError(
                f"side is odd, so that a cell is in the middle of its neighbourhood; got {self.side}"
            )
        whole("steps", self.steps, 2)

    def fitted(self, backbone, reward=None) -> Callable[[Tensor], Tensor]:
        """The decoder of a backbone; fitted at its first use and remembered by the backbone."""
        known = backbone.__dict__.setdefault("_linear_decoders", {})
        if self not in known:
            known[self] = self.fit(backbone)
        weight, factor = known[self]
        return lambda latents: apply(weight.to(latents.device), latents, factor)

    def fit(self, backbone) -> tuple[Tensor, int]:
        """The map, (3 factor^2, C side^2 + 1), float32 at least, and the factor between the sides of image and latent."""
        latents = self.draw(backbone)
        squares: Any = 0.0
        products: Any = 0.0
        for row in latents.split(1):
            with torch.no_grad():
                image = backbone.decode(row).double()
            factor = image.shape[-1] // row.shape[-1]
            x = _neighbours(row.double(), self.side).flatten(2).transpose(1, 2).flatten(0, 1)
            y = F.pixel_unshuffle(image, factor).flatten(2).transpose(1, 2).flatten(0, 1)
            squares, products = squares + x.T @ x, products + x.T @ y
        squares = squares + self.ridge * squares.diagonal().mean() * torch.eye(
            len(squares), dtype=squares.dtype, device=squares.device
        )
        exact = torch.promote_types(latents.dtype, torch.float32)
        return torch.linalg.solve(squares, products).T.to(exact), factor

    def draw(self, backbone) -> Tensor:
        """The latents it is fitted to, the x0bar of every second step and the last latent of plain runs, one a caption."""
        from ..sampler import Sampler

        captions = self.captions or _captions(backbone)
        found = []
        with torch.random.fork_rng():
            for n, caption in enumerate(captions):
                run = Sampler(backbone, num_steps=self.steps).start(
                    [caption], seeds=[self.seed * 1000 + n]
                )
                for info in run:
                    if info.i % 2:
                        found.append(info.x0bar)
                found.append(run.state.xt.to(found[-1].dtype))
        return torch.cat(found).detach()


@dataclass(frozen=True)
class Tiny:
    """diffusers' `AutoencoderTiny`; source: hub id or folder, by default what ships for the shapes world and else is published."""

    source: str | None = None

    def fitted(self, backbone, reward=None) -> Callable[[Tensor], Tensor]:
        """The decoder of a backbone, loaded once. Raises ValueError where none is published for it."""
        known = backbone.__dict__.setdefault("_tiny_decoders", {})
        if self not in known:
            from diffusers import AutoencoderTiny

            source = self.source or _published(backbone)
            try:
                tiny = AutoencoderTiny.from_pretrained(source)
            except OSError as error:
                raise OSError(
                    f"no small autoencoder could be had from {source}; a folder that holds one is given as "
                    f"decoder=dk.decoders.Tiny(folder). ({str(error).splitlines()[0]})"
                ) from error
            if (theirs := tiny.config.latent_channels) != (ours := backbone.latent_shape()[0]):
                raise ValueError(
                    f"the small autoencoder of {source} takes latents of {theirs} channels, those of {backbone.name} have {ours}"
                )
            known[self] = _module(tiny.to(backbone.device).float())
        return known[self]


DECODERS = {"resized": Resized, "linear": Linear, "tiny": Tiny}


class DecodedWith(Reward):
    """A reward that a gradient reaches through a cheaper decoder; of pictures it is the reward itself. Made by `through`."""

    def __init__(self, reward: Reward | Callable, decoder: Any) -> None:
        self.reward, self.kind = as_reward(reward), decoder
        self.name = f"{self.reward.name} through {getattr(decoder, 'name', None) or repr(decoder)}"
        self.settings = None

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The reward of pictures, (B,)."""
        return self.reward.forward(images, prompts)

    def with_terms(
        self, images: Tensor, prompts: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The reward's own."""
        return self.reward.with_terms(images, prompts)

    def decoder(self, backbone) -> Callable[[Tensor], Tensor]:
        """Latents (B, C, h, w) to what the reward is shown, (B, 3, H, W)."""
        if hasattr(self.kind, "fitted"):
            return self.kind.fitted(backbone, self.reward)
        return self.kind

    def check(self, backbone) -> None:
        """Fit or load the decoder before anything is sampled. Raises ValueError for a backbone that it does not fit."""
        self.decoder(backbone)


def through(reward: Reward | Callable, decoder: Any) -> DecodedWith:
    """The reward as seen through a decoder: a name of `DECODERS`, one of their kind, or a module or function of latents.

    An `AutoencoderTiny` is scaled as diffusers does; any other function maps latents to images in [0, 1]. Raises ValueError for an
    unknown name, TypeError for what cannot decode.
    """
    if isinstance(reward, DecodedWith):
        reward = reward.reward
    if isinstance(decoder, str):
        if decoder not in DECODERS:
            raise unknown("decoder", decoder, DECODERS)
        return DecodedWith(reward, DECODERS[decoder]())
    if isinstance(decoder, torch.nn.Module):
        return DecodedWith(reward, _module(decoder))
    if isinstance(decoder, type) or not (hasattr(decoder, "fitted") or callable(decoder)):
        raise TypeError(
            f"a decoder is one of {', '.join(DECODERS)}, or a module or function from latents to images, got {decoder!r}"
        )
    return DecodedWith(reward, decoder)


def apply(weight: Tensor, latents: Tensor, factor: int) -> Tensor:
    """The linear map (3 factor^2, C side^2 + 1) of latents (B, C, h, w), as images (B, 3, factor h, factor w); carries gradient."""
    latents = latents.to(weight.dtype)
    side = round(((weight.shape[1] - 1) / latents.shape[1]) ** 0.5)
    kernel = weight[:, :-1].view(len(weight), latents.shape[1], side, side)
    padded = F.pad(latents, [side // 2] * 4, mode="replicate")
    return F.pixel_shuffle(F.conv2d(padded, kernel, weight[:, -1]), factor)


def _neighbours(latents: Tensor, side: int) -> Tensor:
    """Each cell's neighbourhood and a one, (B, C side^2 + 1, h, w)."""
    b, _, h, w = latents.shape
    cells = F.unfold(F.pad(latents, [side // 2] * 4, mode="replicate"), side).view(b, -1, h, w)
    return torch.cat([cells, torch.ones_like(cells[:, :1])], 1)


def _module(module: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    module = module.requires_grad_(False).eval()
    if type(module).__name__ != "AutoencoderTiny":
        return module
    shift, scale = module.config.get("shift_factor", 0.0) or 0.0, module.config.scaling_factor

    def decode(latents: Tensor) -> Tensor:
        return (
            module.decode((latents / scale + shift).to(module.dtype), return_dict=False)[0] / 2
            + 0.5
        )

    decode.name = "AutoencoderTiny"
    return decode


def _published(backbone) -> str:
    home = _home(backbone)
    if home and (home.parent / "tiny").is_dir():
        return str(home.parent / "tiny")
    kind = type(getattr(backbone, "pipe", None)).__name__
    source = TINY.get((kind, backbone.latent_shape()[0]))
    if source is None:
        raise ValueError(
            f"no small autoencoder is published for {backbone.name}; give one, decoder=AutoencoderTiny..., or decoder='linear'"
        )
    return source


def _home(backbone) -> Path | None:
    """The folder of a model of the shapes world, shipped or trained by `datekit train shapes`; None for another model."""
    from ..backbones import SHIPPED, shipped_folder

    if not backbone.source:
        return None
    folder = (
        shipped_folder(SHIPPED[backbone.source])
        if backbone.source in SHIPPED
        else Path(backbone.source)
    )
    return folder if (folder / "datekit.json").is_file() else None


def _captions(backbone) -> tuple[str, ...]:
    if _home(backbone):
        from ..shapes.captions import prompts

        return tuple(prompts("train", len(CAPTIONS), 0))
    return CAPTIONS


def _pixels(backbone, latents: Tensor) -> tuple[int, int]:
    factor = getattr(getattr(backbone, "pipe", None), "vae_scale_factor", None)
    return (None, None) if factor is None else tuple(side * factor for side in latents.shape[-2:])
