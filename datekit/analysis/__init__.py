"""Instruments: what an update does, how good its approximations are, whether the updates agree.

Each takes a `Run`, on any backbone with any reward, and looks at the step where it is paused.
Nothing advances; what comes back is a frozen `Result`, which shows itself in a notebook and gives a
pandas table by `to_frame()`. The reward, and rho, are the method's own by default.
"""

from __future__ import annotations

from ..lazy import attach

_NAMES = {
    "agreement": ("Directions", "directions", "random_share", "signal_to_noise"),
    "base": ("ByStep", "Result"),
    "embedding_bounds": ("Guarantee", "guarantee"),
    "gradient": ("ChainRule", "TokenShares", "chain_rule", "token_shares"),
    "guidance": ("GuidanceTerm", "TaylorError", "guidance_cosine", "guidance_term", "taylor_error"),
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
