"""Best-of-N: the candidates, the choice, and that nothing else depends on them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
import torch

import datekit as dk
from datekit import noise

PROMPTS = ["a red circle", "a green star on red", "a dog"]
SEEDS = [5, 6, 7]


@pytest.fixture(scope="module")
def sampler():
    return dk.Sampler(dk.load("gaussian"), num_steps=3)


def draw(sampler, n, reward, prompts=PROMPTS, seeds=SEEDS):
    return dk.best_of(sampler, n, reward).start(prompts, seeds=seeds).finish()


def test_the_candidates_are_the_samplers_own_pictures_and_the_best_wins(sampler, target):
    best, pictures = draw(sampler, 4, target), []
    for j in range(4):
        seeds = SEEDS if j == 0 else [noise.derived(seed, j, "best-of") for seed in SEEDS]
        pictures.append(sampler.start(PROMPTS, seeds=seeds).finish().pixels)
    expected = torch.stack([target(pixels, PROMPTS) for pixels in pictures])
    assert torch.equal(best.rewards, expected)
    chosen = best.index.tolist()
    assert chosen == [max(range(4), key=lambda j: expected[j, n]) for n in range(3)]
    assert len(set(chosen)) > 1  # the samples do not all choose the same candidate
    for n, j in enumerate(chosen):
        assert torch.equal(best.pixels[n], pictures[j][n])
    assert len(best.images) == 3
    again = sampler.start(PROMPTS, seeds=best.seeds).finish()
    torch.testing.assert_close(again.pixels, best.pixels)
    plt.close(dk.plot.compare(best, again).figure)
    assert [len(run.history) for run in best.runs] == [0] * 4  # memory does not grow with n
    assert torch.equal(best.runs[chosen[0]].finish().pixels[0], best.pixels[0])


def test_the_first_candidate_is_the_plain_one_and_more_only_add(sampler, target):
    plain = sampler.start(PROMPTS, seeds=SEEDS).finish()
    one, two, five = (draw(sampler, n, target) for n in (1, 2, 5))
    assert torch.equal(one.pixels, plain.pixels)
    assert one.seeds == plain.seeds
    assert torch.equal(five.rewards[:2], two.rewards)
    alone = draw(sampler, 5, target, PROMPTS[1:2], SEEDS[1:2])
    assert alone.index[0] == five.index[1]
    torch.testing.assert_close(alone.pixels[0], five.pixels[1])
    unseeded = draw(sampler, 2, target, "a dog", None)
    again = sampler.start("a dog", seeds=unseeded.seeds).finish()
    assert torch.equal(again.pixels, unseeded.pixels)
    equal = draw(sampler, 3, lambda images, prompts: torch.zeros(len(prompts)))
    assert equal.index.tolist() == [0, 0, 0]


def test_an_interrupt_loses_nothing(sampler, target):
    calls = []

    def moody(images, prompts):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return target(images, prompts)

    best = dk.best_of(sampler, 3, moody).start(PROMPTS, seeds=SEEDS)
    with pytest.raises(KeyboardInterrupt):
        best.finish()
    with pytest.raises(RuntimeError, match=r"1 of 3 are drawn: call finish"):
        best.images  # noqa: B018
    assert torch.equal(best.finish().pixels, draw(sampler, 3, target).pixels)
    assert len(best.finish().rewards) == len(calls) - 1  # nothing is judged twice


def test_a_reward_that_changes_its_input_leaves_the_pictures_alone(sampler, target):
    def careless(images, prompts):
        return target(images, prompts) + 0 * images.mul_(0).sum((1, 2, 3))

    assert torch.equal(draw(sampler, 2, careless).pixels, draw(sampler, 2, target).pixels)


def test_bad_settings_and_input(sampler, target):
    with pytest.raises(ValueError, match="n must be a whole number from 1 up"):
        dk.best_of(sampler, 0, target)
    with pytest.raises(TypeError, match="got None"):
        dk.best_of(sampler, 2)
    assert dk.best_of(sampler.replace(method=dk.DATE(target)), 2).reward is target
    with pytest.raises(ValueError, match="give no latents"):
        dk.best_of(sampler, 2, target).start(PROMPTS, latents=torch.zeros(3, 3, 8, 8))

    def broken(images, prompts):
        return target(images, prompts) * torch.tensor([1.0, torch.nan, 1.0])

    with pytest.raises(dk.NonFiniteError, match="sample 1 of candidate 0"):
        draw(sampler, 2, broken)
