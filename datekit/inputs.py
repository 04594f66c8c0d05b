"""What a user may give to start a run, checked before anything is sampled."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .backbones import Backbone
from .errors import has_numbers, whole
from .methods import Method
from .noise import fresh_seeds
from .schedulers import kind_of
from .schedules import Schedule


def check_method(method: Any) -> None:
    """Raise TypeError for what is no method, such as a reward."""
    if not isinstance(method, Method):
        raise TypeError(f"method must be a method such as dk.DATE(reward), got {method!r}")


def check_prompts(prompts, seeds, latents) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Prompts and seeds, one a sample; one string serves all samples, and seeds may be None.

    Raises TypeError or ValueError for what is no prompt or no seed, or for counts that differ.
    """
    seeds = None if seeds is None else check_seeds(seeds)
    if isinstance(prompts, str):
        samples = latents if seeds is None else seeds
        prompts = [prompts] * (len(samples) if hasattr(samples, "__len__") else 1)
    prompts = _check_texts(prompts)
    if not prompts:
        raise ValueError("no prompts: give at least one")
    seeds = fresh_seeds(len(prompts)) if seeds is None else seeds
    if len(seeds) != len(prompts):
        got = f"got {len(seeds)}; one prompt as a plain string is sampled once for each seed"
        raise ValueError(f"{len(prompts)} prompts need {len(prompts)} seeds, {got}")
    return prompts, seeds


def check_negatives(negative_prompts, count: int) -> tuple[str | None, ...]:
    """The negative prompts, one a sample, None where nobody gave one. Raises ValueError."""
    if negative_prompts is None or isinstance(negative_prompts, str):
        return (negative_prompts,) * count
    negatives = _check_texts(negative_prompts)
    if len(negatives) != count:
        wanted = f"{count} negative prompts (or one string for all)"
        raise ValueError(f"{count} prompts need {wanted}, got {len(negatives)}")
    return negatives


def check_latents(latents, count: int, shape: tuple[int, int, int], sized: bool) -> None:
    """Raise ValueError for latents of another shape, or with NaN or infinity in them."""
    given = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
    wanted = (count, *shape) if sized else (count, shape[0], *given[2:4])
    if given != wanted or len(given) != 4:
        raise ValueError(f"latents must be a tensor of shape {(count, *shape)}, got {given}")
    if has_numbers(latents) and not latents.isfinite().all():
        raise ValueError("latents hold NaN or infinity")


def check_schedules(method: Method, num_steps: int, first: int = 0) -> None:
    """Raise ValueError where a method would act in no step of a run from step `first` on."""
    for part in getattr(method, "parts", (method,)):
        when = getattr(part, "when", None)
        if isinstance(when, Schedule) and max(when.indices(num_steps), default=-1) < first:
            span = f"a run from step {first} to {num_steps - 1}"
            raise ValueError(f"{when} has no step in {span}; for none, use dk.Fixed()")


def warn_low_guidance(scale: float) -> None:
    """Warn of a guidance scale below 1, which means another thing in diffusers."""
    if scale < 1:
        warnings.warn(
            f"guidance_scale={scale:g} is uncond + {scale:g} (cond - uncond) here. In diffusers a "
            "scale up to 1 means no guidance, as turbo and LCM models want it: take "
            "guidance_scale=1 for that",
            stacklevel=3,
        )


def warn_distilled(backbone: Backbone, num_steps: int | None, guidance_scale: float | None) -> None:
    """Warn where a common scheduler alone says that a model is distilled, and nobody else did."""
    kind = kind_of(backbone.scheduler)
    told = num_steps is not None or guidance_scale is not None
    if kind.startswith("Euler") and backbone.distilled and not told:
        warnings.warn(
            f"{kind} with trailing timesteps is taken for that of a model distilled to few steps "
            "(Turbo, Lightning): num_steps=4, guidance_scale=1. Give both for any other model",
            stacklevel=3,
        )


def check_seeds(seeds) -> tuple[int, ...]:
    """The seeds as a tuple. Raises ValueError for what is no whole number from 0 to 2**63 - 1."""
    return tuple(whole("a seed", seed, 0, 2**63 - 1) for seed in _listed(seeds))


def _listed(values) -> tuple:
    """The values as a tuple; of what is no collection a tuple of one."""
    values = values.tolist() if hasattr(values, "tolist") else values  # numpy's and torch's
    return tuple(values) if isinstance(values, Iterable) else (values,)


def _check_texts(prompts) -> tuple[str, ...]:
    prompts = _listed(prompts)
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"a prompt is a string, got {type(prompt).__name__}")
    return tuple(str(prompt) for prompt in prompts)  # numpy's strings would not survive a file
