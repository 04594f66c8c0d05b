"""`dk.explore`: the widget for a backbone and a reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..rewards.base import Reward
from .controller import Controller

if TYPE_CHECKING:
    from .view import Explorer


def explore(
    backbone,
    reward: Reward | Callable | Mapping[str, Callable] | list,
    *,
    start: bool = True,
    judged: bool | None = None,
    **settings,
) -> Explorer:
    """The rho and timestep widget: any step of a run beside its twin with the fixed embedding.

    backbone: from `dk.load` or `dk.wrap`, or a diffusers pipeline.
    reward: one, a weighted sum, several in a list, or a dict by name. Of several the first has
        weight 1 at first, the others 0; all weights can be set.
    start: sample at once.
    judged: whether the exact oracle of the shapes world looks on, by default for its models.
    settings: where the controls stand at first: fields of `widgets.Settings`, options of methods.
    Raises ImportError where ipywidgets is not installed, TypeError or ValueError as `dk.Sampler`.
    """
    try:
        from .view import Explorer
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("ipywidgets", "IPython", "traitlets"):
            raise
        raise ImportError("the explorer needs ipywidgets: pip install 'datekit[lab]'") from error
    return Explorer(Controller(backbone, reward, judged=judged, **settings), start=start)
