"""From words to methods: what the command line offers follows from the registry."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import operator
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import schedules
from ..backbones import Backbone, load
from ..errors import unknown
from ..evaluation.metrics import default_reward, parse_word, reward_named
from ..methods import Method
from ..methods.composition import Composition
from ..methods.rho_rules import RhoRule
from ..registry import entries, find, options
from ..schedules import Schedule

THIRDS = {"early": schedules.early, "middle": schedules.middle, "late": schedules.late}
MINE = "method."  # marks the options of methods among those of a command
WHEN = "every:5, fraction:0.1, steps:0,10:20:2 (10 to 18), early, middle or late."


def name_of(cls: type) -> str:
    """What the command line calls a class: `UniversalGuidance` is universal-guidance."""
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "-", cls.__name__).lower()


def flag(name: str) -> str:
    """The flag of an option: --inner-steps for inner_steps."""
    return f"--{name.replace('_', '-')}"


def methods() -> dict[str, type[Method]]:
    """The methods by their names, without the sum of several."""
    known = entries("method").values()
    return {name_of(cls): cls for cls in known if cls is not Composition}


def add_methods(command: argparse.ArgumentParser) -> None:
    """Options of a command that name a method and its settings."""
    names = f"{', '.join(methods())}, or a sum such as date+ebca (default: %(default)s)"
    command.add_argument("--method", default="date", help=names)
    group, fields, texts = command.add_argument_group("options of the methods"), {}, {"when": WHEN}
    for method, cls in methods().items():
        for name, field in options(cls).items():
            fields.setdefault(name, field)
            if name != "when":
                texts[name] = f"{texts.get(name, '')} {method}: {_told(field)}".strip()
    for name, field in fields.items():
        add_field(group, field, MINE + name, texts[name])
    for word, other in {"update-every": "every:{}", "update-steps": "steps:{}"}.items():
        about = {"metavar": "X", "help": f"short for --when {other.format('X')}"}
        group.add_argument(f"--{word}", dest=f"{MINE}when", type=other.format, **about)


def add_field(group, field: dataclasses.Field, dest: str, text: str | None = None) -> None:
    """Add the option of a dataclass field; a bool that stands alone means true."""
    about = {"nargs": "?", "const": "true"} if "bool" in str(field.type) else {}
    about |= {"metavar": field.name.upper(), "help": (text or _told(field)).replace("%", "%%")}
    group.add_argument(flag(field.name), dest=dest, **about)


def method_from(
    name: str, words: Mapping[str, Any], *, model: str | None = None, device: str | None = None
) -> Method:
    """A method from its name, or a sum such as "date+ebca", and the words for its options.

    words: by the names of the options, such as {"rho": "0.5", "when": "every:5"}. A reward that is
    not given is the one that guides `model` by default. Raises ValueError for what means nothing,
    and for an option that the method does not read.
    """
    known, classes = methods(), []
    for part in name.split("+"):
        if part not in known:
            raise unknown("method", part, known)
        classes.append(known[part])
    read = set().union(*(options(cls) for cls in classes))
    if idle := [flag(option) for option in words if option not in read]:
        raise ValueError(f"--method {name} does not read {', '.join(idle)}")
    if "reward" in read:
        words = {"reward": default_reward(model)} | dict(words)
    made = [cls(**values_from(options(cls).values(), words, device)) for cls in classes]
    return functools.reduce(operator.add, made)


def values_from(
    fields: Sequence[dataclasses.Field], words: Mapping[str, Any], device: str | None = None
) -> dict[str, Any]:
    """What words mean for dataclass fields, those that are given; device: of a reward."""
    given = [field for field in fields if words.get(field.name) is not None]
    return {field.name: _value(field, words[field.name], device) for field in given}


def schedule_from(text: str) -> Schedule:
    """A schedule from its word, such as "every:5" or "late"."""
    name, _, words = text.partition(":")
    known = entries("schedule") | THIRDS
    if name not in known:
        raise unknown("schedule", name, known)
    numbers: list = []
    for word in filter(None, words.split(",")):
        if not re.fullmatch(r"[\d.]+|\d+:\d+(:\d+)?", word):
            raise ValueError(f"--when takes {WHEN} got {text!r}")
        bounds = [parse_word("when", "float", number) for number in word.split(":")]
        numbers += bounds if len(bounds) == 1 else range(*bounds)
    return known[name](*numbers)


def load_model(parsed: argparse.Namespace) -> Backbone:
    """The model of --model, --device and --dtype; each of several processes has its own GPU."""
    device = parsed.device
    if device in (None, "cuda") and torch.cuda.is_available():
        # algorithms that give the same bits in every run
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    dtype = getattr(torch, parsed.dtype) if parsed.dtype else None
    return load(parsed.model, device=device, dtype=dtype)


def _told(field: dataclasses.Field) -> str:
    text = field.metadata.get("help", "")
    if field.metadata.get("choices"):
        text += f" One of {', '.join(field.metadata['choices'])}."
    if field.default not in (dataclasses.MISSING, None):
        text += f" (default: {field.default})"
    return text


def _value(field: dataclasses.Field, word: Any, device: str | None) -> Any:
    name, kind = field.name, str(field.type)
    if not isinstance(word, str):
        return word
    if name == "reward":
        return reward_named(word, device=device)
    if "Schedule" in kind:
        return schedule_from(word)
    if "Callable" in kind and word[:1].isalpha():
        rule, _, words = word.partition(":")
        numbers = [parse_word(name, "float", number) for number in words.split(",") if number]
        return find(RhoRule.kind, rule)(*numbers)
    return parse_word(name, kind, word)
