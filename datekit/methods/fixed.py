"""The fixed embedding: what the text encoder said, at every step. The baseline of everything."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Method


@dataclass(frozen=True)
class Fixed(Method):
    """Feeds c_org at every step, which is the sampling of the pipeline itself."""
