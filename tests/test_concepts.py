"""Prompts of several things: the published sets, their parts, and the parts' share of an update."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from studies import prompt_sets

import datekit as dk


def test_the_sets_of_attend_and_excite():
    """66, 144 and 66: pairs of 12, 12 x 12, pairs of 12; nothing twice, each word as often."""
    sets = {name: prompt_sets.attend_and_excite(name) for name in prompt_sets.SETS}
    every = prompt_sets.attend_and_excite()
    assert [len(prompts) for prompts in sets.values()] == [66, 144, 66]
    assert len(set(every)) == 276
    counts = Counter(" ".join(sets["animals"]).split())
    assert sorted(counts.values())[:-2] == [11] * 12  # but for "a" and "and"
    assert {"a cat and a dog", "a lion with a crown"} < set(every)
    assert prompt_sets.attend_and_excite(seed=1) != every == prompt_sets.attend_and_excite(seed=0)
    assert all(len(prompt_sets.parts(prompt)) == 2 for prompt in every)


@pytest.mark.parametrize(("prompt", "parts", "without"), [
    ("a lion with a crown", ["a lion", "a crown"], ["a crown", "a lion"]),
    ("a red circle", ["a red circle"], [""]),
    ("a red cat left of a dog", ["a red cat", "a dog"], ["a dog", "a red cat"]),
    ("a cat, a dog and a bird", ["a cat", "a dog", "a bird"],
     ["a dog and a bird", "a cat and a bird", "a cat and a dog"]),
])  # fmt: skip
def test_the_parts_of_a_prompt_and_what_is_left_without_each(prompt, parts, without):
    assert prompt_sets.parts(prompt) == parts
    assert prompt_sets.without(prompt) == without


@pytest.mark.parametrize("family", ["position", "attribution", "three", "two"])
def test_the_parts_of_captions_of_the_shapes_world(family):
    for prompt in dk.shapes.prompts("heldout", 8, family=family):
        things = re.findall(r"a (?:\w+ )??(?:circle|square|triangle|star)", prompt)
        assert prompt_sets.parts(prompt) == things


def test_shares_of_concepts_are_sums_over_their_words(shapes, reward):
    prompts = ["a red circle left of a blue square", "a green star, a red circle and a blue star"]
    run = dk.Sampler(shapes, dk.DATE(reward, rho=1.0), num_steps=4).start(prompts, seeds=[0, 1])
    shares = dk.analysis.token_shares(run)
    rows = prompt_sets.concept_shares(shares)
    assert [len(row) for row in rows] == [2, 3]
    assert shares.tokens[0][:9] == ("<start>", *prompts[0].split())
    first, second = shares.share[0, 1:4].sum(), shares.share[0, 6:9].sum()
    torch.testing.assert_close(rows[0], torch.stack([first, second]))
    with pytest.raises(ValueError, match="unknown reduction 'mean'"):
        dk.rewards.PerConcept(reward, prompt_sets.parts, "mean")
    with pytest.raises(ValueError, match=r"no tokens of .* spell its part 'a pink star'"):
        prompt_sets.concept_shares(shares, lambda prompt: ["a pink star"])


def test_words_in_pieces_and_prompts_read_twice():
    grad = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]])
    tokens = (("<start>", "a", "gir", "affe", "<end>", "A"),)
    shares = dk.analysis.TokenShares(0, 1.0, ("a giraffe",), (0,), tokens, grad / grad.sum())
    (row,) = prompt_sets.concept_shares(shares, lambda prompt: ["a giraffe"])
    assert row.item() == pytest.approx((2 + 4 + 8) / 63)
    twice = replace(shares, tokens=(("a", "cat", "<end>", "A", "cat", "<pad>"),))
    (row,) = prompt_sets.concept_shares(twice, lambda prompt: ["a cat"])
    assert row.item() == pytest.approx((1 + 2 + 8 + 16) / 63)
