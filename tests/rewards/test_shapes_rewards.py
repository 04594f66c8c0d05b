"""The two small trained rewards: what they are trained on, and that their folders load."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from studies.training import aesthetic, clip, preference

import datekit as dk
from datekit import shapes
from datekit.rewards.style_score import StyleNetwork
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


def rivals(sort, count):
    rng = np.random.default_rng(1)
    return [preference.compare(rng, rivals={sort: 1.0}, spoilt=0.0) for _ in range(count)]


def kinds(scene):
    return sorted(thing.kind for thing in scene.things)


def test_rivals_are_what_they_are_called():
    for made in rivals("same", 60):
        assert made.scenes[0] == made.scenes[1]
        assert made.worth[0] == made.worth[1]
    for made in rivals("moved", 60):
        assert kinds(made.scenes[0]) == kinds(made.scenes[1])
    worths = np.array([made.worth for made in rivals("altered", 100)])
    assert np.mean(worths[:, 0] != worths[:, 1]) > 0.9
    # The better one stands on either side.
    assert 0.3 < np.mean(worths[:, 0] > worths[:, 1]) < 0.7


def one(colour, x, y, size=0.15):
    return shapes.Scene((shapes.Thing(colour, "circle", x, y, size),))


def test_the_rating_is_what_its_formula_says():
    painted = np.pi * 0.15**2
    best = aesthetic.rating(one("red", 0.5, 0.5))
    above, left = (aesthetic.rating(one("red", *place)) for place in ((0.5, 0.25), (0.25, 0.5)))
    assert best == pytest.approx(5 + 2 * (0.88 - 0.16) + 2 + 2 * (painted / 0.1 - 1))
    assert best - above == pytest.approx(2 * 4 * 0.25)
    assert above == pytest.approx(left)
    assert aesthetic.rating(one("blue", 0.5, 0.5)) < best
    assert best < aesthetic.rating(one("red", 0.5, 0.5, 0.17))
    two = shapes.Scene(one("red", 0.5, 0.5).things + one("blue", 0.5, 0.5).things)
    expected = 5 + (0.88 - 0.16) + (0.13 - 0.88) + 2 + 2 * (2 * painted / 0.1 - 1)
    assert aesthetic.rating(two) == pytest.approx(expected)


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


def test_accuracy_tells_a_good_reward_from_a_blind_one():
    """The guide reads captions, and knows nothing of cleanliness."""
    good = preference.accuracy(dk.rewards.load("shapes-clip"), 40, seed=3)
    assert good["altered"] > 0.9
    assert good["twin"] > 0.9

    def blind(images, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts])

    assert preference.accuracy(blind, 40, seed=3)["altered"] < 0.8
