"""What a user may give to start a run, checked before anything is sampled."""

from __future__ import annotations

from torch import Tensor

from .errors import has_numbers, is_whole


def check_seeds(seeds) -> tuple[int, ...]:
    """The seeds as a tuple. Raises ValueError for what is no whole number from 0 up."""
    seeds = [seeds] if is_whole(seeds) else list(seeds)
    for seed in seeds:
        if not is_whole(seed) or not 0 <= seed < 2**63:
            raise ValueError(f"a seed is a whole number from 0 to 2**63 - 1, got {seed!r}")
    return tuple(int(seed) for seed in seeds)


def check_prompts(prompts, count: int, latents) -> tuple[str, ...]:
    """The prompts as a tuple; one string stands for all samples. Raises TypeError or ValueError."""
    if isinstance(prompts, str):
        many = isinstance(latents, Tensor) and latents.ndim == 4
        return (prompts,) * (max(count, len(latents)) if many else count)
    prompts = tuple(prompts)
    if not prompts:
        raise ValueError("no prompts: give at least one")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"a prompt is a string, got {type(prompt).__name__}")
    return tuple(str(prompt) for prompt in prompts)  # numpy's strings would not survive a file


def check_negatives(negative_prompts, count: int) -> tuple[str | None, ...]:
    """The negative prompts, one a sample, None where nobody gave one. Raises ValueError."""
    if negative_prompts is None or isinstance(negative_prompts, str):
        return (negative_prompts,) * count
    negatives = check_prompts(negative_prompts, count, None)
    if len(negatives) != count:
        raise ValueError(
            f"{count} prompts need {count} negative prompts (or one string for all), "
            f"got {len(negatives)}"
        )
    return negatives


def check_latents(latents, count: int, shape: tuple[int, int, int], sized: bool) -> None:
    """Raise ValueError for latents of another shape, or with NaN or infinity in them."""
    found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
    fits = isinstance(latents, Tensor) and latents.ndim == 4 and found[:2] == (count, shape[0])
    if not fits or (sized and found[1:] != tuple(shape)):
        raise ValueError(f"latents must be a tensor of shape {(count, *shape)}, got {found}")
    if has_numbers(latents) and not latents.isfinite().all():
        raise ValueError("latents hold NaN or infinity")
