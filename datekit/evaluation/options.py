"""Rewards by the words that name them, on the command line and in lists of metrics."""

from __future__ import annotations

import inspect
from typing import Any

from .. import rewards
from ..backbones import CLOSED_FORM, SHIPPED
from ..errors import unknown
from ..registry import entries
from ..rewards.base import Reward

PUBLISHED = "CLIPScore:ViT-L-14,openai"  # the reward of the authors' code


def reward_named(name: str, *, device: str | None = None, **settings: Any) -> Reward:
    """The reward that a text names: a shipped one, or a class with its arguments.

    Examples are "shapes-clip", "ImageReward" and "CLIPScore:ViT-g-14,laion2b_s12b_b42k" (arguments
    after the first colon, commas between them). A CLIPScore without arguments is the one of the
    authors' code. settings: given to the classes that take them.
    """
    if name in rewards.SHIPPED:
        return rewards.load(name, device=device)
    classes = entries("reward")
    kind, _, words = (PUBLISHED if name == "CLIPScore" else name).partition(":")
    if kind not in classes:
        raise unknown("reward", kind, [*rewards.SHIPPED, *classes])
    parameters = inspect.signature(classes[kind]).parameters
    settings |= {"device": device}
    taken = {key: value for key, value in settings.items() if key in parameters}
    try:
        return classes[kind](*(words.split(",") if words else ()), **taken)
    except TypeError as error:
        raise ValueError(f"cannot make the reward {name!r}: {error}") from error


def default_reward(model: str | None) -> str:
    """The reward that guides a model when none is named: its world's own, or the authors' CLIP."""
    if model in SHIPPED:
        return "shapes-clip"
    return "target" if model in CLOSED_FORM else PUBLISHED
