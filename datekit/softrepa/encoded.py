"""Latents and text embeddings of image-caption pairs, computed once and kept in memory and, if wished, in a file."""

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
from ..files import load_tensors, save_tensors
from ..types import Conditioning
from .data import Pairs
from .loss import pick

BATCH = 32
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Encoded:
    """Pairs as a model sees them. latents: (N, C, h, w) on the CPU; cond: of the distinct texts, or None where they are too many to keep."""

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
        device = self.backbone.device
        found = pick(self.cond, torch.tensor([self.index[text] for text in texts]))
        move = lambda x: None if x is None else x.to(device)
        return Conditioning(
            move(found.sequence),
            move(found.pooled),
            extras={name: move(value) for name, value in found.extras.items()},
        )


def encode(
    backbone, pairs: Pairs, *, cache: str | Path | None = None, text_limit: float = 2.0
) -> Encoded:
    """Latents (the mode of the VAE's posterior) and text embeddings of all pairs, each computed once.

    Images are resized and cropped to the model's own size. cache: a file that keeps them for the next time with the same model and the
    same pairs; anything else in it is replaced. text_limit: GiB of text embeddings to keep; beyond it they are computed in each step.
    """
    texts = sorted({*pairs.captions, *(text for group in pairs.negatives for text in group)})
    key, path = _fingerprint(backbone, pairs), None if cache is None else Path(cache)
    if path is not None and path.is_file():
        kept = load_tensors(path, "encoded pairs", _FORMAT)
        if kept["key"] == key:
            cond = (
                None
                if kept["sequence"] is None
                else Conditioning(kept["sequence"], kept["pooled"], extras=kept["extras"])
            )
            return Encoded(
                pairs, backbone, kept["latents"], cond, {text: n for n, text in enumerate(texts)}
            )
    with torch.no_grad():
        latents = _latents(backbone, pairs)
        one = backbone.encode(texts[:1]).sequence
        size = len(texts) * one.numel() * one.element_size() / 2**30
        cond = _conditioning(backbone, texts) if size <= text_limit else None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = (
            {"sequence": None, "pooled": None, "extras": {}}
            if cond is None
            else {"sequence": cond.sequence, "pooled": cond.pooled, "extras": cond.extras}
        )
        save_tensors(path, "encoded pairs", _FORMAT, {"key": key, "latents": latents} | kept)
    return Encoded(pairs, backbone, latents, cond, {text: n for n, text in enumerate(texts)})


def _latents(backbone, pairs: Pairs) -> Tensor:
    from ..editing.images import as_images

    parts = []
    for start in _batches(len(pairs.images), "images"):
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore",
                "a grey image|an image with transparency|an image of mode|an image of 16 bits",
            )
            images = [
                as_images(pairs.images[n], backbone, fit="crop")
                for n in range(start, min(start + BATCH, len(pairs.images)))
            ]
        parts.append(backbone.encode_images(torch.cat(images)).cpu())
    latents = torch.cat(parts)
    if not latents.isfinite().all():
        raise ValueError(
            f"{pairs.name}: the encoder of {backbone.name} makes NaN or infinity of an image; load the model in float32"
        )
    return latents


def _conditioning(backbone, texts: list[str]) -> Conditioning:
    parts = []
    for start in _batches(len(texts), "captions"):
        cond = backbone.encode(texts[start : start + BATCH])
        parts.append(
            Conditioning(
                cond.sequence.cpu(),
                None if cond.pooled is None else cond.pooled.cpu(),
                extras={name: value.cpu() for name, value in cond.extras.items()},
            )
        )
    return Conditioning.cat(parts)


def _batches(count: int, what: str):
    return bar(range(0, count, BATCH), desc=f"encoding {what}")


def bar(*args, shown: bool = True, **kwargs):
    """A progress bar that appears after two seconds, unless TQDM_DISABLE is set (which tqdm itself does not read in a notebook)."""
    hidden = not shown or bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(*args, delay=2, leave=False, **kwargs, **({"disable": True} if hidden else {}))


def _fingerprint(backbone, pairs: Pairs) -> str:
    """Of what the encodings depend on: the encoders' numbers (a few of each tensor), sizes, and the pairs."""
    told = (
        pairs.digest,
        backbone.dtype,
        backbone.image_size(),
        getattr(backbone, "text_length", None),
    )
    found = hashlib.blake2b(repr(told).encode(), digest_size=12)
    for name, part in sorted(backbone.pipe.components.items()):
        if isinstance(part, torch.nn.Module) and part is not backbone.network:
            for value in part.state_dict().values():
                found.update(
                    name.encode()
                    + value.flatten()[:: max(1, value.numel() // 64)]
                    .cpu()
                    .double()
                    .numpy()
                    .tobytes()
                )
    return found.hexdigest()
