"""The two small trained rewards: what they are trained on, and what the shipped ones are for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from studies.training import aesthetic, clip, preference

import datekit as dk
from datekit import shapes
from datekit.rewards.shapes_scores import StyleNetwork
from datekit.shapes.world import held_out


def test_a_comparison_is_worth_its_true_claims_and_its_cleanliness():
    rng = np.random.default_rng(0)
    for _ in range(50):
        made = preference.compare(rng)
        for scene, spoilt, worth in zip(made.scenes, made.spoilt, made.worth, strict=True):
            # The oracle reads the picture, not the scene.
            (verdict,) = shapes.judge(shapes.render([scene]), [made.prompt])
            true = sum(truth for _, truth in verdict.statements)
            assert worth == pytest.approx(true + 0.5 * (1 - spoilt))
            kinds = [thing.kind for thing in scene.things]
            assert not any(held_out(a, b) for a in kinds for b in kinds)


def test_saved_rewards_score_as_they_were_trained(make):
    """As the fixtures made them, before half precision."""
    images = shapes.render(shapes.sample_scenes(4, 5))
    prompts = ["a red circle", "a star", "", "two green squares"]
    torch.manual_seed(1)
    judge = preference.Judge(clip.build("clip").eval()).eval()
    torch.manual_seed(2)
    look = StyleNetwork()
    with torch.no_grad():
        expected = {"preference": judge(images, prompts), "look": look(images * 2 - 1)}
    for name, values in expected.items():
        torch.testing.assert_close(make(name)(images, prompts), values, rtol=0.02, atol=0.02)
        assert sum(weight.numel() for weight in make(name).network.parameters()) < 700_000


PAIRS = [
    ("red circle", "blue square"), ("green star", "yellow triangle"), ("blue circle", "red star"),
    ("yellow square", "green circle"), ("red square", "green star"),
]  # fmt: skip


@pytest.fixture(scope="module")
def judge():
    return dk.rewards.load("shapes-preference")


@pytest.fixture(scope="module")
def look():
    return dk.rewards.load("shapes-aesthetic")


def thing(words, x, size=0.15):
    return shapes.Thing(*words.split(), x, 0.5, size)


def drawn(pairs):
    scenes = [shapes.Scene((thing(left, 0.28), thing(right, 0.72))) for left, right in pairs]
    return shapes.render(scenes)


@torch.no_grad()
def test_the_preference_is_for_the_picture_that_the_prompt_describes(judge):
    prompts = [f"a {left} left of a {right}" for left, right in PAIRS]
    mixed = []
    for (colour, shape), (other, form) in [map(str.split, pair) for pair in PAIRS]:
        mixed.append((f"{other} {shape}", f"{colour} {form}"))
    true = judge(drawn(PAIRS), prompts)
    assert all(verdict.right for verdict in shapes.judge(drawn(PAIRS), prompts))
    for pairs in ([pair[::-1] for pair in PAIRS], mixed):
        assert (true > judge(drawn(pairs), prompts)).float().mean() >= 4 / 5


@torch.no_grad()
def test_the_aesthetic_reward_rates_the_look_that_its_formula_rates(look):
    """On scenes of pairs that training never showed, and whatever the prompt."""
    scenes = shapes.sample_scenes(120, 99, "heldout")
    rated = look(shapes.render(scenes), [""] * len(scenes))
    assert spearmanr(rated.numpy(), [aesthetic.rating(scene) for scene in scenes]).statistic > 0.9
    cases = [("red", 0.5, 0.16), ("blue", 0.5, 0.16), ("red", 0.25, 0.16), ("red", 0.5, 0.12)]
    ones = [shapes.Scene((thing(f"{colour} circle", x, size),)) for colour, x, size in cases]
    images = shapes.render(ones)
    best, *others = look(images, ["a blue circle"] * 4).tolist()
    assert look(images, ["a red star"] * 4).tolist() == [best, *others]
    assert best > max(others)  # red, central and large
