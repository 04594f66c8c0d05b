"""Best-of-N: the candidates, the choice, and that nothing else depends on them."""

from __future__ import annotations

import time

import pytest
import torch

import datekit as dk
from datekit import best_of_n, noise

PROMPTS = ["a red circle", "a green star on red", "a dog"]
SEEDS = [5, 6, 7]


@pytest.fixture(scope="module")
def sampler():
    return dk.Sampler(dk.load("gaussian"), num_steps=3)


def test_the_candidates_are_the_samplers_own_pictures_and_the_best_wins(sampler, target):
    found = dk.best_of(sampler, 4, target).start(PROMPTS, seeds=SEEDS).finish()
    pictures, rewards = [], []
    for j in range(4):
        seeds = SEEDS if j == 0 else [noise.derived(seed, j, "best-of") for seed in SEEDS]
        pixels = sampler.start(PROMPTS, seeds=seeds).finish().pixels
        pictures.append(pixels), rewards.append(target(pixels, PROMPTS))
    expected = torch.stack(rewards)
    assert torch.equal(found.rewards, expected)
    assert found.index.tolist() == [max(range(4), key=lambda j: expected[j, n]) for n in range(3)]
    assert len(set(found.index.tolist())) > 1  # the samples do not all choose the same candidate
    for n, j in enumerate(found.index.tolist()):
        assert torch.equal(found.pixels[n], pictures[j][n])
    assert len(found.images) == 3
    again = sampler.start(PROMPTS, seeds=found.seeds).finish()
    torch.testing.assert_close(again.pixels, found.pixels)


def test_the_first_candidate_is_the_plain_one_and_more_only_add(sampler, target):
    plain = sampler.start(PROMPTS, seeds=SEEDS).finish()
    one, two, five = (
        dk.best_of(sampler, n, target).start(PROMPTS, seeds=SEEDS).finish() for n in (1, 2, 5)
    )
    assert torch.equal(one.pixels, plain.pixels)
    assert one.seeds == plain.seeds
    assert torch.equal(five.rewards[:2], two.rewards)
    assert (five.rewards.amax(0) >= two.rewards.amax(0)).all()
    alone = dk.best_of(sampler, 5, target).start(PROMPTS[1:2], seeds=SEEDS[1:2]).finish()
    assert alone.index[0] == five.index[1]
    torch.testing.assert_close(alone.pixels[0], five.pixels[1])


def test_of_equals_the_earliest_wins(sampler):
    found = (
        dk.best_of(sampler, 3, lambda images, prompts: torch.zeros(len(prompts)))
        .start(PROMPTS, seeds=SEEDS)
        .finish()
    )
    assert found.index.tolist() == [0, 0, 0]


def test_seeds_that_nobody_chose_are_recorded(sampler, target):
    found = dk.best_of(sampler, 2, target).start("a dog").finish()
    assert torch.equal(sampler.start("a dog", seeds=found.seeds).finish().pixels, found.pixels)


def test_an_interrupt_loses_nothing(target):
    class Moody(dk.Method):
        """Stops once, in the sixth step that it takes."""

        taken = 0

        def condition(self, denoiser, state):
            type(self).taken += 1
            if type(self).taken == 6:
                raise KeyboardInterrupt
            return super().condition(denoiser, state)

    sampler = dk.Sampler(dk.load("gaussian"), Moody(), num_steps=3)
    found = dk.best_of(sampler, 3, target).start(PROMPTS, seeds=SEEDS)
    with pytest.raises(KeyboardInterrupt):
        found.finish()
    assert not found.done
    assert "1 drawn" in repr(found)
    with pytest.raises(RuntimeError, match="1 of 3 candidates"):
        found.images  # noqa: B018
    found.finish()
    assert Moody.taken == 3 * 3 + 1
    whole = (
        dk.best_of(sampler.replace(method=dk.Fixed()), 3, target)
        .start(PROMPTS, seeds=SEEDS)
        .finish()
    )
    assert torch.equal(found.rewards, whole.rewards)
    assert torch.equal(found.pixels, whole.pixels)
    found.finish()
    assert Moody.taken == 10  # nothing is drawn twice


def test_memory_does_not_grow_with_n(sampler, target):
    found = dk.best_of(sampler, 3, target).start(PROMPTS, seeds=SEEDS).finish()
    assert [len(run.history) for run in found.runs] == [0, 0, 0]
    j = found.index[0].item()
    assert torch.equal(found.runs[j].finish().pixels[0], found.pixels[0])


def test_the_methods_own_reward_is_the_default(target):
    sampler = dk.Sampler(dk.load("gaussian"), dk.DATE(target, rho=0.5), num_steps=3)
    assert dk.best_of(sampler, 2).reward is target
    found = dk.best_of(sampler, 2).start(PROMPTS, seeds=SEEDS).finish()
    plain = sampler.start(PROMPTS, seeds=SEEDS).finish()
    torch.testing.assert_close(found.rewards[0], target(plain.pixels, PROMPTS))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((0,), ValueError, "n must be a whole number from 1 up"),
        ((2.0,), ValueError, "n must be"),
        ((True,), ValueError, "n must be"),
        ((2, "clip"), TypeError, r"needs a reward.*got str"),
        ((2, None), TypeError, r"needs a reward.*got NoneType"),
    ],
)
def test_bad_settings(sampler, target, arguments, error, says):
    with pytest.raises(error, match=says):
        dk.best_of(sampler, *(arguments if len(arguments) > 1 else (*arguments, target)))


def test_bad_input(sampler, target):
    with pytest.raises(TypeError, match=r"takes a dk\.Sampler"):
        dk.best_of(sampler.backbone, 2, target)
    with pytest.raises(ValueError, match="takes no latents"):
        dk.best_of(sampler, 2, target).start(PROMPTS, latents=torch.zeros(3, 3, 8, 8))
    with pytest.raises(ValueError, match="3 prompts need 3 seeds"):
        dk.best_of(sampler, 2, target).start(PROMPTS, seeds=[1])
    broken = lambda images, prompts: target(images, prompts) * torch.tensor([1.0, torch.nan, 1.0])
    with pytest.raises(dk.NonFiniteError, match="sample 1 of candidate 0"):
        dk.best_of(sampler, 2, broken).start(PROMPTS, seeds=SEEDS).finish()
    with pytest.raises(dk.RewardError, match="one score a sample"):
        dk.best_of(sampler, 2, lambda images, prompts: images.mean()).start(
            PROMPTS, seeds=SEEDS
        ).finish()


def test_equal_time_counts_what_the_other_sampler_costs(sampler, target, monkeypatch):
    """A clock that ticks with each evaluation of the model: 10 steps cost what three runs of 3 steps do, to the nearest."""
    ticks, predict = [0], sampler.backbone.predict
    monkeypatch.setattr(
        sampler.backbone, "predict", lambda *a: (ticks.__setitem__(0, ticks[0] + 1), predict(*a))[1]
    )
    monkeypatch.setattr(time, "perf_counter", lambda: float(ticks[0]))
    count = lambda other: equal_time(
        sampler, target, other, PROMPTS, seeds=SEEDS, repeats=1
    )
    assert count(sampler.replace(num_steps=10)) == 3
    assert count(sampler) == 1
    assert count(sampler.replace(num_steps=1)) == 1


@pytest.mark.parametrize("repeats", [0, -1, 1.5, True])
def test_equal_time_measures_at_least_once(sampler, target, repeats):
    with pytest.raises(ValueError, match="repeats must be a whole number from 1 up, got"):
        equal_time(sampler, target, sampler, PROMPTS, seeds=SEEDS, repeats=repeats)
