"""Methods: what each step feeds the network. A new one is one file with a `Method`; no method knows another."""

from .base import STAGES, Method, Conditioned
from .composition import Composition
from .date import DATE
from .ebca import EBCA
from .fixed import Fixed
from .random_direction import RandomDirection
from .softrepa import SoftREPA
from .universal_guidance import UniversalGuidance

__all__ = [
    "DATE",
    "EBCA",
    "STAGES",
    "Composition",
    "Fixed",
    "Method",
    "RandomDirection",
    "SoftREPA",
    "UniversalGuidance",
    "Conditioned",
]
