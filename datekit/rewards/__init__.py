"""Rewards: differentiable scores of images under prompts. A new one is one file with a `Reward`.

`load("shapes-clip")` guides; `load("shapes-clip-heldout")`, another architecture and seed, only judges;
`load("target")` is a formula, for the closed-form model.
"""

from __future__ import annotations

from ..errors import unknown
from .base import Reward, as_reward, score
from .clip_score import CLIPScore
from .target import TargetReward

SHIPPED = {"shapes-clip": "clip", "shapes-clip-heldout": "clip-heldout", "target": None}  # name: folder of weights

__all__ = ["SHIPPED", "CLIPScore", "Reward", "TargetReward", "as_reward", "load", "score"]


def load(name: str, *, device: str | None = None) -> Reward:
    """A shipped reward by its name; ValueError for a name that is none."""
    if name not in SHIPPED:
        raise unknown("reward", name, SHIPPED, " Others are classes: dk.rewards.CLIPScore('ViT-L-14', 'openai').")
    if SHIPPED[name] is None:
        return TargetReward(device=device)
    from ..backbones import shipped_folder

    return CLIPScore(f"local-dir:{shipped_folder(SHIPPED[name])}", device=device, name=name)
