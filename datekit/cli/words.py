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
from ..evaluation.metrics import default_reward, object_named, parse_word, reward_named
from ..methods import Method
from ..methods.composition import Composition
from ..methods.rho_rules import RhoRule
from ..registry import entries, find, options

MINE = "method."  # marks the options of methods among those of a command
WHEN = "every:5, fraction:0.1, steps:0,10:20:2 (10 to 18) or third:0 (early)."


def add_methods(command: argparse.ArgumentParser) -> None:
    """Options of a command that name a method and its settings."""
    known = [name for name, cls in entries("method").items() if cls is not Composition]
    names = f"{', '.join(known)}, or a sum such as DATE+EBCA (default: %(default)s)"
    command.add_argument("--method", default="DATE", help=names)
    group = command.add_argument_group("options of the methods", "Each method reads its own.")
    fields: dict[str, dataclasses.Field] = {}
    for name in known:
        fields = options(find("method", name)) | fields  # of the first that has it
    for name, field in fields.items():
        add_field(group, field, MINE + name)
    for word, other in {"update-every": "every:{}", "update-steps": "steps:{}"}.items():
        about = {"metavar": "X", "help": f"short for --when {other.format('X')}"}
        group.add_argument(f"--{word}", dest=f"{MINE}when", type=other.format, **about)


def add_field(group, field: dataclasses.Field, dest: str) -> None:
    """Add the option of a dataclass field; a bool that stands alone means true."""
    about, text = {"metavar": "X"}, field.metadata.get("help", "see dk.memory")
    if "bool" in str(field.type):
        about |= {"nargs": "?", "const": "true"}
    if field.metadata.get("choices"):
        text += f" One of {', '.join(field.metadata['choices'])}."
    if "Schedule" in str(field.type):
        text += f" {WHEN}"
    if field.default not in (dataclasses.MISSING, None):
        text += f" (default: {field.default})"
    group.add_argument(_flag(field.name), dest=dest, help=text.replace("%", "%%"), **about)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def method_from(
    name: str,
    words: Mapping[str, str | None],
    *,
    model: str | None = None,
    device: str | None = None,
) -> Method:
    """A method from its name, or a sum such as "DATE+EBCA", and the words for its options.

    words: by the names of the options, such as {"rho": "0.5", "when": "every:5"}. A reward that is
    not given is the one that guides `model` by default. Raises ValueError for what means nothing,
    and for an option that the method does not read.
    """
    classes = [find("method", part) for part in name.split("+")]
    given = {option: word for option, word in words.items() if word is not None}
    read = set().union(*(options(cls) for cls in classes))
    if idle := [_flag(option) for option in given if option not in read]:
        raise ValueError(f"--method {name} does not read {', '.join(idle)}")
    given.setdefault("reward", default_reward(model))
    made = [cls(**values_from(options(cls).values(), given, device)) for cls in classes]
    return functools.reduce(operator.add, made)


def values_from(
    fields: Sequence[dataclasses.Field], words: Mapping[str, Any], device: str | None = None
) -> dict[str, Any]:
    """What words mean for dataclass fields, those that are given; device: of a reward."""
    given = [field for field in fields if words.get(field.name) is not None]
    return {field.name: _value(field, words[field.name], device) for field in given}


def _value(field: dataclasses.Field, word: str, device: str | None) -> Any:
    kind = str(field.type)
    if field.name == "reward":
        return reward_named(word, device=device)
    if "Schedule" in kind:
        return schedule_from(word)
    if "Callable" in kind and word[:1].isalpha():
        return object_named(RhoRule.kind, word)
    return parse_word(field.name, kind, word)


def schedule_from(text: str) -> schedules.Schedule:
    """A schedule from its words, such as "every:5"; those of steps may be ranges."""
    name, _, words = text.partition(":")
    if name != "steps":
        return object_named("schedule", text)
    steps: list[int] = []
    for word in words.split(","):
        if not re.fullmatch(r"\d+(:\d+){0,2}", word):
            raise ValueError(f"--when takes {WHEN} got {text!r}")
        bounds = [int(number) for number in word.split(":")]
        steps += bounds if len(bounds) == 1 else range(*bounds)
    return schedules.steps(*steps)


def load_model(parsed: argparse.Namespace) -> Backbone:
    """The model of --model, --device and --dtype; each of several processes has its own GPU."""
    device = parsed.device
    if device in (None, "cuda") and torch.cuda.is_available():
        # algorithms that give the same bits in every run
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return load(parsed.model, device=device, dtype=parsed.dtype)
