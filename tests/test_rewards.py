"""Rewards: arithmetic, combinations, and what makes them again; open_clip as the oracle."""

from __future__ import annotations

import numpy as np
import open_clip
import pipelines
import pytest
import torch
from studies.trials import to_common_scale

import datekit as dk
from datekit.files import weights_path
from datekit.rewards import PerConcept, as_reward, score
from datekit.serialize import describe, rebuild
from datekit.types import to_pil

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BRIGHT = pipelines.Brightness()


def red(images, prompts):
    return images[:, 0].mean((1, 2))


def by_length(images, prompts):
    """A reward that reads its prompt."""
    return images.mean((1, 2, 3)) * torch.tensor([float(len(prompt)) for prompt in prompts])


def halves(prompt):
    return prompt.split(" and ")


@pytest.mark.parametrize("name", ["clip", "clip-plain", "clip-heldout"])
def test_clip_score_is_open_clips(name, prompts):
    place, prompts = f"local-dir:{weights_path(name)}", [*prompts[:2], "a star and " * 40]
    model, _, preprocess = open_clip.create_model_and_transforms(place)
    model.eval()
    pictures = to_pil(IMAGES)
    with torch.no_grad():
        seen = model.encode_image(torch.stack([preprocess(picture) for picture in pictures]))
        read = model.encode_text(open_clip.get_tokenizer(place)(prompts))
    theirs = torch.nn.functional.cosine_similarity(seen, read)
    as_seen = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in pictures])
    ours = dk.rewards.load(f"shapes-{name}")(as_seen, prompts)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_arithmetic(prompts):
    a, b = as_reward(BRIGHT), as_reward(red)
    h = {"a": a(IMAGES, prompts), "b": b(IMAGES, prompts)}
    both = 0.5 * a + b * 2 - a
    for combined, expected in (
        (both, 0.5 * h["a"] + 2 * h["b"] - h["a"]),
        (-a, -h["a"]),
        (sum([a, b]), h["a"] + h["b"]),
        (0.5 * (a + b), (h["a"] + h["b"]) / 2),
        (red + a, h["b"] + h["a"]),
    ):
        torch.testing.assert_close(combined(IMAGES, prompts), expected)
    assert both.parts == ((0.5, a), (2.0, b), (-1.0, a))


def test_a_reward_that_changes_its_input_changes_nothing_else(prompts):
    """Neither the next term of a sum, nor the pictures of who asks."""

    def blackens(images, prompts):
        h = images.mean((1, 2, 3))
        images.detach().zero_()
        return h

    kept, plain = IMAGES.clone(), as_reward(lambda images, prompts: images.mean((1, 2, 3)))
    total = as_reward(blackens) + red
    assert torch.equal(total(IMAGES, prompts), (plain + red)(kept, prompts))
    assert torch.equal(IMAGES, kept)


def test_a_term_of_another_shape_is_refused_before_it_is_broadcast(prompts):
    total = as_reward(red) + (lambda images, prompts: images.mean())
    with pytest.raises(dk.RewardError, match=r"shape \(3,\); it returned \(\)"):
        total(IMAGES, prompts)


@pytest.mark.parametrize("count", [2, 17, 40])
def test_a_sum_is_scaled_term_by_term(reward, count):
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))
    prompts = ["a star"] * count
    large = as_reward(lambda images, prompts: 1000 * red(images, prompts) - 300)
    both = to_common_scale(0.25 * reward + 0.75 * large, images, prompts)
    values = reward(images, prompts), large(images, prompts)
    expected = 0.25 * values[0] / values[0].std() + 0.75 * values[1] / values[1].std()
    torch.testing.assert_close(both(images, prompts), expected)


def test_a_sum_does_not_forget_a_decoder(reward):
    with pytest.raises(ValueError, match="a sum has one decoder"):
        0.5 * dk.decoders.through(reward, "tiny")


def test_per_concept_is_the_least_or_the_sum_over_parts(reward):
    texts = ["a red circle and a blue square", "a star", "a circle and a star and a square"]
    each = [
        torch.cat([reward(IMAGES[n : n + 1], [part]) for part in halves(text)])
        for n, text in enumerate(texts)
    ]
    close = {"rtol": 1e-5, "atol": 1e-6}
    for name, reduce in (("min", torch.min), ("sum", torch.sum)):
        combined = PerConcept(reward, halves, name)
        expected = torch.stack([reduce(values) for values in each])
        torch.testing.assert_close(combined(IMAGES, texts), expected, **close)
    for values, expected in zip(combined.concepts(IMAGES, texts), each, strict=True):
        torch.testing.assert_close(values, expected, **close)


@pytest.mark.parametrize(("reduce", "function"), [("sum", sum), ("min", min)])
def test_what_a_part_adds_by_hand(reduce, function):
    prompt, without = "a red circle and a blue square", ["a blue square", "a red circle"]
    h = PerConcept(by_length, halves, reduce, lambda prompt: without)
    adds = function(len(prompt) - len(other) for other in without)
    torch.testing.assert_close(h(IMAGES[:1], [prompt]), IMAGES[:1].mean((1, 2, 3)) * adds)


@pytest.mark.parametrize("parts", [[], "a star"])
@pytest.mark.parametrize("name", ["split", "without"])
def test_bad_splits(reward, name, parts):
    functions = {"split": halves, name: lambda prompt: parts}
    with pytest.raises(ValueError, match="'a star' must be split into a list"):
        PerConcept(reward, **functions)(IMAGES[:1], ["a star"])


def test_rewards_are_made_again_from_what_they_say_of_themselves(prompts):
    """Shipped ones and a formula. What a file alone does not load is named as what is missing."""
    settings = {"antialias": False, "interpolation": "bicubic", "device": "cpu"}
    ours = dk.rewards.CLIPScore("shapes-clip", **settings)
    for reward in (ours, dk.rewards.load("shapes-aesthetic"), dk.rewards.TargetReward(width=0.5)):
        again = rebuild(describe(reward))
        assert type(again) is type(reward)
        assert (again.name, describe(again)) == (reward.name, describe(reward))
        assert torch.equal(again(IMAGES, prompts), reward(IMAGES, prompts))
    with pytest.raises(ValueError, match="'halves', which cannot be loaded by a name"):
        rebuild(describe(PerConcept(ours, halves)))
    other = dk.rewards.CLIPScore(f"local-dir:{weights_path('clip')}", **settings)
    with pytest.raises(ValueError, match="a file alone does not load the weights of a CLIPScore"):
        rebuild(describe(0.5 * other))
    with pytest.raises(ValueError, match="unknown antialias 'false'"):
        dk.rewards.CLIPScore("shapes-clip", antialias="false")


def test_precisions(reward, prompts):
    """Half precision is raised to float32 for any reward; a network computes in its own."""
    seen = []

    def note(images, prompts):
        seen.append(images.dtype)
        return images.mean((1, 2, 3))

    score(note, IMAGES.bfloat16(), prompts)
    assert seen == [torch.float32]
    twice = reward(IMAGES.double(), prompts)
    torch.testing.assert_close(twice, reward(IMAGES, prompts), check_dtype=False)


def test_the_tags_activation_is_used(monkeypatch):
    """OpenAI's weights were trained with QuickGELU; open_clip itself would only warn."""
    built = []

    def create_model(name, **kwargs):
        built.append(kwargs)
        raise RuntimeError("no download in tests")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    for tag in ("openai", "laion2b_s32b_b82k"):
        with pytest.raises(RuntimeError, match="no download"):
            dk.rewards.CLIPScore("ViT-L-14", tag)
    assert [kwargs["force_quick_gelu"] for kwargs in built] == [True, False]


def test_a_prompts_reward_does_not_depend_on_what_was_asked_before(prompts):
    """To the bit: features of texts are kept, and rounding depends on their batch."""
    fresh, used = dk.rewards.load("shapes-clip"), dk.rewards.load("shapes-clip")
    used(IMAGES[:1].repeat(5, 1, 1, 1), ["a star", prompts[1], "a square", prompts[2], "a circle"])
    assert torch.equal(fresh(IMAGES, prompts), used(IMAGES, prompts))
