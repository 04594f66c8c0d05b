"""Which network, and which code, it is: what was begun with one is not gone on with by another."""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import inspect
import json
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from ..errors import has_numbers
from ..registry import Registered, settings_of
from .base import Backbone

PLAIN = (str, bytes, int, float, complex, type(None), enum.Enum, Path, torch.dtype, torch.device)
LISTS, SETS = (list, tuple, deque), (set, frozenset)
CODE = (FunctionType, staticmethod, classmethod, property)
ACTING = ("_active_adapter", "_cache_config", "_disable_adapters")  # hidden settings of networks
IDLE = ("gradient_checkpointing",)  # which changes no number


def fingerprint(backbone) -> str:
    """A digest of class, precision, settings, noise schedule, vocabulary, and of its networks.

    So of what a user has put on the pipeline itself, in the place of its own functions.
    """
    facts: list[Any] = [type(backbone).__name__, str(backbone.dtype)]
    facts.append(_plain(backbone.scheduler.config))
    facts += [getattr(backbone, name) for name in backbone.load_settings]
    parts = vars(backbone)
    if hasattr(backbone, "pipe"):
        facts.append(_plain(backbone.pipe.config))
        parts = vars(backbone.pipe) | parts | backbone.pipe.components
    parts |= {"betas": getattr(backbone.scheduler, "betas", None)}
    with backbone.lock:  # no method has patched it
        for name, part in sorted(parts.items()):
            if hasattr(part, "get_vocab"):
                facts.append((sorted(part.get_vocab().items()), part.model_max_length))
            elif inspect.isfunction(part) or inspect.ismethod(part):
                facts.append((name, digest(part)))
            elif isinstance(part, (Tensor, torch.nn.Module)):
                facts.append((name, digest(part), _plain(getattr(part, "config", None))))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def digest(value: Any, known: dict | None = None) -> str:
    """A digest of a value and of all that it is made of, the same in every process.

    Of a network that is each weight, on any device, each part's settings, and hooks; of code, what
    it uses. A library's own code stays as it is, and its other objects are what they show. Not seen
    is a module that a function imports when it is called. known: digests of what was met
    already, by identity, with it, as another may take its place.
    """
    known = {} if known is None else known
    if id(value) not in known:
        known[id(value)] = value, ""  # for what holds itself
        parts = sorted(parts_of(value).items(), key=lambda item: str(item[0]))
        facts = [type(value).__qualname__, _itself(value)]
        facts += [(str(name), digest(part, known)) for name, part in parts]
        known[id(value)] = value, hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
    return known[id(value)][1]


def _itself(value: Any) -> Any:
    """What a value says of itself alone."""
    if isinstance(value, PLAIN):
        return str(value)
    if isinstance(value, (Tensor, torch.nn.Module)):
        return _weights(value)
    if isinstance(value, (Mapping, *LISTS, *SETS, Registered)):
        return None
    if hasattr(value, "__code__"):
        return _code(value.__code__)
    if name := getattr(value, "__qualname__", None) or getattr(value, "__name__", None):
        return name
    if not of_library(type(value).__module__):
        return None
    told = re.sub(" at 0x[0-9a-fA-F]+", "", repr(value)), str(getattr(value, "dtype", ""))
    return told, value.tobytes() if hasattr(value, "tobytes") else b""  # arrays and pictures


def parts_of(value: Any) -> Mapping:
    """What a value is made of, by name: its items, its settings, or what a function uses."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (*LISTS, *SETS)):
        return dict(enumerate(sorted(value, key=repr) if isinstance(value, SETS) else value))
    if isinstance(value, Backbone):
        return {"weights": fingerprint(value)}
    if isinstance(value, Registered):
        own = value.describe() if hasattr(value, "describe") else settings_of(value)
        return {"class": type(value)} | (vars(value) if own is None else own | networks_of(value))
    if isinstance(value, torch.nn.Module):
        return dict(_acting(value))
    if isinstance(value, functools.partial):
        return {"func": value.func, "args": value.args, "keywords": value.keywords}
    if hasattr(value, "__func__"):  # a method, of whichever kind
        return {"function": value.__func__, "self": getattr(value, "__self__", None)}
    if isinstance(value, property):
        return {"function": value.fget}
    if inspect.ismodule(value) or of_library(getattr(value, "__module__", "")):
        return {}
    if inspect.isfunction(value):
        return _used(value)
    if isinstance(value, type):
        own = {n: x for n, x in vars(value).items() if n[:2] != "__" or isinstance(x, CODE)}
        return own | {"bases": value.__bases__}
    parts, state = {"class": type(value)}, object.__getstate__(value)
    for held in state if isinstance(state, tuple) else (state,):  # with slots there are two
        parts |= held or {}
    return parts


def networks_of(value: Any) -> dict[str, torch.nn.Module]:
    """The networks that an object holds, by name."""
    held = vars(value).items()
    return {name: part for name, part in held if isinstance(part, torch.nn.Module)}


def _used(function: FunctionType) -> dict:
    """What a function, and the code inside of it, uses from outside, by name."""
    code, codes = function.__code__, [function.__code__]
    for each in codes:
        codes += [constant for constant in each.co_consts if isinstance(constant, CodeType)]
    found = {"defaults": function.__defaults__, "keywords": function.__kwdefaults__}
    found |= vars(function)
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    found |= {name: cell.cell_contents for name, cell in cells}
    steps = [step for each in codes for step in dis.get_instructions(each)]
    names = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    spaces = [function.__globals__]
    for space in spaces:
        for name in names & space.keys():
            found[f"{space['__name__']}.{name}"] = part = space[name]
            own = inspect.ismodule(part) and not of_library(part.__name__)
            if own and all(vars(part) is not other for other in spaces):
                spaces.append(vars(part))
        names = {name for each in codes for name in each.co_names}  # of a module's attributes
    return found


def _acting(network: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """What acts in a network beside its weights: its parts' classes, settings and hooks.

    Parts by transformers have no settings that a user sets, but some of how they were loaded.
    """
    for path, module in network.named_modules():
        yield f"{path} class", type(module)
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        own = [hook for hook in hooks if not _by_transformers(hook)]  # its own come and go
        yield f"{path} hooks", own
        theirs = _by_transformers(type(module))
        for name, part in vars(module).items():
            hidden = theirs or name in IDLE or (name[0] == "_" and name not in ACTING)
            if name == "forward":  # but for what compiles or offloads
                hidden = of_library(getattr(part, "__module__", ""))
            if not hidden and part is not None:
                yield f"{path} {name}", part


def _by_transformers(code: Any) -> bool:
    return getattr(code, "__module__", "").startswith("transformers.")


def of_library(module: str | None) -> bool:
    """Whether a module was installed, so that what it defines stays as it is."""
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    top = (module or "builtins").partition(".")[0]
    own = {__package__.partition(".")[0], *sys.stdlib_module_names}
    return top != "__main__" and (top in own or "-packages" in file)


def _code(constant: Any) -> Any:
    """The code of a function, or a constant in it, as it reads in every process."""
    if isinstance(constant, CodeType):
        return constant.co_code, constant.co_names, [_code(x) for x in constant.co_consts]
    return sorted(constant, key=repr) if isinstance(constant, frozenset) else constant


def _plain(config: Any) -> list:
    """What is plain in a configuration of diffusers, in the order of its names."""
    known = config.items() if isinstance(config, dict) else ()
    kinds = (bool, int, float, str, list, tuple)
    return sorted(
        (name, value) for name, value in known if name[0] != "_" and isinstance(value, kinds)
    )


def _weights(weights: Tensor | torch.nn.Module) -> str:
    """A digest of a tensor or of a module's weights."""
    table = {"": weights} if isinstance(weights, Tensor) else weights.state_dict()
    found = hashlib.sha256()
    for name, weight in table.items():
        for part in _inner(weight) if isinstance(weight, Tensor) else ():
            found.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
            if part.numel() and has_numbers(part):
                found.update(_row_sums(part.detach()).cpu().numpy().tobytes())
    return found.hexdigest()


def _inner(weight: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a weight is made of, several for one that is quantised."""
    if not hasattr(weight, "__tensor_flatten__"):
        yield weight
        return
    for name in weight.__tensor_flatten__()[0]:
        yield from _inner(getattr(weight, name))


def _row_sums(weight: Tensor) -> Tensor:
    """The exact sum of each row's words of 8 bytes, (rows,), or all bytes where they do not fit.

    A word counts by an odd number of its own, so that one that changes, or changes places, shows.
    """
    rows = weight.reshape(len(weight) if weight.ndim else 1, -1).contiguous()
    octets = (rows.clone() if rows.storage_offset() % 8 else rows).view(torch.uint8)
    if octets.shape[1] % 8:
        return octets
    words = octets.view(torch.int64)
    return (words * (2 * torch.arange(words.shape[1], device=words.device) + 1)).sum(1)
