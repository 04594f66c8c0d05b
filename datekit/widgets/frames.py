"""What there is to see of one step of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL.Image import Image, Resampling

from ..rewards.base import Reward, score
from ..run import Run
from ..tensors import to_pil
from .settings import Settings

if TYPE_CHECKING:
    from ..shapes.oracle import Verdict


@dataclass(frozen=True, eq=False)
class Frame:
    """A step as it is shown; i is the number of steps for the end, with the last step's numbers."""

    i: int
    picture: Image  # x0bar_hat, or the end, decoded
    values: dict[str, float]  # its rewards by name
    updated: bool  # whether the method did something
    distance: float  # ||c - c_org||
    verdict: Verdict | None  # of the oracle, where it looks on and knows the prompt


def frame_of(
    run: Run, settings: Settings, i: int, rewards: Mapping[str, Reward], *, oracle: bool
) -> Frame:
    """Step i of a run of one sample, which is sampled so far if need be."""
    last = min(i, settings.num_steps - 1)
    while run.state.i <= last:
        run.step()
    info = run.history[last]
    with torch.no_grad():
        images = run.sampler.decode(info.x0bar_hat if i == last else run.state.xt)
        values = {}
        for name, reward in rewards.items():
            values[name] = score(reward, images, run.prompts, f" at step {i}").item()
    elsewhere = {*run.sampler.method.stages} - {"condition"}  # acts, and moves no embedding
    updated = info.updated or (bool(elsewhere) and last in settings.updates)
    picture = to_pil(images)[0]
    verdict = None
    if oracle:
        from ..shapes.oracle import judge

        with contextlib.suppress(ValueError):  # of a prompt outside the grammar
            verdict = judge([picture], run.prompts)[0]
    return Frame(i, picture, values, updated, info.distance.item(), verdict)


def enlarge(picture: Image, least: int) -> Image:
    """A picture with each pixel made so many that it is at least so wide."""
    zoom = -(-least // picture.width)
    return picture.resize((picture.width * zoom, picture.height * zoom), Resampling.NEAREST)
