"""What the file of an inversion says of its backbone, and whether another one is the same: settings, schedule, and answers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..types import State
from .base import EditSampler, is_flow

_EXACT = (
    1e-4  # relative difference of answers up to which one machine's float32 counts as another's
)
_GPU = torch.finfo(
    torch.float16
).eps  # of a GPU's float32, which may multiply in TF32, with as many digits as float16
_ROUNDINGS = 8  # relative difference in units of the precision's own; a random network of two blocks showed 5


def settings(backbone) -> dict:
    """What tells backbones apart before a step is made: name, class, precision, channels, what the network predicts."""
    predicts = (
        "flow_prediction"
        if is_flow(backbone)
        else backbone.scheduler.config.get("prediction_type", "epsilon")
    )
    return {
        "name": backbone.name,
        "source": backbone.source,
        "class": type(backbone).__name__,
        "precision": str(backbone.dtype),
        "latent channels": backbone.latent_shape()[0],
        "prediction": predicts,
    }


def schedule(sampler: EditSampler, shape) -> dict:
    """The timesteps and, before each step and after the last, the level (alpha, sigma) for latents of a shape."""
    solver = sampler.solver_for(shape)
    return {"timesteps": list(solver.timesteps), "levels": [list(level) for level in solver.levels]}


def witness(sampler: EditSampler, state: State, path: Tensor) -> Tensor:
    """The network's guided output under the source prompt in the middle of the path, (B, C, h, w)."""
    i = sampler.num_steps // 2
    with torch.no_grad():
        return sampler.predict(
            state.replace(xt=path[:, i], i=i, t=sampler.solver_for(path.shape).timesteps[i])
        ).out


def other_settings(old: dict, new: dict) -> str:
    """What two backbones' settings disagree on, in words; "" for nothing."""
    return ", ".join(
        f"its {name} is {value} and was {old.get(name)}"
        for name, value in new.items()
        if old.get(name) != value
    )


def other_schedule(old: dict, new: dict) -> str:
    """What two schedules disagree on, in words; "" for nothing. Levels agree up to the rounding of float32."""
    if not _near(old["timesteps"], new["timesteps"]):
        return f"its steps visit other timesteps, from {new['timesteps'][0]:g} on and not from {old['timesteps'][0]:g}"
    for i, (was, now) in enumerate(zip(old["levels"], new["levels"], strict=True)):
        if not _near(was, now):
            return f"its noise schedule is another: before step {i}, (alpha, sigma) is {_pair(now)} and not {_pair(was)}"
    return ""


def other_answers(found, device: str) -> str:
    """What the loaded backbone of an inversion answers otherwise than the one it was made with, in words; "" for nothing.

    One pass each of the text encoder, the autoencoder and the network. device: where the inversion was made.
    """
    backbone, allowed = found.sampler.backbone, tolerance(found.sampler.backbone, device)
    again = {
        "text encoder": lambda: (backbone.encode(found.source).sequence, found.state.c_org),
        "autoencoder": lambda: (backbone.encode_images(found.pixels), found.latents),
        "network": lambda: (witness(found.sampler, found.state, found.path), found.witness),
    }
    for part, answers in again.items():
        now, was = answers()
        if now.shape != was.shape:
            return f"its {part} answers in shape {tuple(now.shape)} and not {tuple(was.shape)}"
        difference = ((now - was).norm() / was.norm()).item()
        if not difference <= allowed:
            return f"its {part} answers {difference:.2%} differently"
    return ""


def tolerance(backbone, device: str) -> float:
    """The relative difference up to which answers are one network's, given its precision and where they were made before."""
    exact = backbone.dtype in (torch.float32, torch.float64)
    eps = (
        torch.finfo(backbone.dtype).eps
        if not exact
        else 0
        if (backbone.device.type, device) == ("cpu", "cpu")
        else _GPU
    )
    return max(_EXACT, _ROUNDINGS * eps)


def _near(old, new) -> bool:
    return len(old) == len(new) and all(
        math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6) for a, b in zip(old, new, strict=True)
    )


def _pair(level) -> str:
    return f"({level[0]:.4f}, {level[1]:.4f})"
