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
_TERM = re.compile(r"(?:([+-]?[\d.]+)\s*\*\s*)?(\S.*)")


def reward_named(text: str, *, device: str | None = None, **settings: Any) -> Reward:
    """The reward that a text names: a shipped one, a class with its arguments, or a sum of such.

    Examples are "shapes-clip", "ImageReward", "CLIPScore:ViT-g-14,laion2b_s12b_b42k" (arguments
    after the first colon, commas between them) and "0.5 * CLIPScore + 0.5 * ImageReward" (spaces
    around the plus). A CLIPScore without arguments is the one of the authors' code. settings: given
    to the classes that take them. Raises ValueError for a text that names no reward.
    """
    parts = []
    for term in re.split(r"\s\+\s", text):
        match = _TERM.fullmatch(term.strip())
        if not match:
            raise ValueError(
                f"cannot read the reward {text!r}; write it as CLIPScore:ViT-L-14,openai or "
                "0.5 * CLIPScore + ImageReward"
            )
        weight, name = match.groups()
        reward = _single(name.strip(), device, settings)
        parts.append(reward if weight is None else float(weight) * reward)
    return functools.reduce(operator.add, parts)


def _single(name: str, device: str | None, settings: dict[str, Any]) -> Reward:
    if name in rewards.SHIPPED:
        return rewards.load(name, device=device)
    classes = entries("reward")
    kind, _, arguments = (PUBLISHED if name == "CLIPScore" else name).partition(":")
    if kind not in classes:
        raise unknown("reward", kind, [*rewards.SHIPPED, *classes])
    parameters = inspect.signature(classes[kind]).parameters
    given = settings | {"device": device}
    taken = {key: value for key, value in given.items() if key in parameters}
    words = arguments.split(",") if arguments else []
    try:
        return classes[kind](*words, **taken)
    except TypeError as error:
        raise ValueError(f"cannot make the reward {name!r}: {error}") from error


def default_reward(model: str | None) -> str:
    """The reward that guides a model, by the model's name, when none is named.

    It is the shapes world's own, the closed form's own, or the CLIP score of the authors' code.
    """
    if model in SHIPPED:
        return "shapes-clip"
    return "target" if model in CLOSED_FORM else PUBLISHED
