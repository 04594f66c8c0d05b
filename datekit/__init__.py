"""See inside text-to-image sampling while it happens.

    import datekit as dk

    backbone = dk.load("shapes")
    date = dk.DATE(dk.rewards.load("shapes-clip"), rho=1.0)
    run = dk.Sampler(backbone, date).start(["a red circle left of a blue square"], seeds=[0])
    run.step(); run.peek(); run.finish().images

Names load on first use, so that `import datekit` costs next to nothing.
"""

from __future__ import annotations

import os

from .lazy import attach

__version__ = "0.1.0"

_STUB = os.path.join(os.path.dirname(__file__), "__init__.pyi")  # has the public names
__getattr__, __dir__, __all__ = attach(__name__, _STUB)
