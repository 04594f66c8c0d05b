"""See inside text-to-image sampling while it happens.

    import datekit as dk

    backbone = dk.load("shapes")
    date = dk.DATE(dk.rewards.load("shapes-clip"), rho=1.0)
    run = dk.Sampler(backbone, date).start(["a red circle left of a blue square"], seeds=[0])
    run.step(); run.peek(); run.finish().images

Names load on first use, so that `import datekit` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import attach

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .analysis import guidance_term
    from .backbones import Backbone, GaussianBackbone, load, wrap
    from .best_of_n import best_of
    from .errors import DatekitError, NonFiniteError, RewardError
    from .estimates import Estimate, estimate
    from .methods import DATE, EBCA, Fixed, RandomDirection, SoftREPA, UniversalGuidance, rho_rules
    from .methods.base import Method
    from .rewards import decoders
    from .run import Run
    from .sampler import Sampler
    from .schedules import Schedule, early, every, fraction, late, middle, steps
    from .types import Conditioning, Prediction, RewardGradient, State, StepInfo
    from .widgets import explore

_NAMES = {  # the public names of each module; below, the modules that are public themselves
    "analysis": "guidance_term",
    "backbones": "Backbone GaussianBackbone load wrap",
    "best_of_n": "best_of",
    "errors": "DatekitError NonFiniteError RewardError",
    "estimates": "Estimate estimate",
    "methods": "DATE EBCA Fixed Method RandomDirection SoftREPA UniversalGuidance rho_rules",
    "rewards": "decoders",
    "run": "Run",
    "sampler": "Sampler",
    "schedules": "Schedule early every fraction late middle steps",
    "types": "Conditioning Prediction RewardGradient State StepInfo",
    "widgets": "explore",
    "": "analysis backbones editing errors evaluation methods noise plot rewards schedules shapes "
    "softrepa solvers statistics widgets",
}
__getattr__, __dir__, __all__ = attach(__name__, {k: v.split() for k, v in _NAMES.items()})
