"""Instruments: what an update does, how good its approximations are, whether the updates agree.

Each takes a `Run`, or a paused `State` with its sampler, on any backbone with any reward. It
advances nothing, and returns a frozen `Result`, which shows itself in a notebook and gives a pandas
table by `to_frame()`.
"""

from __future__ import annotations

from ..lazy import attach

_NAMES = {
    "base": ("Result", "score"),
    "chain": ("ChainRule", "chain_rule"),
    "cosines": ("Directions", "directions", "random_share"),
    "embedding_bounds": ("Guarantee", "guarantee"),
    "gradient_snr": ("SignalToNoise", "signal_to_noise"),
    "guidance": ("GuidanceTerm", "guidance_term", "score_change"),
    "guidance_alignment": ("GuidanceCosine", "guidance_cosine"),
    "sweep": ("RhoSweep", "rho_sweep"),
    "taylor": ("TaylorError", "taylor_error"),
    "tokens": ("TokenShares", "concept_shares", "token_shares"),
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
