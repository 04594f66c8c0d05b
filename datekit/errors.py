"""Errors that say what to do: for a misspelt name, for a number that is none or does not fit."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module


class DatekitError(Exception):
    """Base of the errors of sampling itself; a run that meets one stays paused where it was."""


class NonFiniteError(DatekitError, FloatingPointError):
    """A reward or gradient was NaN or infinite; nothing was changed."""


class RewardError(DatekitError, ValueError):
    """A reward broke its contract: (images, prompts) -> (B,), differentiable in the images."""


def unknown(kind: str, name: object, known: Iterable[str], more: str = "") -> ValueError:
    """The error for a name that is none of `known`, with the nearest ones first."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), known, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(map(repr, known))}.{more}")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, Python's or numpy's; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def whole(what: str, value: object, least: int, most: float = math.inf) -> int:
    """The value as an int. Raises ValueError unless it is a whole number from least to most."""
    if not is_whole(value) or not least <= value <= most:
        end = "up" if most == math.inf else f"to {most}"
        raise ValueError(f"{what} must be a whole number from {least} {end}, got {value!r}")
    return int(value)


def finite(what: str, value: object, least: float = 0.0) -> float:
    """The value as a Python number. Raises ValueError unless it is finite and at least `least`."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" from {least:g} up"
        raise ValueError(f"{what} must be a finite number{bound}, got {value!r}")
    return value if type(value) in (int, float) else float(value)


def has_numbers(values: Tensor) -> bool:
    """Whether a tensor holds numbers: one on the meta device and a fake one have a shape alone."""
    from torch._subclasses.fake_tensor import FakeTensor

    return not values.is_meta and not isinstance(values, FakeTensor)


def check_context(device: torch.device) -> None:
    """Raise RuntimeError inside torch.autocast, which would change numbers without a word.

    So for a default device on which new tensors would be away from the model's, and for a default
    precision in which a sampler's own numbers would be too coarse.
    """
    import torch

    if (default := torch.get_default_dtype()).itemsize < 4:
        coarse = f"torch.set_default_dtype({default}) would make a sampler's numbers coarse"
        raise RuntimeError(
            f"{coarse}: leave it at float32, and load the model with dtype={default}"
        )

    if (default := torch.get_default_device().type) not in ("cpu", device.type):
        away = f"torch.set_default_device({default!r}) puts new tensors away from the model"
        raise RuntimeError(f"{away} on {device.type!r}: set it to 'cpu' or to the model's device")
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        remedy = "leave it, and load the model with dtype=torch.bfloat16 for half precision"
        raise RuntimeError(f"torch.autocast would change what is computed here: {remedy}")


def check_gradient(xt: Tensor) -> None:
    """Raise RuntimeError in or after torch.inference_mode(), where no gradient can be taken."""
    import torch

    if torch.is_inference_mode_enabled() or xt.is_inference():
        told = "torch.inference_mode() rules out the gradient of a reward"
        raise RuntimeError(f"{told}: start and step outside of it; torch.no_grad() does no harm")


def check_frozen(modules: Iterable[Module], name: str) -> None:
    """Raise RuntimeError for weights that take gradients: all steps would be kept in memory."""
    if any(weight.requires_grad for module in modules for weight in module.parameters()):
        told = f"weights of {name} take gradients, perhaps of a LoRA that was loaded after dk.wrap"
        raise RuntimeError(f"{told}: wrap the pipeline again, which freezes it")


def check_layers(network: object) -> None:
    """Raise RuntimeError for layers that are stored in 8 bits, which no gradient passes."""
    weights = network.parameters() if hasattr(network, "parameters") else ()
    if any(kind.is_floating_point and kind.itemsize == 1 for kind in {w.dtype for w in weights}):
        told = "no gradient passes layers stored in 8 bits (layerwise casting)"
        raise RuntimeError(f"{told}; load the network in half precision")


def check_finite(values: Tensor, what: str, where: str = "", first: int = 0) -> None:
    """Raise NonFiniteError that names the samples, counted from `first`, with NaN or infinity."""
    if not has_numbers(values):
        return
    finite = values.detach().isfinite().reshape(len(values), -1).all(1).tolist()
    bad = [str(first + row) for row, ok in enumerate(finite) if not ok]
    if bad:
        kept = "; nothing was changed" if where else ""
        raise NonFiniteError(f"{what} for sample {', '.join(bad)}{where}{kept}")
