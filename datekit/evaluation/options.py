"""From the words of the command line, which are those of the field, to samplers and rewards."""

from __future__ import annotations

import functools
import inspect
import operator
import os
import re
from collections.abc import Mapping
from typing import Any

from .. import rewards
from ..errors import unknown, whole
from ..rewards.base import Reward

WHEN = ("update_every", "update_fraction", "update_steps", "update_stage")
METHODS: dict[str, tuple[str, dict[str, str]]] = {  # name: class, and what its options are called there
    "fixed": ("Fixed", {}),
    "date": ("DATE", {name: name for name in ("reward", "rho", "anchor", "between", "inner_steps", "update")}),
    "random": ("RandomDirection", {"rho": "rho"}),
    "universal-guidance": ("UniversalGuidance", {
        "reward": "reward", "ug_scale": "scale", "ug_backward_steps": "backward_steps", "ug_backward_rate": "backward_rate",
        "ug_recurrence": "recurrence"}),
    "ebca": ("EBCA", {"ebca_gamma_attn": "gamma_attn", "ebca_gamma_norm": "gamma_norm"}),
    "softrepa": ("SoftREPA", {"tokens": "tokens"}),
}  # fmt: skip
STAGES = ("early", "middle", "late")
OPTIONS = sorted({option for _, keywords in METHODS.values() for option in keywords} | set(WHEN))
DEFAULTS = {
    "CLIPScore": ("ViT-L-14", "openai")
}  # arguments of a reward named without any: the authors' h
_TERM = re.compile(r"(?:([+-]?[\d.]+)\s*\*\s*)?(\S.*)")


def reward_named(text: str, *, device: str | None = None, **settings) -> Reward:
    """The reward that a text names: a shipped one, a class with its arguments, or a sum.

    "shapes-clip", "ImageReward", "CLIPScore:ViT-g-14,laion2b_s12b_b42k" (arguments after the first colon, commas between
    them), "0.5 * CLIPScore + 0.5 * ImageReward" (spaces around the plus). settings: of the classes that take such. Raises ValueError for a
    name that is none.
    """
    terms = [_TERM.fullmatch(term.strip()) for term in re.split(r"\s\+\s", text)]
    if not all(terms):
        raise ValueError(
            f"cannot read the reward {text!r}; write it as CLIPScore:ViT-L-14,openai or 0.5 * CLIPScore + ImageReward"
        )
    parts = [
        (weight, _single(name.strip(), device, settings))
        for weight, name in (term.groups() for term in terms)
    ]
    return functools.reduce(
        operator.add, [part if weight is None else float(weight) * part for weight, part in parts]
    )


def _single(name: str, device: str | None, settings: Mapping[str, Any]) -> Reward:
    if name in rewards.SHIPPED:
        return rewards.load(name, device=device)
    kind, _, arguments = name.partition(":")
    if kind not in rewards.CLASSES:
        raise unknown("reward", kind, [*rewards.SHIPPED, *rewards.CLASSES])
    given = tuple(arguments.split(",")) if arguments else DEFAULTS.get(kind, ())
    cls = rewards.CLASSES[kind]
    taken = {
        key: value for key, value in settings.items() if key in inspect.signature(cls).parameters
    }
    try:
        return cls(*given, device=device, **taken)
    except TypeError as error:
        raise ValueError(f"cannot make the reward {name!r}: {error}") from error


def default_reward(model: str | None) -> str:
    """The reward that guides a model when none is named: the shapes world's, the closed form's, else the authors' CLIP score."""
    from ..backbones import CLOSED_FORM, SHIPPED

    return "shapes-clip" if model in SHIPPED else "target" if model in CLOSED_FORM else "CLIPScore"


def method_from(name: str, given: Mapping[str, Any], reward=None):
    """A method from its name ("date", or "date+ebca") and the options that were given (those of `OPTIONS`, None for not).

    reward: the object, for the methods that take one. Raises ValueError for an unknown name or an option that no part reads.
    """
    from .. import methods

    parts = name.split("+")
    for part in parts:
        if part not in METHODS:
            raise unknown("method", part, METHODS)
    schedule = _schedule({key: given.get(key) for key in WHEN})
    built = []
    for part in parts:
        cls, keywords = METHODS[part]
        settings = {
            keyword: given[option]
            for option, keyword in keywords.items()
            if option != "reward" and given.get(option) is not None
        }
        settings |= {"reward": reward} if "reward" in keywords else {}
        settings |= {"tokens": _tokens(given)} if "tokens" in keywords else {}
        settings |= {"when": schedule} if schedule is not None and part != "fixed" else {}
        built.append(getattr(methods, cls)(**settings))
    return functools.reduce(operator.add, built)


def _tokens(given: Mapping[str, Any]) -> str:
    """The soft tokens that were named, or those that ship for the model."""
    from ..methods.soft_tokens import SHIPPED_TOKENS

    found = given.get("tokens") or given.get("model")
    if given.get("tokens") is None and found not in SHIPPED_TOKENS:
        raise ValueError(
            "softrepa needs --tokens FILE (datekit softrepa train makes one), except for the models whose tokens ship: "
            f"{', '.join(SHIPPED_TOKENS)}"
        )
    return found


def check_read(name: str, given: Mapping[str, Any], best_of: int | None) -> None:
    """Raise ValueError for a given option that neither the method nor a best-of reads."""
    read = {option for part in name.split("+") for option in METHODS.get(part, ("", {}))[1]}
    read |= set(WHEN) if set(name.split("+")) - {"fixed"} else set()
    read |= {"reward"} if best_of else set()
    idle = [option for option in OPTIONS if given.get(option) is not None and option not in read]
    if idle:
        raise ValueError(
            f"--method {name} does not read {', '.join('--' + option.replace('_', '-') for option in idle)}"
        )


def sampler_from(options: Mapping[str, Any]):
    """The sampler, or best-of-N, that the options of `datekit generate` mean. Raises ValueError where they do not fit."""
    import torch

    from ..backbones import load
    from ..best_of_n import best_of
    from ..sampler import Sampler

    name, n = options["method"], options.get("best_of")
    n = None if n is None else whole("--best-of", n, 1)
    check_read(name, options, n)
    threads = options.get("threads")
    torch.set_num_threads(1 if threads is None else whole("--threads", threads, 1))
    dtype = options.get("dtype")
    backbone = load(
        options["model"],
        device=_device(options.get("device")),
        dtype=getattr(torch, dtype) if dtype else None,
    )
    needed = n or any("reward" in METHODS[part][1] for part in name.split("+") if part in METHODS)
    text = options.get("reward") or default_reward(backbone.source)
    reward = reward_named(text, device=str(backbone.device)) if needed else None
    sampler = Sampler(
        backbone,
        method_from(name, options, reward),
        num_steps=options.get("steps"),
        solver=options.get("scheduler"),
        guidance_scale=options.get("guidance_scale"),
        eta=options.get("eta") or 0.0,
        checkpointing=options.get("gradient_checkpointing") or None,
    )
    return best_of(sampler, n, reward) if n else sampler


def _device(name: str | None) -> str | None:
    """Each process its own GPU."""
    import torch

    if name in (None, "cuda") and torch.cuda.is_available():
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = (
            False,
            True,
        )  # the same bits on every run
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return name


def _schedule(when: Mapping[str, Any]):
    from .. import schedules

    given = {option: value for option, value in when.items() if value is not None}
    if len(given) > 1:
        raise ValueError(
            f"give one of {', '.join('--' + option.replace('_', '-') for option in given)}, not several"
        )
    for option, value in given.items():
        if option == "update_every":
            return schedules.every(value)
        if option == "update_fraction":
            return schedules.fraction(value)
        if option == "update_steps":
            return schedules.steps(_numbers(value))
        if value not in STAGES:
            raise unknown("stage", value, STAGES)
        return getattr(schedules, value)()
    return None


def _numbers(text: str) -> list[int]:
    """ "0,10,20" and "10:20" (10 to 19) as numbers."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?::(\d+))?\s*", part)
        if not match:
            raise ValueError(f"steps are given as '0,10,20' or '10:20' (10 to 19), got {text!r}")
        first = int(match[1])
        found += range(first, int(match[2])) if match[2] else [first]
    return found
