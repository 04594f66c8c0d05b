"""Pictures of many prompts in folders, drawn and judged; paired intervals."""

from ..statistics import Interval, bootstrap

__all__ = ["Interval", "bootstrap"]
