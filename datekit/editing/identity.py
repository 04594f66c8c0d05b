"""A fingerprint of a backbone: noise that was solved for under one network leads nowhere under
another, and nothing else would say so."""

from __future__ import annotations

import hashlib

import torch

SAMPLED = 64  # numbers of each weight, evenly spread


def fingerprint(backbone, *, network: bool = True) -> str:
    """A digest of what a backbone computes: its class, precision, noise schedule and weights.

    Of each weight it takes 64 numbers. network: False leaves the denoising network out, for what
    depends on the encoders alone.
    """
    config = backbone.scheduler.config
    settings = [(name, config[name]) for name in sorted(config) if not name.startswith("_")]
    facts = (type(backbone).__name__, str(backbone.dtype), settings)
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=12)
    parts = backbone.pipe.components if hasattr(backbone, "pipe") else {}
    for name, part in sorted(parts.items()):
        if not isinstance(part, torch.nn.Module) or (part is backbone.network and not network):
            continue
        digest.update(name.encode())
        for weight in part.state_dict().values():
            numbers = weight.flatten()[:: max(1, weight.numel() // SAMPLED)]
            digest.update(numbers.cpu().double().numpy().tobytes())
    return digest.hexdigest()
