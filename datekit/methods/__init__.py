"""Methods: what each step feeds the network. A new one is one file with a `Method`; no method knows another."""

from .base import Method, Update
from .date import DATE
from .fixed import Fixed
from .random_direction import RandomDirection

__all__ = ["DATE", "Fixed", "Method", "RandomDirection", "Update"]
