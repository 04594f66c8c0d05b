"""Instruments: what an update does, how good its approximations are, and whether the updates agree. Any backbone, any reward.

Each takes a `Run`, paused or (where it reads the history) finished, or a paused `State` with its sampler, advances nothing,
and returns a small frozen result that shows itself in a notebook and gives a pandas table by `to_frame()`.
"""

from __future__ import annotations

from ..lazy import attach

_NAMES = {
    "agreement": ("Directions", "directions", "random_share"),
    "base": ("Result", "score"),
    "chain": ("ChainRule", "chain_rule"),
    "concepts": ("concept_shares",),
    "guidance": ("GuidanceTerm", "guidance_term", "score_change"),
    "optima": ("Guarantee", "guarantee"),
    "side_by_side": ("GuidanceCosine", "guidance_cosine"),
    "stability": ("SignalToNoise", "signal_to_noise"),
    "taylor": ("TaylorError", "taylor_error"),
    "tokens": ("TokenShares", "token_shares"),
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
