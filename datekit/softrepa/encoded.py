"""Latents and text embeddings of image-caption pairs, computed once and kept."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..backbones import Backbone
from ..editing.identity import fingerprint
from ..editing.images import as_images
from ..files import load_tensors, save_tensors
from ..serialize import pack, unpack
from ..types import Conditioning
from .data import Pairs
from .loss import pick

BATCH = 32
FORMAT = 2  # of saved files


@dataclass(frozen=True, eq=False)
class Encoded:
    """Pairs as a model sees them.

    latents: (N, C, h, w) on the CPU; cond: the embeddings of the distinct texts, by `index`, or
    None where they are too many to keep.
    """

    pairs: Pairs
    backbone: Backbone
    latents: Tensor
    cond: Conditioning | None
    index: dict[str, int]

    def texts(self, texts: Sequence[str]) -> Conditioning:
        """The embedding of some texts of the pairs, on the model's device."""
        if self.cond is None:
            with torch.no_grad():
                return self.backbone.encode(list(texts))
        rows = torch.tensor([self.index[text] for text in texts])
        return unpack(pack(pick(self.cond, rows)), self.backbone.device)


def encode(
    backbone, pairs: Pairs, *, cache: str | Path | None = None, text_limit: float = 2.0
) -> Encoded:
    """Latents (the mode of the VAE's posterior) and text embeddings of all pairs.

    Images are resized and cropped to the model's own size. cache: a file that keeps them for the
    next time with the same model and the same pairs, and is replaced for others. text_limit: how
    many GiB of text embeddings are kept; more than that are computed anew in each step.
    """
    texts = sorted({*pairs.captions, *(text for group in pairs.negatives for text in group)})
    index = {text: n for n, text in enumerate(texts)}
    told = (pairs.digest, backbone.image_size(), getattr(backbone, "text_length", None))
    told = f"{told} {fingerprint(backbone, network=False)}"
    key = hashlib.blake2b(told.encode(), digest_size=12).hexdigest()
    if cache is not None and Path(cache).is_file():
        kept = load_tensors(cache, "encoded pairs", FORMAT)
        if kept["key"] == key:
            return Encoded(pairs, backbone, kept["latents"], unpack(kept["cond"], "cpu"), index)
    with torch.no_grad():
        latents = _encode_images(backbone, pairs)
        one = backbone.encode(texts[:1]).sequence
        size = len(texts) * one.numel() * one.element_size() / 2**30
        cond = _encode_texts(backbone, texts) if size <= text_limit else None
    if cache is not None:
        Path(cache).parent.mkdir(parents=True, exist_ok=True)
        content = {"key": key, "latents": latents, "cond": pack(cond)}
        save_tensors(cache, "encoded pairs", FORMAT, content)
    return Encoded(pairs, backbone, latents, cond, index)


def bar(*args, shown: bool = True, **kwargs) -> tqdm:
    """A progress bar that appears after two seconds, unless TQDM_DISABLE is set."""
    # tqdm itself does not read the variable in a notebook; disable=False would override it
    hidden = True if not shown or os.environ.get("TQDM_DISABLE") else None
    return tqdm(*args, delay=2, leave=False, disable=hidden, **kwargs)


def _encode_images(backbone, pairs: Pairs) -> Tensor:
    parts = []
    for start in bar(range(0, len(pairs.images), BATCH), desc="encoding images"):
        numbers = range(start, min(start + BATCH, len(pairs.images)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "an image with transparency")
            images = [as_images(pairs.images[n], backbone, fit="crop") for n in numbers]
        parts.append(backbone.encode_images(torch.cat(images)).cpu())
    latents = torch.cat(parts)
    if not latents.isfinite().all():
        raise ValueError(
            f"{pairs.name}: the encoder of {backbone.name} makes NaN or infinity of an image; load "
            "the model in float32"
        )
    return latents


def _encode_texts(backbone, texts: list[str]) -> Conditioning:
    parts = []
    for start in bar(range(0, len(texts), BATCH), desc="encoding captions"):
        cond = backbone.encode(texts[start : start + BATCH])
        parts.append(unpack(pack(cond.replace(mask=None, tokens=())), "cpu"))
    return Conditioning.cat(parts)
