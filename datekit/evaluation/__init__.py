"""Judging methods: paired comparisons with bootstrap intervals, and what a step costs here."""

from ..statistics import Interval, bootstrap

__all__ = ["Interval", "bootstrap"]
