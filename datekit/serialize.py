"""Settings and records as plain data and back: what `Run.save` writes to its file."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import numbers
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from .backbones import Backbone, families, load
from .backbones.identity import digest, fingerprint
from .files import device_here
from .registry import Registered, find, settings_of
from .types import Conditioning, Record, RewardGradient, State, StepInfo

MEMORY = ("micro_batch", "decode_batch", "checkpointing", "keep_graph", "device")
GIVE_IT = "give the sampler that it was made with, as in Run.load(path, sampler)"
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
            return {"kind": value.kind, "type": type(value).__name__} | describe(settings)
    kind = type(value).__qualname__
    name = getattr(value, "name", None) or getattr(value, "__name__", kind)
    return {"opaque": name, "of": kind, "with": _told(value)}


def _told(value: Any) -> dict:
    """What is plain in an object and in the functions in it, and digests of code and weights."""
    told = {}
    for key, own in {"itself": value, **getattr(value, "__dict__", {})}.items():
        for name, part in {"": own, **_outside(own)}.items():
            if (plain := _plain(part)) is not None:
                told[f"{key}.{name}".strip(".")] = plain
    return told


def _outside(function: Any) -> dict:
    """What a function uses that is not in its code: other variables, and defaults by number."""
    if not inspect.isfunction(function):
        return {}
    used = inspect.getclosurevars(function)
    return {**used.globals, **used.nonlocals, **dict(enumerate(function.__defaults__ or ()))}


def _plain(value: Any) -> Any:
    """A value that a file can hold, for code and weights a digest, and None for all else."""
    if hasattr(value, "__code__"):
        return hashlib.sha256(repr(_parts_of(value.__code__)).encode()).hexdigest()[:16]
    if isinstance(value, (Tensor, torch.nn.Module)):
        return digest(value)
    return value if isinstance(value, (str, int, float)) else None


def _parts_of(constant: Any) -> Any:
    """The code of a function, or a constant in it, as it reads in every process."""
    if isinstance(constant, CodeType):
        return constant.co_code, constant.co_names, [_parts_of(x) for x in constant.co_consts]
    return sorted(constant, key=repr) if isinstance(constant, frozenset) else constant


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
    settings = {key: rebuild(item) for key, item in data.items() if key not in ("kind", "type")}
    if "kind" not in data:
        return settings
    cls = find(data["kind"], data["type"])
    if settings.get("device"):
        settings["device"] = device_here(settings["device"])
    return cls.rebuild(settings) if hasattr(cls, "rebuild") else cls(**settings)


def _rebuild_backbone(data: dict) -> Backbone:
    """Load a model with such settings alone as make nobody fetch or run code."""
    allowed = {"variant", "revision"}
    for family in families():
        allowed = allowed.union(family.load_settings, *family.models.values())
    settings, dtype = data["settings"], getattr(torch, data["dtype"].split(".")[-1], None)
    if set(settings) - allowed or not isinstance(dtype, torch.dtype):
        asked = ", ".join(sorted(set(settings) - allowed)) or data["dtype"]
        raise ValueError(f"this file asks for {asked}, which a file may not: {GIVE_IT}")
    return load(data["backbone"], dtype=dtype, device=device_here(data["device"]), **settings)


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
    """The inverse of `pack`, with all tensors on a device."""
    if isinstance(value, dict):
        items = {key: unpack(item, device) for key, item in value.items() if key != "record"}
        return RECORDS[value["record"]](**items) if "record" in value else items
    if isinstance(value, (list, tuple)):
        return type(value)(unpack(item, device) for item in value)
    return value.to(device) if isinstance(value, Tensor) else value
