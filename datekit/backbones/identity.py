"""Which network it is: what was begun under one is not gone on with under another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import has_numbers


def fingerprint(backbone) -> str:
    """A digest of class, precision, settings, noise schedule, added words and all weights."""
    facts: list[Any] = [type(backbone).__name__, str(backbone.dtype)]
    facts.append(_plain(backbone.scheduler.config))
    facts += [getattr(backbone, name) for name in backbone.load_settings]
    parts = vars(backbone) | (backbone.pipe.components if hasattr(backbone, "pipe") else {})
    parts |= {"betas": getattr(backbone.scheduler, "betas", None)}
    for name, part in sorted(parts.items()):
        if hasattr(part, "get_added_vocab"):
            facts.append(sorted(part.get_added_vocab().items()))
        elif isinstance(part, (Tensor, torch.nn.Module)):
            facts.append((name, digest(part), _plain(getattr(part, "config", None))))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def digest(weights: Tensor | torch.nn.Module) -> str:
    """A digest of a tensor or of a module's weights; each row of them counts, on any device."""
    table = {"": weights} if isinstance(weights, Tensor) else weights.state_dict()
    found = hashlib.sha256()
    for name, weight in table.items():
        for part in _inner(weight) if isinstance(weight, Tensor) else ():
            found.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
            if part.numel() and has_numbers(part):
                found.update(_row_sums(part.detach()).cpu().numpy().tobytes())
    return found.hexdigest()[:24]


def _plain(config: Any) -> list:
    """What is plain in a configuration of diffusers, in the order of its names."""
    known = config.items() if isinstance(config, dict) else ()
    kinds = (bool, int, float, str, list, tuple)
    return sorted(
        (name, value) for name, value in known if name[0] != "_" and isinstance(value, kinds)
    )


def _inner(weight: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a weight is made of, several for one that is quantised."""
    if not hasattr(weight, "__tensor_flatten__"):
        yield weight
        return
    for name in weight.__tensor_flatten__()[0]:
        yield from _inner(getattr(weight, name))


def _row_sums(weight: Tensor) -> Tensor:
    """The exact sum of each row's words of 8 bytes, (rows,), or all bytes where they do not fit."""
    rows = weight.reshape(len(weight) if weight.ndim else 1, -1).contiguous()
    octets = (rows.clone() if rows.storage_offset() % 8 else rows).view(torch.uint8)
    return octets if octets.shape[1] % 8 else octets.view(torch.int64).sum(1)
