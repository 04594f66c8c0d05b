"""Rewards and numbers by their words, on the command line and in lists of metrics."""

from __future__ import annotations

import inspect
import re
from typing import Any

from .. import rewards
from ..backbones import CLOSED_FORM, SHIPPED
from ..errors import unknown
from ..registry import entries
from ..rewards.base import Reward

PUBLISHED = "CLIPScore:ViT-L-14,openai"  # the reward of the authors' code


def reward_named(text: str, *, device: str | None = None, **settings: Any) -> Reward:
    """The reward that a text names: a shipped one, or a class with its arguments.

    Examples are "shapes-clip", "ImageReward", "CLIPScore:ViT-g-14,laion2b_s12b_b42k" and
    "CLIPScore:ViT-L-14,openai,antialias=false". A CLIPScore without arguments is the one of the
    authors' code. settings: given to the classes that take them.
    """
    if text in rewards.SHIPPED:
        return rewards.load(text, device=device)
    classes = entries("reward")
    kind, _, words = (PUBLISHED if text == "CLIPScore" else text).partition(":")
    if kind not in classes:
        raise unknown("reward", kind, [*rewards.SHIPPED, *classes])
    parameters = inspect.signature(classes[kind]).parameters
    settings |= {"device": device}
    given = {name: value for name, value in settings.items() if name in parameters}
    try:
        for n, word in enumerate(words.split(",") if words else ()):
            name, _, value = word.rpartition("=")
            name = name or list(parameters)[n]
            given[name] = parse_word(name, str(parameters[name].annotation), value)
        return classes[kind](**given)
    except (TypeError, LookupError) as error:
        raise ValueError(f"cannot make the reward {text!r}: {error!r}") from error


def parse_word(name: str, kind: str, word: str) -> Any:
    """What a word means for an option with an annotation such as "float | None"."""
    if "bool" in kind:
        if word not in ("true", "false"):
            raise ValueError(f"{name} takes true or false, got {word!r}")
        return word == "true"
    if not re.search(r"\b(int|float)\b", kind):
        return word
    try:
        return int(word) if re.fullmatch(r"[+-]?\d+", word) else float(word)
    except ValueError:
        raise ValueError(f"{name} takes a number, got {word!r}") from None


def default_reward(model: str | None) -> str:
    """The reward that guides a model when none is named: its world's own, or the authors' CLIP."""
    if model in SHIPPED:
        return "shapes-clip"
    return "target" if model in CLOSED_FORM else PUBLISHED
