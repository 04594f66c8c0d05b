"""What all edits share, their sampler and their start, and the simplest edit, `sdedit`."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import noise
from ..backbones import Backbone
from ..errors import check_finite, is_whole, whole
from ..inputs import check_schedules
from ..methods import Method
from ..run import Run
from ..sampler import Sampler
from ..types import Prediction, State
from .images import as_images, as_keep


class EditSampler(Sampler):
    """A `Sampler` for edits that begin at a noised or inverted picture; every method works in it.

    `State.extras` may hold residual, (B, C, h, w), which is added after the last step where that
    step takes no noise and would miss the picture. It may hold keep, (B, 1, h, w) bool, with path,
    (B, T + 1, C, h, w), the source's latent before each step and after the last: where keep is
    True, the source's latent replaces the edit's after every step.
    """

    def _solve(self, state: State, prediction: Prediction, repetition: int) -> tuple[Tensor, dict]:
        xt, solver_state = super()._solve(state, prediction, repetition)
        if "residual" in state.extras and state.i + 1 == self.num_steps:
            xt = xt + state.extras["residual"]
        if "keep" in state.extras:
            xt = torch.where(state.extras["keep"], self._source_at(state, state.i + 1), xt)
        return xt, solver_state

    def _source_at(self, state: State, i: int) -> Tensor:
        return state.extras["path"][:, i]


def is_flow(backbone: Backbone) -> bool:
    """Whether a model was trained by flow matching."""
    return Sampler(backbone).solver.is_flow


def begin(
    sampler: Sampler,
    image,
    prompts: Sequence[str] | str,
    seeds: Sequence[int] | int | None = None,
    negative_prompts: Sequence[str] | str | None = None,
    height: int | None = None,
    width: int | None = None,
) -> State:
    """A `State` whose xt is the picture's own latent x0.

    image: what `as_images` takes; one picture serves as many edits as there are prompts or seeds.
    """
    backbone = sampler.backbone
    pixels = as_images(image, backbone, height=height, width=width)
    if len(pixels) == 1:
        counts = [len(x) for x in (prompts, seeds) if isinstance(x, (list, tuple, range))]
        pixels = pixels.expand(max([1, *counts]), -1, -1, -1)
    with torch.no_grad():
        x0 = backbone.encode_images(pixels)
    check_finite(x0, "the image's latent is not finite")
    state = sampler.init(prompts, seeds=seeds, latents=x0, negative_prompts=negative_prompts)
    return state.replace(xt=x0.to(backbone.device, backbone.dtype))


def start_run(sampler: Sampler, state: State, i: int, xt: Tensor, **changes) -> Run:
    """A run that is paused before step i at the latent xt, (B, C, h, w)."""
    solver = sampler.solver_for(xt.shape)
    check_schedules(sampler.method, sampler.num_steps, i)
    if i and not solver.starts_anywhere:
        raise ValueError(f"{solver} counts on the steps before step {i}; take solver='dpm++'")
    return Run(sampler, state.replace(xt=xt, i=i, t=solver.timesteps[i], **changes))


def mask_extras(keep, sampler: Sampler, path: Tensor) -> dict[str, Tensor]:
    """What `EditSampler` needs for a mask, for `State.extras`; nothing where keep is None."""
    if keep is None:
        return {}
    return {"keep": as_keep(keep, sampler.backbone, path[:, 0]), "path": path}


def first_step(skip: float, num_steps: int) -> int:
    """The step that an edit starts at, from `skip`, a whole number of steps or a share below 1."""
    share = isinstance(skip, numbers.Real) and not is_whole(skip) and 0 <= skip < 1
    start = round(skip * num_steps) if share else skip
    return whole("skip, in steps or as a share of them below 1,", start, 0, num_steps - 1)


def sdedit(
    backbone: Any,
    image: Any,
    target: Sequence[str] | str,
    method: Method | None = None,
    *,
    skip: float = 0.4,
    keep: Any = None,
    seeds: Sequence[int] | int | None = None,
    negative_prompts: Sequence[str] | str | None = None,
    height: int | None = None,
    width: int | None = None,
    **settings: Any,
) -> Run:
    """SDEdit (arXiv 2108.01073): add noise to the picture, then sample under the target prompt.

    The run is paused at xt = alpha x0 + sigma eps, before the first step that is not skipped. It
    needs no description of the source, and takes any model, solver and method. eps is the noise
    that a fresh run with these seeds starts from. skip: how many of the noisiest steps are left
    out, a whole number or a share of them; 0.4 is the strength 0.6 of other libraries. image and
    keep are what `as_images` and `as_keep` take; the others are as for `dk.Sampler` and its `init`.
    """
    sampler = EditSampler(backbone, method, **settings)
    state = begin(sampler, image, target, seeds, negative_prompts, height, width)
    i, x0 = first_step(skip, sampler.num_steps), state.xt
    solver, exact = sampler.solver_for(x0.shape), torch.promote_types(x0.dtype, torch.float32)
    eps = noise.initial(state.seeds, x0.shape[1:], x0.dtype).to(x0.device, exact)
    path = [solver.add_noise(x0.to(exact), eps, n).to(x0.dtype) for n in range(sampler.num_steps)]
    path = torch.stack([*path, x0], 1)
    return start_run(sampler, state, i, path[:, i], extras=mask_extras(keep, sampler, path))
