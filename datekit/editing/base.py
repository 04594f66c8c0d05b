"""What all edits share: their sampler, the state that they start from, and their prompts."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..errors import check_finite, is_whole
from ..run import Run
from ..sampler import Sampler
from ..types import Prediction, State
from .images import as_images, as_keep


class EditSampler(Sampler):
    """A `Sampler` for edits that begin at a noised or inverted picture; every method works in it.

    `State.extras` may hold residual, (B, C, h, w), which is added after the last step where that
    step takes no noise and would miss the picture. It may hold keep, (B, 1, h, w) bool, with path,
    (B, T + 1, C, h, w), the source's latent before each step and after the last: where keep is
    True, the source's latent replaces the edit's after every step. Raises NonFiniteError, which
    names step and sample, for a latent that is not finite.
    """

    def _solve(
        self, state: State, prediction: Prediction, repetition: int = 0
    ) -> tuple[Tensor, dict]:
        xt, solver_state = super()._solve(state, prediction, repetition)
        if "residual" in state.extras and state.i + 1 == self.num_steps:
            xt = xt + state.extras["residual"]
        return self._checked(self._with_kept(xt, state), state), solver_state

    def _with_kept(self, xt: Tensor, state: State) -> Tensor:
        """The latent of step i + 1, with the source's where the mask keeps it."""
        if "keep" not in state.extras:
            return xt
        return torch.where(state.extras["keep"], self._source_at(state, state.i + 1), xt)

    def _source_at(self, state: State, i: int) -> Tensor:
        return state.extras["path"][:, i]

    def _checked(self, xt: Tensor, state: State) -> Tensor:
        what = "the edited latent is not finite (is guidance_scale too large?)"
        check_finite(xt, what, f" at step {state.i} (t = {state.t:g})")
        return xt


def is_flow(backbone) -> bool:
    """Whether a model was trained by flow matching."""
    return Sampler(backbone).solver.is_flow


def begin(
    sampler: Sampler,
    image,
    prompts: list[str],
    *,
    seeds=None,
    negative_prompts=None,
    height: int | None = None,
    width: int | None = None,
    fit: str | None = None,
) -> tuple[State, Tensor]:
    """A `State` whose xt is the picture's own latent x0, and the pictures as the model takes them.

    image: what `as_images` takes, with height, width and fit; seeds and negative_prompts as for
    `Sampler.init`. One picture or one prompt serves all edits; each edit has a seed of its own.
    The pictures are (B, 3, H, W) in [0, 1]. Raises ValueError for counts of pictures, prompts and
    seeds that do not go together.
    """
    pixels = as_images(image, sampler.backbone, height=height, width=width, fit=fit)
    if seeds is not None:
        seeds = [seeds] if is_whole(seeds) else list(seeds)
    count = max(len(pixels), len(prompts), len(seeds or []))
    own_seeds = seeds is None or len(seeds) == count
    if not (len(pixels) in (1, count) and len(prompts) in (1, count) and own_seeds):
        told = "fresh" if seeds is None else len(seeds)
        raise ValueError(
            f"{len(pixels)} images, {len(prompts)} prompts and {told} seeds do not go together: "
            "one image or one prompt serves all edits, and each edit has a seed of its own"
        )
    pixels = pixels.expand(count, -1, -1, -1)
    with torch.no_grad():
        x0 = sampler.backbone.encode_images(pixels)
    check_finite(x0, "the image's latent is not finite")
    prompts = one_each(prompts, count)
    state = sampler.init(prompts, seeds=seeds, latents=x0, negative_prompts=negative_prompts)
    return state.replace(xt=x0.to(sampler.backbone.device, sampler.backbone.dtype)), pixels


def start_run(sampler: Sampler, state: State, i: int, xt: Tensor, **changes) -> Run:
    """A run that is paused before step i at the latent xt, (B, C, h, w)."""
    t = sampler.solver_for(xt.shape).timesteps[i]
    return Run(sampler, state.replace(xt=xt, i=i, t=t, **changes))


def mask_extras(keep, sampler: Sampler, path: Tensor, fit: str | None) -> dict[str, Tensor]:
    """What `EditSampler` needs for a mask, for `State.extras`; nothing where keep is None."""
    if keep is None:
        return {}
    return {"keep": as_keep(keep, sampler.backbone, path[:, 0], fit=fit), "path": path}


def first_step(skip: float, num_steps: int) -> int:
    """The step that an edit starts at, from `skip`, a whole number of steps or a share below 1."""
    share = isinstance(skip, float) and 0 <= skip < 1
    start = round(skip * num_steps) if share else skip
    if not is_whole(start) or not 0 <= start < num_steps:
        raise ValueError(
            f"skip is a whole number of steps from 0 to {num_steps - 1}, or a share of them from 0 "
            f"to below 1 that leaves at least one, got {skip!r}"
        )
    return int(start)


def source_prompts(source) -> list[str]:
    """The source prompts as a list; a warning says that an empty one describes nothing."""
    prompts = _texts("" if source is None else source, "source")
    if not all(prompt.strip() for prompt in prompts):
        warnings.warn(
            "the source prompt is empty, so the image is taken without a description; say what it "
            "shows for a closer edit",
            stacklevel=3,
        )
    return prompts


def target_prompts(target) -> list[str]:
    """The target prompts as a list. Raises ValueError where one is empty."""
    prompts = _texts(target, "target")
    if not all(prompt.strip() for prompt in prompts):
        raise ValueError("the target prompt is empty: say what the edited picture should show")
    return prompts


def one_each(prompts: list[str], count: int) -> list[str]:
    """As many prompts as there are edits. Raises ValueError for neither one nor one each."""
    if len(prompts) not in (1, count):
        raise ValueError(f"{count} images take one prompt or {count}, got {len(prompts)}")
    return prompts * count if len(prompts) == 1 else prompts


def _texts(prompts, which: str) -> list[str]:
    prompts = [prompts] if isinstance(prompts, str) or prompts is None else list(prompts)
    if not prompts:
        raise ValueError(f"no {which} prompt: give one for all images, or one for each")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"a {which} prompt is a string, got {type(prompt).__name__}")
    return prompts
