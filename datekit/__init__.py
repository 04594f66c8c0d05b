"""See inside text-to-image sampling while it happens.

    import datekit as dk

    backbone = dk.load("shapes")
    date = dk.DATE(dk.rewards.load("shapes-clip"), rho=1.0)
    run = dk.Sampler(backbone, date).start(["a red circle left of a blue square"], seeds=[0])
    run.step(); run.peek(); run.finish().images

Names load on first use, so that `import datekit` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_MODULES = (
    "analysis", "backbones", "best_of_n", "decoders", "editing", "errors", "evaluation", "methods", "noise", "plot", "rho_rules", "rewards",
    "schedules", "shapes", "softrepa", "solvers", "widgets",
)  # fmt: skip
_NAMES = {
    "analysis": ("guidance_term",),
    "backbones": ("Backbone", "GaussianBackbone", "load", "wrap"),
    "best_of_n": ("best_of",),
    "estimates": ("Estimate", "estimate"),
    "errors": ("DatekitError", "NonFiniteError", "RewardError"),
    "methods": (
        "DATE",
        "EBCA",
        "Fixed",
        "Method",
        "RandomDirection",
        "SoftREPA",
        "UniversalGuidance",
    ),
    "run": ("Run",),
    "sampler": ("Sampler",),
    "schedules": ("Schedule", "early", "every", "fraction", "late", "middle", "steps"),
    "types": ("Conditioning", "RewardGradient", "Prediction", "State", "StepInfo"),
    "widgets": ("explore",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_HOME, *_MODULES])

if TYPE_CHECKING:
    from . import (  # noqa: F401
        analysis,
        backbones,
        best_of_n,
        decoders,
        editing,
        errors,
        evaluation,
        methods,
        noise,
        plot,
        rho_rules,
        rewards,
        schedules,
        shapes,
        softrepa,
        solvers,
        widgets,
    )
    from .analysis import guidance_term  # noqa: F401
    from .backbones import Backbone, GaussianBackbone, load, wrap  # noqa: F401
    from .best_of_n import best_of  # noqa: F401
    from .errors import DatekitError, NonFiniteError, RewardError  # noqa: F401
    from .estimates import Estimate, estimate  # noqa: F401
    from .methods import DATE, EBCA, Fixed, Method, RandomDirection, SoftREPA, UniversalGuidance  # noqa: F401
    from .run import Run  # noqa: F401
    from .sampler import Sampler  # noqa: F401
    from .schedules import Schedule, early, every, fraction, late, middle, steps  # noqa: F401
    from .types import Conditioning, RewardGradient, Prediction, State, StepInfo  # noqa: F401
    from .widgets import explore  # noqa: F401


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'datekit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
