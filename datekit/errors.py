"""Errors that say what to do, and the help for a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DatekitError(Exception):
    """Base of the errors that sampling itself raises; a run that meets one stays paused where it was."""


class NonFiniteError(DatekitError, FloatingPointError):
    """A reward or gradient was NaN or infinite; the embedding was not touched."""


class RewardError(DatekitError, ValueError):
    """A reward broke its contract: (images, prompts) -> (B,), differentiable in the images."""


def unknown(kind: str, name: object, known: Iterable[str], more: str = "") -> ValueError:
    """The error for a name that is none of `known`, with the nearest ones first."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(map(repr, known))}.{more}")
