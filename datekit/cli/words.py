"""From words to methods: what the command line offers follows from the registry."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import operator
import os
import re
from collections.abc import Mapping
from typing import Any

import torch

from .. import schedules
from ..errors import unknown
from ..evaluation.options import default_reward, reward_named
from ..methods import Method
from ..methods.rho_rules import RhoRule
from ..registry import entries, find, options
from ..schedules import Schedule

THIRDS = {"early": schedules.early, "middle": schedules.middle, "late": schedules.late}
MINE = "method."  # marks the options of methods among those of a command
SHORT = {"update_every": "every", "update_steps": "steps"}  # options that stand for --when
HELP_WHEN = "which steps update: every:5, fraction:0.1, steps:0,10:20, early, middle or late"


def name_of(cls: type) -> str:
    """What the command line calls a class: `UniversalGuidance` is universal-guidance."""
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "-", cls.__name__).lower()


def methods() -> dict[str, type[Method]]:
    """The registered methods by their names, without those that words cannot make."""
    offered = {}
    for cls in entries("method").values():
        fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
        if all(field.name in options(cls) for field in fields if _required(field)):
            offered[name_of(cls)] = cls
    return offered


def add_methods(command: argparse.ArgumentParser) -> None:
    """Options of a command that name a method and its settings."""
    command.add_argument(
        "--method",
        default="date",
        help=f"{', '.join(methods())}, or a sum such as date+ebca (default: %(default)s)",
    )
    group = command.add_argument_group("options of the methods")
    for name, owners in _owners().items():
        if name == "when":
            _add(group, "when", help=HELP_WHEN)
            _add(group, "update_every", metavar="K", help="short for --when every:K")
            _add(group, "update_steps", metavar="I", help="short for --when steps:I")
        else:
            kinds = " ".join(str(options(cls)[name].type) for cls in owners)
            _add(group, name, **bare(kinds), metavar=name.upper(), help=_help(name, owners))


def words_of(parsed: argparse.Namespace) -> dict[str, str]:
    """The words that a command was given for options of methods, by the options' names."""
    words = {name: word for name, word in vars(parsed).items() if name.startswith(MINE)}
    return {name.removeprefix(MINE): word for name, word in words.items() if word is not None}


def method_from(
    name: str, words: Mapping[str, Any], *, model: str | None = None, device: str | None = None
) -> Method:
    """A method from its name and the words for its options.

    name: as `name_of` gives it, or a sum such as "date+ebca"; words: by the names of the options,
    such as {"rho": "0.5", "update_every": "5"}. A reward that is not given is the one that guides
    `model` by default. Raises ValueError for a name or a word that means nothing, and for an option
    that the method does not read.
    """
    classes = _classes(name)
    read = set().union(*(options(cls) for cls in classes))
    words = _with_schedule(words, "when" in read, name)
    idle = [flag(option) for option in words if option not in read]
    if idle:
        raise ValueError(f"--method {name} does not read {', '.join(idle)}")
    if "reward" in read and "reward" not in words:
        words["reward"] = default_reward(model)
    return functools.reduce(operator.add, [_make(cls, words, device) for cls in classes])


def uses_reward(name: str) -> bool:
    """Whether a method, by its name, takes a reward."""
    return any("reward" in options(cls) for cls in _classes(name))


def flag(option: str) -> str:
    """The flag of an option: --inner-steps for inner_steps."""
    return f"--{option.replace('_', '-')}"


def bare(kind: str) -> dict[str, str]:
    """For the parser: the flag of a bool that stands alone means true."""
    return {"nargs": "?", "const": "true"} if re.search(r"\bbool\b", kind) else {}


def schedule_from(text: str) -> Schedule:
    """A schedule from its word: "every:5", "fraction:0.1", "steps:0,10:20" (10 to 19) or "late"."""
    name, _, argument = text.partition(":")
    known = {cls.__name__: cls for cls in entries("schedule").values()} | THIRDS
    if name not in known:
        raise unknown("schedule", name, known)
    if name == "steps":
        return schedules.steps(_steps(argument))
    numbers = [_number("when", word) for word in argument.split(",") if word]
    return known[name](*numbers)


def value_from(name: str, kind: str, word: Any, device: str | None = None) -> Any:
    """What a word means for an option.

    name: the option's name; kind: its annotation, such as "float | None"; device: where a reward
    is loaded. Raises ValueError for a word that means nothing.
    """
    if not isinstance(word, str):
        return word
    if name == "reward":
        return reward_named(word, device=device)
    if "Schedule" in kind:
        return schedule_from(word)
    if re.search(r"\bbool\b", kind):
        if word not in ("true", "false"):
            raise ValueError(f"{flag(name)} takes true or false, got {word!r}")
        return word == "true"
    if "Callable" in kind and word[:1].isalpha():
        rule, _, numbers = word.partition(":")
        return find(RhoRule.kind, rule)(*(float(number) for number in numbers.split(",") if number))
    return _number(name, word) if re.search(r"\b(int|float)\b", kind) else word


def device_from(name: str | None) -> str | None:
    """The device to compute on: of several processes each takes a GPU of its own.

    On a GPU, algorithms are chosen so that every run gives the same bits.
    """
    if name not in (None, "cuda") or not torch.cuda.is_available():
        return name
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"


def _classes(name: str) -> list[type[Method]]:
    known = methods()
    for part in name.split("+"):
        if part not in known:
            raise unknown("method", part, known)
    return [known[part] for part in name.split("+")]


def _add(group, name: str, **about: Any) -> None:
    """Add an option of methods, as --method-NAME where the command has one of that name itself."""
    try:
        group.add_argument(flag(name), dest=MINE + name, **about)
    except argparse.ArgumentError:
        group.add_argument(flag(f"method_{name}"), dest=MINE + name, **about)


def _owners() -> dict[str, list[type[Method]]]:
    """The methods that have an option, by the option's name."""
    owners: dict[str, list[type[Method]]] = {}
    for cls in methods().values():
        for name in options(cls):
            owners.setdefault(name, []).append(cls)
    return owners


def _help(name: str, owners: list[type[Method]]) -> str:
    sentences = []
    for cls in owners:
        field = options(cls)[name]
        text = f"{name_of(cls)}: {field.metadata['help']}"
        if field.metadata["choices"]:
            text += f" One of {', '.join(map(str, field.metadata['choices']))}."
        if field.default not in (dataclasses.MISSING, None):
            text += f" (default: {field.default})"
        sentences.append(text)
    return " ".join(sentences).replace("%", "%%")


def _required(field: dataclasses.Field) -> bool:
    made = (field.default, field.default_factory)
    return field.init and made == (dataclasses.MISSING, dataclasses.MISSING)


def _make(cls: type[Method], words: Mapping[str, Any], device: str | None) -> Method:
    settings = {}
    for name, field in options(cls).items():
        if name in words:
            settings[name] = value_from(name, str(field.type), words[name], device)
        elif _required(field):
            about = field.metadata["help"]
            raise ValueError(f"--method {name_of(cls)} needs {flag(name)}: {about}")
    return cls(**settings)


def _number(name: str, word: str) -> int | float:
    try:
        number = float(word)
    except ValueError:
        raise ValueError(f"{flag(name)} takes a number, got {word!r}") from None
    return int(word) if re.fullmatch(r"\s*[+-]?\d+\s*", word) else number


def _with_schedule(words: Mapping[str, Any], read: bool, name: str) -> dict[str, Any]:
    """The words with --when in place of what is short for it."""
    given = [option for option in ("when", *SHORT) if option in words]
    if given and not read:
        raise ValueError(f"--method {name} does not read {', '.join(map(flag, given))}")
    if len(given) > 1:
        raise ValueError(f"give one of {', '.join(map(flag, given))}, not several")
    words = dict(words)
    for option in given:
        word = words.pop(option)
        words["when"] = f"{SHORT[option]}:{word}" if option in SHORT else word
    return words


def _steps(text: str) -> list[int]:
    """The numbers of "0,10,20" and of "10:20", which is 10 to 19."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?::(\d+))?\s*", part)
        if not match:
            raise ValueError(f"steps are given as '0,10,20' or '10:20' (10 to 19), got {text!r}")
        first = int(match[1])
        numbers += range(first, int(match[2])) if match[2] else [first]
    return numbers
