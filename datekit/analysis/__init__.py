"""Instruments: what an update does, how good its approximations are, and whether the updates agree. Any backbone, any reward.

Each takes a `Run`, paused or (where it reads the history) finished, or a paused `State` with its sampler, advances nothing,
and returns a small frozen result that shows itself in a notebook and gives a pandas table by `to_frame()`.
"""

from __future__ import annotations

import importlib

_NAMES = {
    "agreement": ("Directions", "directions", "random_share"),
    "base": ("Result", "score"),
    "chain": ("ChainRule", "chain_rule"),
    "guidance": ("GuidanceTerm", "guidance_term"),
    "optima": ("Guarantee", "guarantee"),
    "stability": ("SignalToNoise", "signal_to_noise"),
    "taylor": ("TaylorError", "taylor_error"),
    "tokens": ("TokenShares", "token_shares"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
