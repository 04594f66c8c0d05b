"""Methods: what each step feeds the network. A new method is one new file with a `Method`."""

from .. import registry
from .base import STAGES, Conditioned, Method

registry.import_all(__name__, __path__)
globals().update(registry.entries("method"))

__all__ = [*registry.entries("method"), "STAGES", "Conditioned", "Method"]
