"""Methods: what each step feeds the network. A new method is one new file with a `Method`."""

from .. import registry
from .base import STAGES, Method, MethodUpdate

registry.import_all(__name__, __path__)
globals().update(registry.entries("method"))

__all__ = [*registry.entries("method"), "STAGES", "MethodUpdate", "Method"]
