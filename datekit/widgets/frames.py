"""What there is to see of one step of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL.Image import Image, Resampling

from .. import shapes
from ..rewards.base import Reward, score
from ..run import Run
from ..schedules import every
from ..tensors import to_pil


@dataclass(frozen=True, eq=False)
class Frame:
    """A step as it is shown; i is the number of steps for the end, with the last step's numbers."""

    i: int
    picture: Image  # x0bar_hat, or the end, decoded
    values: dict[str, float]  # its rewards by name
    updated: bool  # whether the method did something
    distance: float  # ||c - c_org||
    verdict: shapes.Verdict | None  # of the oracle, where it looks on and knows the prompt


def frame_of(run: Run, i: int, rewards: Mapping[str, Reward], *, oracle: bool) -> Frame:
    """Step i of a run of one sample, which is sampled so far if need be."""
    sampler = run.sampler
    last = min(i, sampler.num_steps - 1)
    while run.state.i <= last:
        run.step()
    info = run.history[last]
    values = {}
    with torch.no_grad():
        images = sampler.decode(info.x0bar_hat if i == last else run.state.xt)
        for name, reward in rewards.items():
            values[name] = score(reward, images, run.prompts, f" at step {i}").item()
    when = getattr(sampler.method, "when", every())
    elsewhere = {*sampler.method.stages} - {"condition"}  # acts, and moves no embedding
    updated = info.updated or (bool(elsewhere) and when(last, sampler.num_steps))
    picture = to_pil(images)[0]
    verdict = None
    if oracle:
        with contextlib.suppress(ValueError):  # of a prompt outside the grammar
            verdict = shapes.judge([picture], run.prompts)[0]
    return Frame(i, picture, values, updated, info.distance.item(), verdict)


def enlarge(picture: Image, least: int) -> Image:
    """A picture with each pixel made so many that it is at least so wide."""
    zoom = -(-least // picture.width)
    return picture.resize((picture.width * zoom, picture.height * zoom), Resampling.NEAREST)
