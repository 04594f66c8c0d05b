"""What all edits share: the sampler that carries an edit's own tensors along, and the state from which an edit is made."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..rewards.base import check_finite
from ..sampler import Sampler
from ..types import Prediction, State
from .images import as_images, as_keep


class EditSampler(Sampler):
    """A `Sampler` for edits that begin at a noised or inverted image; every method works as in plain sampling.

    `State.extras` may hold: residual (B, C, h, w), what the last step adds where it takes no noise and would miss the image; keep
    (B, 1, h, w) bool with path (B, T + 1, C, h, w), the source's latent before each step and after the last, which replaces the
    edit's wherever keep is True. Raises NonFiniteError (step and sample named) for a latent that is not finite.
    """

    def _solve(
        self, state: State, prediction: Prediction, repetition: int = 0
    ) -> tuple[Tensor, dict]:
        xt, memory = super()._solve(state, prediction, repetition)
        if "residual" in state.extras and state.i + 1 == self.num_steps:
            xt = xt + state.extras["residual"]
        return self._checked(self._kept(xt, state), state), memory

    def _kept(self, xt: Tensor, state: State) -> Tensor:
        """The latent of step i + 1 with the source where the mask keeps it."""
        keep = state.extras.get("keep")
        return xt if keep is None else torch.where(keep, self._source_at(state, state.i + 1), xt)

    def _source_at(self, state: State, i: int) -> Tensor:
        return state.extras["path"][:, i]

    def _checked(self, xt: Tensor, state: State) -> Tensor:
        check_finite(
            xt,
            "the edited latent is not finite (is guidance_scale too large?)",
            f" at step {state.i} (t = {state.t:g})",
        )
        return xt


def is_flow(backbone) -> bool:
    """Whether a backbone was trained by flow matching."""
    scheduler = backbone.scheduler
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or scheduler.config.get("prediction_type") == "flow_prediction"
    )


def begin(
    sampler: Sampler,
    image,
    prompts: Sequence[str] | str,
    *,
    seeds=None,
    negative_prompts=None,
    height: int | None = None,
    width: int | None = None,
    fit: str | None = None,
) -> tuple[State, Tensor]:
    """The image's latent with its prompts as a `State` whose xt is x0, and the pictures (B, 3, H, W) as the model takes them.

    One image goes with several prompts or seeds, and one prompt, a plain string, with several images. Raises ValueError for counts of
    images, prompts and seeds that do not go together.
    """
    pixels = as_images(image, sampler.backbone, height=height, width=width, fit=fit)
    seeds = (
        [seeds] if isinstance(seeds, numbers.Integral) else None if seeds is None else list(seeds)
    )
    count = _count(
        len(pixels),
        None if isinstance(prompts, str) else len(prompts),
        None if seeds is None else len(seeds),
    )
    pixels = pixels.repeat(count, 1, 1, 1) if len(pixels) < count else pixels
    with torch.no_grad():
        x0 = sampler.backbone.encode_images(pixels)
    check_finite(x0, "the image's latent is not finite", "")
    prompts = prompts if isinstance(prompts, str) or len(prompts) == len(x0) else prompts[0]
    state = sampler.init(prompts, seeds=seeds, latents=x0, negative_prompts=negative_prompts)
    return state.replace(xt=x0.to(sampler.backbone.device, sampler.backbone.dtype)), pixels


def _count(images: int, prompts: int | None, seeds: int | None) -> int:
    """How many edits so many images, prompts and seeds make; None: one prompt as a plain string, and fresh seeds."""
    several = prompts not in (None, 1)
    if images == 1 and not several and seeds:
        return seeds
    count, what = (prompts, "prompts") if images == 1 and several else (images, "images")
    if images > 1 and several and prompts != images:
        raise ValueError(
            f"{images} images take {images} prompts, or one for all as a plain string, got {prompts}"
        )
    if seeds not in (None, count):
        raise ValueError(f"{count} {what} take {count} seeds, got {seeds}")
    return count


def source_prompts(source) -> list[str] | str:
    """The source prompt as a string or list; an empty one says, with a warning, that the image is taken without a description.

    Raises TypeError where a prompt is no string, ValueError for an empty list.
    """
    source = _strings("" if source is None else source, "a source prompt")
    if not source and not isinstance(source, str):
        raise ValueError("no source prompt: give one an image, or one for all as a plain string")
    if any(not prompt.strip() for prompt in _listed(source)):
        warnings.warn(
            "the source prompt is empty: the image is taken without a description; say what it shows for a closer edit",
            stacklevel=3,
        )
    return source


def check_target(target) -> list[str] | str:
    """The target prompt as a string or list. Raises ValueError where it is empty, TypeError where it is no string."""
    target = _strings(target, "a target prompt")
    if not target or any(not prompt.strip() for prompt in _listed(target)):
        raise ValueError("the target prompt is empty: say what the edited picture should show")
    return target


def first_step(skip: float, num_steps: int) -> int:
    """The step that an edit starts at: skip as a number of steps (whole) or as a share of them (below 1). Raises ValueError outside."""
    if isinstance(skip, bool) or not isinstance(skip, numbers.Real):
        raise ValueError(f"skip is a number of steps or a share of them, got {skip!r}")
    if not isinstance(skip, numbers.Integral) and not 0 <= skip < 1:
        raise ValueError(
            f"skip as a share lies in [0, 1), got {skip!r}; a whole number counts steps"
        )
    start = int(skip) if isinstance(skip, numbers.Integral) else round(skip * num_steps)
    if not 0 <= start < num_steps:
        raise ValueError(
            f"skip={skip!r} leaves none of {num_steps} steps; take a number from 0 to {num_steps - 1}, or a share below 1"
        )
    return start


def extras_of(keep, sampler: Sampler, path: Tensor, fit: str | None) -> dict[str, Tensor]:
    """The mask and the path that goes with it, or nothing without a mask."""
    return (
        {}
        if keep is None
        else {"keep": as_keep(keep, sampler.backbone, path[:, 0], fit=fit), "path": path}
    )


def _strings(prompts, what: str) -> list[str] | str:
    """A plain string as it is, strings that can be gone through as a list."""
    if isinstance(prompts, str):
        return prompts
    if not isinstance(prompts, Iterable) or isinstance(prompts, (bytes, dict)):
        raise TypeError(
            f"{what} is a string, or a list of them one an image, got {type(prompts).__name__}"
        )
    prompts = list(prompts)
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"{what} is a string, got {type(prompt).__name__} in a list")
    return prompts


def _listed(prompts: list[str] | str) -> list[str]:
    return [prompts] if isinstance(prompts, str) else prompts
