"""All rewards at tiny size, by name."""

from __future__ import annotations

from functools import cache
from unittest import mock

import pytest
import small
import torch
from studies.training import aesthetic, clip, preference

import datekit as dk
from datekit.rewards.shapes_scores import StyleNetwork


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """What the tiny rewards are loaded from."""
    place = tmp_path_factory.mktemp("rewards")
    kinds = ("Qwen2VL", "Qwen2_5_VL", "Llava")
    seeing = {kind: small.vision_language_folder(place / kind, kind) for kind in kinds}
    return seeing | {
        "open_clip": small.open_clip_folder(place / "open_clip"),
        "transformers": small.transformers_folder(place / "transformers"),
        "hps": small.hps_file(place / "tiny-hps.pt"),
        "hpsv3": small.hpsv3_file(place / "HPSv3.safetensors", seeing["Qwen2VL"]),
        "head": small.aesthetic_head(place / "head.pth"),
        "image_reward": place / "image_reward",
        "preference": place / "preference",
        "look": place / "look",
    }


def halves(prompt):
    return prompt.split(" and ")


@pytest.fixture(scope="session")
def make(folders):
    """A reward by its short name, made once."""
    rewards, exact = dk.rewards, {"precision": "float32"}

    def preference_score():
        torch.manual_seed(1)
        preference.save(preference.Judge(clip.build("clip").eval()), folders["preference"])
        return rewards.PreferenceScore(folders["preference"])

    def look():
        torch.manual_seed(2)
        aesthetic.save(StyleNetwork(), folders["look"])
        return rewards.StyleScore(folders["look"])

    def hpsv3():
        with mock.patch.object(rewards.hpsv3, "PIXELS", 112 * 112):  # published 448 * 448
            return rewards.HPSv3(folders["hpsv3"][0], base=folders["Qwen2VL"], **exact)

    makers = {
        "open_clip": lambda: rewards.CLIPScore(folders["open_clip"]),
        "transformers": lambda: rewards.CLIPScore(folders["transformers"]),
        "pick": lambda: rewards.PickScore(folders["transformers"]),
        "hps": lambda: rewards.HPSv2(model=folders["hps"][0], checkpoint=folders["hps"][1]),
        "hpsv3": hpsv3,
        "vqa": lambda: rewards.VQAScore(folders["Qwen2_5_VL"], **exact),
        "vqa-llava": lambda: rewards.VQAScore(folders["Llava"], **exact),
        "aesthetic": lambda: rewards.AestheticScore(folders["open_clip"], head=folders["head"][0]),
        "image-reward": lambda: small.image_reward(folders["image_reward"]),
        "preference": preference_score,
        "look": look,
        "sum": lambda: 0.5 * made("open_clip") - 2 * made("image-reward"),
        "min": lambda: rewards.PerConcept(made("transformers"), halves),
        "sum-of-parts": lambda: rewards.PerConcept(made("transformers"), halves, "sum"),
    }
    made = cache(lambda name: makers[name]() if name in makers else rewards.load(name))
    return made
