"""The explorer: `dk.explore(backbone, reward)`; `Controller` is all of it but the looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..lazy import needs
from .controller import Controller
from .settings import Settings

if TYPE_CHECKING:
    from .view import Explorer

__all__ = ["Controller", "Settings", "explore"]


def explore(backbone: Any, rewards: Callable | Mapping[str, Callable], **settings: Any) -> Explorer:
    """The rho and timestep widget: any step of a run beside its twin with the fixed embedding.

    backbone: from `dk.load` or `dk.wrap`, or a diffusers pipeline; rewards: one, or a dict by name,
    of which the first guides until another is chosen; settings: where the controls stand at first:
    fields of `widgets.Settings`, options of methods. Raises ImportError where ipywidgets is not
    installed, TypeError or ValueError as `dk.Sampler`.
    """
    needs("ipywidgets", "lab", "the explorer")
    from .view import Explorer

    return Explorer(Controller(backbone, rewards, **settings))
