"""Instruments: what an update does, how good its approximations are, whether the updates agree.

Each takes a `Run`, on any backbone with any reward, and looks at the step where it is paused; only
`reward_report` makes runs of its own. Nothing advances; what comes back is a frozen `Result`, which
shows itself in a notebook and gives a pandas table by `to_frame()`. The reward, and rho, are the
method's own by default.
"""

from .agreement import Directions, directions, random_share, signal_to_noise
from .base import ByStep, Result
from .embedding_bounds import Guarantee, guarantee
from .gradient import ChainRule, TokenShares, chain_rule, token_shares
from .guidance import GuidanceTerm, TaylorError, guidance_cosine, guidance_term, taylor_error
from .reward_report import RewardReport, reward_report

__all__ = ["ByStep", "ChainRule", "Directions", "Guarantee", "GuidanceTerm", "Result"]
__all__ += ["RewardReport", "TaylorError", "TokenShares", "chain_rule", "directions", "guarantee"]
__all__ += ["guidance_cosine", "guidance_term", "random_share", "reward_report"]
__all__ += ["signal_to_noise", "taylor_error", "token_shares"]
