"""The explorer: `dk.explore(backbone, reward)`; `Controller` is all of it but the looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from .view import Explorer

_NAMES = {"controller": ("Controller",), "settings": ("Settings",)}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES, "explore")


def explore(backbone, reward, **settings) -> Explorer:
    """The rho and timestep widget: any step of a run beside its twin with the fixed embedding.

    backbone: from `dk.load` or `dk.wrap`, or a diffusers pipeline; reward: one, several in a list,
    or a dict by name, of which the first guides until another is chosen; settings: where the
    controls stand at first: fields of `widgets.Settings`, options of methods.
    Raises ImportError where ipywidgets is not installed, TypeError or ValueError as `dk.Sampler`.
    """
    from .controller import Controller

    try:
        from .view import Explorer
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("ipywidgets", "IPython", "traitlets"):
            raise
        raise ImportError("the explorer needs ipywidgets: pip install 'datekit[lab]'") from error
    return Explorer(Controller(backbone, reward, **settings))
