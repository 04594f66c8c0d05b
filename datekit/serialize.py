"""Settings and records as plain data and back: what `Run.save` writes to its file."""

from __future__ import annotations

import dataclasses
import numbers
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Module

from .backbones import SHIPPED, Backbone, families, load
from .backbones.identity import digest, fingerprint, networks_of, of_library, parts_of
from .files import device_here
from .registry import Registered, find, settings_of
from .rewards.network import NetworkReward
from .types import Conditioning, Record, RewardGradient, State, StepInfo

MEMORY = ("micro_batch", "decode_batch", "checkpointing", "keep_graph", "device")
GIVE_IT = "give the sampler that it was made with, as in Run.load(path, sampler)"
DEFINED = ("kind", "type", "code", "weights")  # what tells a class from others of its name
RECORDS = {cls.__name__: cls for cls in (Conditioning, State, RewardGradient, StepInfo)}


def describe(value: Any) -> Any:
    """Settings as JSON-like data; a registered class tells its `describe()` or dataclass fields.

    What cannot be made again from data becomes {"opaque": its name}, with what is plain in it, so
    that two of them can be told apart.
    """
    if value is None or isinstance(value, bool):
        return value
    for kinds, plain in (((str, Path), str), (numbers.Integral, int), (numbers.Real, float)):
        if isinstance(value, kinds):
            return plain(value)  # numpy's own could not be read again
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, Backbone):
        where = {"dtype": str(value.dtype), "device": value.device.type}
        where |= {"weights": fingerprint(value)}
        if not value.source:
            return {"opaque": value.name} | where
        return {"backbone": value.source, "settings": dict(value.settings)} | where
    if isinstance(value, Registered):
        settings = value.describe() if hasattr(value, "describe") else settings_of(value)
        if settings is not None:
            code = {} if of_library(type(value).__module__) else {"code": digest(type(value))}
            if networks := networks_of(value):  # which others may have taken the place of
                code |= {"weights": digest(networks)}
            return {"kind": value.kind, "type": type(value).__name__} | describe(settings) | code
    kind = type(value).__qualname__
    name = getattr(value, "name", None) or getattr(value, "__name__", kind)
    return {"opaque": name, "of": kind, "with": _told(value)}


def _told(value: Any) -> dict:
    """A digest of an object, and by name what is plain in it."""
    known = {} if isinstance(value, Module) else parts_of(value)  # a network has too many
    parts = {"itself": digest(value), **known}
    return {str(name): part for name, part in parts.items() if isinstance(part, (str, int, float))}


def rebuild(data: Any) -> Any:
    """The object of a description. Raises ValueError where a part has no name to load it by."""
    if isinstance(data, list):
        return tuple(rebuild(item) for item in data)
    if not isinstance(data, dict):
        return data
    if "opaque" in data:
        what = repr(data["opaque"])
        raise ValueError(f"this file used {what}, which cannot be loaded by a name: {GIVE_IT}")
    if "backbone" in data and "kind" not in data:
        return _rebuild_backbone(data)
    settings = {key: rebuild(item) for key, item in data.items() if key not in DEFINED}
    if "kind" not in data:
        return settings
    cls = find(data["kind"], data["type"])
    if issubclass(cls, NetworkReward) and not _comes_along(cls, data):
        raise ValueError(f"a file alone does not load the weights of a {cls.__name__}: {GIVE_IT}")
    if settings.get("device"):
        settings["device"] = device_here(settings["device"])
    return cls.rebuild(settings) if hasattr(cls, "rebuild") else cls(**settings)


def _comes_along(cls: type[NetworkReward], data: dict) -> bool:
    """Whether a reward's weights are those of a shipped name, and nothing else is said of them."""
    common = {field.name for field in dataclasses.fields(NetworkReward)}
    own = [field for field in dataclasses.fields(cls) if field.name not in common]
    named = bool(own) and data.get(own[0].name) in cls.SHIPPED
    return named and all(data.get(each.name, each.default) == each.default for each in own[1:])


def _rebuild_backbone(data: dict) -> Backbone:
    """Load a model that comes along, with such settings alone as make nobody fetch or run code."""
    name, settings, known, allowed = data["backbone"], data["settings"], {*SHIPPED}, set()
    for family in families():
        known |= {*family.models}
        allowed = allowed.union(family.load_settings, *family.models.values())
    if name not in known or not allowed.issuperset(settings):
        raise ValueError(f"a file alone does not load {name!r} with {settings!r}: {GIVE_IT}")
    dtype, device = data["dtype"].removeprefix("torch."), device_here(data["device"])
    return load(name, dtype=dtype, device=device, **settings)


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What two descriptions disagree on, one line each, but for device and memory."""
    lines = []
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            if key not in MEMORY:
                lines += differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for n, (before, after) in enumerate(zip(old, new, strict=True)):
            lines += differences(before, after, f"{where}[{n}]")
    elif old != new:
        lines.append(f"{where} was {old!r:.200}, now {new!r:.200}")
    return lines


def pack(value: Any) -> Any:
    """Records as plain containers of tensors, which `torch.load(weights_only=True)` accepts."""
    if isinstance(value, Record):
        names = [f.name for f in dataclasses.fields(value) if f.name != "decode"]
        return {"record": type(value).__name__} | {n: pack(getattr(value, n)) for n in names}
    if isinstance(value, dict):
        return {key: pack(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(pack(item) for item in value)
    return value


def unpack(value: Any, device: Any) -> Any:
    """The inverse of `pack`, with all tensors on a device. Raises TypeError for a field of another
    kind than its record's.
    """
    if isinstance(value, dict):
        items = {key: unpack(item, device) for key, item in value.items() if key != "record"}
        if "record" not in value:
            return items
        record = RECORDS[value["record"]](**items)
        for name, hint in typing.get_type_hints(type(record)).items():
            if not _fits(getattr(record, name), hint):
                raise TypeError(f"{name} of a {value['record']} is {getattr(record, name)!r:.80}")
        return record
    if isinstance(value, (list, tuple)):
        return type(value)(unpack(item, device) for item in value)
    return value.to(device) if isinstance(value, Tensor) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that the annotation of a record's field says."""
    parts = typing.get_args(hint)
    if hint is Any or typing.get_origin(hint) is Callable:
        return True
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if typing.get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    if typing.get_origin(hint) is tuple:
        return isinstance(value, (tuple, list)) and all(_fits(item, parts[0]) for item in value)
    return isinstance(value, (int, float) if hint is float else hint)
