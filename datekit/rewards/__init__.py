"""Rewards: differentiable scores of images under prompts. A new one is one file with a `Reward`.

Of those that ship, "shapes-clip" and "shapes-clip-plain" guide, and "shapes-clip-heldout", of
another architecture and seed, only judges. "shapes-preference" says which picture raters prefer,
"shapes-aesthetic" which look they like whatever the prompt; "target" is a formula for closed forms.
"""

from __future__ import annotations

from ..errors import unknown
from ..registry import entries
from . import decoders
from .base import Reward, as_reward, score
from .clip_score import AestheticScore, CLIPScore, HPSv2, PickScore
from .hpsv3 import HPSv3
from .image_reward import ImageReward
from .per_concept import PerConcept
from .shapes_scores import PreferenceScore, StyleScore
from .target import TargetReward
from .vqa_score import VQAScore

__all__ = ["AestheticScore", "CLIPScore", "HPSv2", "HPSv3", "ImageReward", "PerConcept"]
__all__ += ["SHIPPED", "PickScore", "PreferenceScore", "Reward", "StyleScore", "TargetReward"]
__all__ += ["VQAScore", "as_reward", "decoders", "load", "score"]

SHIPPED: dict[str, type[Reward]] = {}  # the names that `load` knows, with their classes
for _cls in entries("reward").values():
    SHIPPED |= dict.fromkeys(_cls.SHIPPED, _cls)


def load(name: str, *, device: str | None = None) -> Reward:
    """A shipped reward by its name. Raises ValueError for a name that is none."""
    if name not in SHIPPED:
        raise unknown("reward", name, SHIPPED, " Others are classes, such as dk.rewards.CLIPScore.")
    reward = SHIPPED[name]
    return reward() if reward is TargetReward else reward(name, device=device)
