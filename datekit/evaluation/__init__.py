"""Pictures of many prompts in folders, drawn and judged; measures of edits; paired intervals."""

from ..statistics import Interval, bootstrap

__all__ = ["Interval", "bootstrap"]
