"""The two small trained rewards: what they are trained on, that training resumes, and that the folders load."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import datekit as dk
from datekit import shapes
from studies.training import aesthetic, clip, loop, preference
from datekit.shapes.world import held_out


class Stop(Exception):
    pass


def test_a_comparison_is_worth_its_true_claims_and_its_cleanliness():
    rng = np.random.default_rng(0)
    for _ in range(50):
        made = preference.compare(rng)
        for scene, spoilt, worth in zip(made.scenes, made.spoilt, made.worth, strict=True):
            seen = shapes.judge(shapes.render([scene]), [made.prompt])[
                0
            ]  # the oracle reads the picture, not the scene
            assert worth == pytest.approx(
                sum(truth for _, truth in seen.statements) + 0.5 * (1 - spoilt)
            )
            kinds = [thing.kind for thing in scene.things]
            assert not any(held_out(a, b) for a in kinds for b in kinds)


def test_rivals_are_what_they_are_called():
    rng = np.random.default_rng(1)
    count = lambda sort, better: np.mean(
        [better(preference.compare(rng, rivals={sort: 1.0}, spoilt=0.0)) for _ in range(60)]
    )
    assert count("same", lambda c: c.scenes[0] == c.scenes[1] and c.worth[0] == c.worth[1]) == 1
    assert (
        count(
            "moved",
            lambda c: (
                sorted(t.kind for t in c.scenes[0].things)
                == sorted(t.kind for t in c.scenes[1].things)
            ),
        )
        == 1
    )
    assert count("altered", lambda c: c.worth[0] != c.worth[1]) > 0.9
    firsts = [
        preference.compare(rng, rivals={"altered": 1.0}, spoilt=0.0).worth for _ in range(100)
    ]
    assert 0.3 < np.mean([a > b for a, b in firsts]) < 0.7  # the better one stands on either side


def test_spoilt_pictures_are_worse_in_proportion():
    images = shapes.render(shapes.sample_scenes(1, 0)).expand(3, -1, -1, -1)
    views = preference.spoil(images, torch.tensor([0.0, 0.5, 1.0]), loop.Draw(0, 0))
    assert torch.allclose(views[0], images[0], atol=1e-5)
    away = (views - images).square().mean((1, 2, 3))
    assert away[0] < away[1] < away[2]


def test_the_rating_is_what_its_formula_says():
    one = lambda colour, x, y, size=0.15: shapes.Scene(
        (shapes.Thing(colour, "circle", x, y, size),)
    )
    painted = np.pi * 0.15**2
    assert aesthetic.rating(one("red", 0.5, 0.5)) == pytest.approx(
        5 + 2 * (0.88 - 0.16) + 2 + 2 * (painted / 0.1 - 1)
    )
    best, above, left = (
        aesthetic.rating(one("red", *place)) for place in ((0.5, 0.5), (0.5, 0.25), (0.25, 0.5))
    )
    assert best - above == pytest.approx(2 * 4 * 0.25)
    assert above == pytest.approx(left)
    assert (
        aesthetic.rating(one("blue", 0.5, 0.5))
        < best
        < aesthetic.rating(one("red", 0.5, 0.5, 0.17))
    )
    two = shapes.Scene(one("red", 0.5, 0.5).things + one("blue", 0.5, 0.5).things)
    assert aesthetic.rating(two) == pytest.approx(
        5 + (0.88 - 0.16) + (0.13 - 0.88) + 2 + 2 * (2 * painted / 0.1 - 1)
    )


def train_preference(path, steps):
    return preference.train(path, clip.build("clip").eval(), steps=steps, seed=0, device="cpu")


def train_aesthetic(path, steps):
    return aesthetic.train(path, steps=steps, seed=0, device="cpu")


@pytest.mark.parametrize("train", [train_preference, train_aesthetic])
def test_training_resumes_to_the_same_weights(monkeypatch, tmp_path, train):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(preference, "PROBES", 4)
    monkeypatch.setattr(aesthetic, "PROBES", 8)
    monkeypatch.setattr(preference, "BATCH", 4)
    torch.manual_seed(3)
    whole, log = train(tmp_path / "whole.pt", 3)
    draw, steps = loop.Draw, []

    def stop_at_second(seed, step):
        steps.append(step)
        if steps == [0, 1]:
            raise Stop
        return draw(seed, step)

    monkeypatch.setattr(loop, "Draw", stop_at_second)
    torch.manual_seed(3)
    with pytest.raises(Stop):
        train(tmp_path / "parts.pt", 3)
    parts, _ = train(tmp_path / "parts.pt", 3)
    assert steps == [0, 1, 1, 2]
    assert log.steps == 3
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_saved_preference_scores_as_it_was_trained(make, folders):
    torch.manual_seed(1)
    judge = preference.Judge(
        clip.build("clip").eval()
    ).eval()  # as the fixture made it, before half precision
    images, prompts = (
        shapes.render(shapes.sample_scenes(4, 5)),
        ["a red circle", "a star", "", "two green squares"],
    )
    with torch.no_grad():
        expected = judge(images, prompts)
    torch.testing.assert_close(make("preference")(images, prompts), expected, rtol=0.02, atol=0.02)
    assert sum(weight.numel() for weight in make("preference").model.parameters()) < 700_000


def test_a_saved_look_rates_as_it_was_trained(make):
    torch.manual_seed(2)
    network = dk.rewards.look.StyleNetwork()
    images = shapes.render(shapes.sample_scenes(4, 5))
    with torch.no_grad():
        expected = network(images * 2 - 1)
    torch.testing.assert_close(make("look")(images, [""] * 4), expected, rtol=1e-2, atol=1e-3)
    assert sum(weight.numel() for weight in make("look").model.parameters()) < 700_000


def test_folders_without_weights(folders, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"has no head\.safetensors; .*load\('shapes-preference'\)"
    ):
        dk.rewards.PreferenceScore(folders["open_clip"])
    with pytest.raises(
        FileNotFoundError, match=r"look\.safetensors does not exist; .*load\('shapes-aesthetic'\)"
    ):
        dk.rewards.StyleScore(tmp_path)


def test_shipped_names_load_their_folders(monkeypatch, make, folders, tmp_path):
    make("preference"), make("look")
    place = {"preference": folders["preference"], "aesthetic": folders["look"]}
    monkeypatch.setattr("datekit.backbones.shipped_folder", lambda part: place[part])
    for name, cls in (
        ("shapes-preference", dk.rewards.PreferenceScore),
        ("shapes-aesthetic", dk.rewards.StyleScore),
    ):
        reward = dk.rewards.load(name)
        assert (type(reward), reward.name) == (cls, name)
    place["aesthetic"] = tmp_path / "none"
    with pytest.raises(
        FileNotFoundError, match="weights of 'shapes-aesthetic' are missing from this installation"
    ):
        dk.rewards.load("shapes-aesthetic")


def test_accuracy_tells_a_good_reward_from_a_blind_one():
    reward = dk.rewards.load("shapes-clip")  # reads captions, and knows nothing of cleanliness
    found = preference.accuracy(reward, 40, seed=3)
    assert found["altered"] > 0.9
    assert found["twin"] > 0.9
    blind = preference.accuracy(
        lambda images, prompts: torch.tensor([float(len(p)) for p in prompts]), 40, seed=3
    )
    assert blind["altered"] < 0.8
    looks = aesthetic.accuracy(
        lambda images: images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2)), 60, seed=1
    )
    assert looks["sharp"] > 0.4
