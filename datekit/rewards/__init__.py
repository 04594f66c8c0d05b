"""Rewards: differentiable scores of images under prompts. A new one is one file with a `Reward`.

`load("shapes-clip")` guides; `load("shapes-clip-heldout")`, another architecture and seed, only judges;
`load("shapes-preference")` says which picture raters prefer under a prompt, `load("shapes-aesthetic")` which look they like
whatever the prompt; `load("target")` is a formula, for the closed-form model. Those of published models are classes.
"""

from __future__ import annotations

from ..errors import unknown
from .aesthetic_score import AestheticScore
from .base import Reward, as_reward, score
from .clip_score import CLIPScore
from .combine import PerConcept, Standardised, per_concept, standardise
from .hps_v2 import HPSv2
from .image_reward import ImageReward
from .style_score import StyleScore
from .pick_score import PickScore
from .preference import PreferenceScore
from .target import TargetReward

SHIPPED = {  # name: class, folder of weights
    "shapes-clip": (CLIPScore, "clip"),
    "shapes-clip-heldout": (CLIPScore, "clip-heldout"),
    "shapes-preference": (PreferenceScore, "preference"),
    "shapes-aesthetic": (StyleScore, "aesthetic"),
    "target": (TargetReward, None),
}
CLASSES = {
    cls.__name__: cls
    for cls in (
        AestheticScore,
        CLIPScore,
        HPSv2,
        ImageReward,
        StyleScore,
        PickScore,
        PreferenceScore,
        TargetReward,
    )
}

__all__ = [
    *CLASSES,
    "CLASSES",
    "SHIPPED",
    "PerConcept",
    "Reward",
    "Standardised",
    "as_reward",
    "load",
    "per_concept",
    "score",
    "standardise",
]


def load(name: str, *, device: str | None = None) -> Reward:
    """A shipped reward by its name. Raises ValueError for a name that is none, FileNotFoundError for weights that are missing."""
    if name not in SHIPPED:
        raise unknown(
            "reward",
            name,
            SHIPPED,
            " Others are classes: dk.rewards.CLIPScore('ViT-L-14', 'openai').",
        )
    cls, folder = SHIPPED[name]
    if folder is None:
        return cls(device=device)
    from ..backbones import shipped_folder

    if not shipped_folder(folder).is_dir():
        raise FileNotFoundError(
            f"the weights of {name!r} are missing from this installation ({shipped_folder(folder)}); install it again"
        )
    return cls(shipped_folder(folder), device=device, name=name)
