"""A sampler's settings as plain data, and back: what `Run.save` writes beside the tensors."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from . import methods, rewards, schedules
from .methods import rho_rules
from .rewards import decoders
from .backbones import Backbone, load
from .methods import Method
from .methods.rho_rules import RhoRule
from .rewards.base import Reward, WeightedSum
from .schedules import Schedule
from .methods.soft_tokens import SoftTokens

_COMBINED = (rewards.Standardised, rewards.PerConcept)


def describe(value: Any) -> Any:
    """Settings as JSON-like data; what cannot be made again from data is {"opaque": its name}."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if type(value) in _known().values():
        return {"type": type(value).__name__} | {
            f.name: describe(getattr(value, f.name)) for f in fields(value)
        }
    if isinstance(value, SoftTokens):
        return value.describe()
    if isinstance(value, decoders.DecodedWith):
        return {"through": describe(value.reward), "decoder": describe(value.kind)}
    if isinstance(value, WeightedSum):
        return {"sum": describe(value.parts)}
    if isinstance(value, Reward) and value.name in rewards.SHIPPED:
        return {"reward": value.name, "device": value.device.type}
    if (
        isinstance(value, Reward)
        and rewards.CLASSES.get(type(value).__name__) is type(value)
        and value.settings is not None
    ):
        return {
            "reward": type(value).__name__,
            "settings": value.settings,
            "device": value.device.type,
        }
    if isinstance(value, Backbone):
        loadable = {
            "backbone": value.source,
            "dtype": str(value.dtype),
            "device": value.device.type,
            "settings": dict(value.settings),
        }
        return loadable if value.source else {"opaque": value.name}
    if hasattr(value, "backbone") and hasattr(value, "solver"):
        solver = {
            "solver": value.solver.name or {"opaque": str(value.solver)},
            "eta": value.solver.eta,
        }
        return (
            {
                "kind": type(value).__name__,
                "backbone": describe(value.backbone),
                "method": describe(value.method),
            }
            | solver
            | {name: getattr(value, name) for name in value.options}
        )
    return {
        "opaque": getattr(value, "name", None) or getattr(value, "__name__", type(value).__name__)
    }


def rebuild(spec: dict[str, Any]):
    """The sampler of a description. Raises ValueError where a part has no name to load it by."""
    from .sampler import Sampler

    kinds = {"Sampler": Sampler}
    if spec["kind"] != "Sampler":
        from .editing import SAMPLERS

        kinds |= {cls.__name__: cls for cls in SAMPLERS}
    settings = {name: _rebuilt(value) for name, value in spec.items()}
    if (kind := settings.pop("kind")) not in kinds:
        raise ValueError(f"a run of a {kind} needs that sampler: Run.load(path, sampler)")
    return kinds[kind](settings.pop("backbone"), **settings)


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What two descriptions disagree on, one line each. Where it ran and how memory is bounded do not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [
            key
            for key in old | new
            if key not in ("micro_batch", "decode_batch", "checkpointing", "device")
        ]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for n, pair in enumerate(zip(old, new, strict=True))
            for line in differences(*pair, f"{where}[{n}]")
        ]
    return [] if old == new else [f"{where} was {old!r:.200}, now {new!r:.200}"]


def _available(device: str) -> str | None:
    import torch

    return None if device == "cuda" and not torch.cuda.is_available() else device


def _known() -> dict[str, type]:
    candidates = vars(methods) | vars(schedules) | vars(rho_rules)
    kinds = {
        name: cls
        for name, cls in candidates.items()
        if isinstance(cls, type) and issubclass(cls, (Method, Schedule, RhoRule))
    }
    return kinds | {cls.__name__: cls for cls in (*_COMBINED, *decoders.DECODERS.values())}


def _rebuilt(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_rebuilt(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "type" in value:  # first, since a method's fields have names such as "reward"
        return _typed(value)
    if "soft_tokens" in value:
        return SoftTokens.rebuild(value)
    if "opaque" in value:
        raise ValueError(
            f"this run used {value['opaque']!r}, which cannot be loaded by a name: Run.load(path, sampler)"
        )
    if "backbone" in value:
        import torch

        dtype = getattr(torch, value["dtype"].removeprefix("torch."))
        return load(
            value["backbone"],
            dtype=dtype,
            device=_available(value["device"]),
            **value.get("settings", {}),
        )
    if "reward" in value:
        device = _available(value["device"])
        if "settings" not in value:
            return rewards.load(value["reward"], device=device)
        if value["reward"] not in rewards.CLASSES:
            raise ValueError(f"this version of datekit knows no reward {value['reward']!r}")
        return rewards.CLASSES[value["reward"]](**value["settings"], device=device)
    if "through" in value:
        return decoders.through(_rebuilt(value["through"]), _rebuilt(value["decoder"]))
    if "sum" in value:
        return WeightedSum(_rebuilt(value["sum"]))
    raise ValueError(f"this version of datekit cannot read {sorted(value)}")


def _typed(value: dict[str, Any]) -> Any:
    known = _known()
    if value["type"] not in known:
        raise ValueError(f"this version of datekit knows no {value['type']!r}")
    cls = known[value["type"]]
    settings = {name: _rebuilt(item) for name, item in value.items() if name != "type"}
    return cls(settings["wanted"]) if cls is schedules.steps else cls(**settings)
