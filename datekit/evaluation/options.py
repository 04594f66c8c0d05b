"""Rewards by the words that name them, on the command line and in lists of metrics."""

from __future__ import annotations

import functools
import inspect
import operator
import re
from typing import Any

from .. import rewards
from ..backbones import CLOSED_FORM, SHIPPED
from ..errors import unknown
from ..registry import entries
from ..rewards.base import Reward

PUBLISHED = "CLIPScore:ViT-L-14,openai"  # the reward of the authors' code


def reward_named(text: str, *, device: str | None = None, **settings: Any) -> Reward:
    """The reward that a text names: a shipped one, a class with its arguments, or a sum of such.

    Examples are "shapes-clip", "ImageReward", "CLIPScore:ViT-g-14,laion2b_s12b_b42k" (arguments
    after the first colon, commas between them) and "0.5 * CLIPScore + 0.5 * ImageReward" (spaces
    around the plus). A CLIPScore without arguments is the one of the authors' code. settings: given
    to the classes that take them.
    """
    parts = []
    for term in re.split(r"\s\+\s", text):
        weight, name = re.fullmatch(r"(?:([+-]?[\d.]+)\s*\*\s*)?(.*)", term.strip()).groups()
        reward = _single(name, settings | {"device": device})
        parts.append(reward if weight is None else float(weight) * reward)
    return functools.reduce(operator.add, parts)


def _single(name: str, settings: dict[str, Any]) -> Reward:
    if name in rewards.SHIPPED:
        return rewards.load(name, device=settings["device"])
    classes = entries("reward")
    kind, _, words = (PUBLISHED if name == "CLIPScore" else name).partition(":")
    if kind not in classes:
        raise unknown("reward", kind, [*rewards.SHIPPED, *classes])
    parameters = inspect.signature(classes[kind]).parameters
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
