"""Best-of-N: the candidates, the choice, and that nothing else depends on them."""

from __future__ import annotations

import pytest
import torch

import datekit as dk
from datekit import noise, registry

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


def test_of_equals_the_earliest_wins(sampler):
    best = draw(sampler, 3, lambda images, prompts: torch.zeros(len(prompts)))
    assert best.index.tolist() == [0, 0, 0]


def test_seeds_that_nobody_chose_are_recorded(sampler, target):
    best = draw(sampler, 2, target, "a dog", None)
    assert torch.equal(sampler.start("a dog", seeds=best.seeds).finish().pixels, best.pixels)


def test_an_interrupt_loses_nothing(target, monkeypatch):
    monkeypatch.setitem(registry.ENTRIES, "method", registry.entries("method"))

    class Moody(dk.Method):
        """Stops once, in the sixth step that it takes."""

        taken = 0

        def condition(self, denoiser, state):
            type(self).taken += 1
            if type(self).taken == 6:
                raise KeyboardInterrupt
            return super().condition(denoiser, state)

    sampler = dk.Sampler(dk.load("gaussian"), Moody(), num_steps=3)
    best = dk.best_of(sampler, 3, target).start(PROMPTS, seeds=SEEDS)
    with pytest.raises(KeyboardInterrupt):
        best.finish()
    assert not best.done
    with pytest.raises(RuntimeError, match="1 of 3 candidates"):
        best.images  # noqa: B018
    best.finish()
    assert best.finish().done
    assert Moody.taken == 3 * 3 + 1  # nothing is drawn twice
    whole = draw(sampler.replace(method=dk.Fixed()), 3, target)
    assert torch.equal(best.rewards, whole.rewards)
    assert torch.equal(best.pixels, whole.pixels)


def test_the_methods_own_reward_is_the_default(target):
    sampler = dk.Sampler(dk.load("gaussian"), dk.DATE(target, rho=0.5), num_steps=3)
    assert dk.best_of(sampler, 2).reward is target


@pytest.mark.parametrize(("n", "reward", "error", "says"), [
    (0, len, ValueError, "n must be a whole number from 1 up"), (2.0, len, ValueError, "n must be"),
    (True, len, ValueError, "n must be"), (2, "clip", TypeError, r"needs a reward.*got str"),
    (2, None, TypeError, "got NoneType"),
])  # fmt: skip
def test_bad_settings(sampler, n, reward, error, says):
    with pytest.raises(error, match=says):
        dk.best_of(sampler, n, reward)


def test_bad_input(sampler, target):
    with pytest.raises(TypeError, match=r"takes a dk\.Sampler"):
        dk.best_of(sampler.backbone, 2, target)
    with pytest.raises(ValueError, match="takes no latents"):
        dk.best_of(sampler, 2, target).start(PROMPTS, latents=torch.zeros(3, 3, 8, 8))

    def broken(images, prompts):
        return target(images, prompts) * torch.tensor([1.0, torch.nan, 1.0])

    with pytest.raises(dk.NonFiniteError, match="sample 1 of candidate 0"):
        draw(sampler, 2, broken)
    with pytest.raises(dk.RewardError, match="one score a sample"):
        draw(sampler, 2, lambda images, prompts: images.mean())
