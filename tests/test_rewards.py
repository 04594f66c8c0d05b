"""Rewards: their arithmetic, their gradients, and open_clip as the oracle of the CLIP score."""

from __future__ import annotations

import numpy as np
import open_clip
import pipelines
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import datekit as dk
from datekit.backbones import shipped_folder
from datekit.rewards import as_reward, score
from datekit.serialize import _rebuilt, describe
from datekit.types import to_pil

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "folder"), [("shapes-clip", "clip"), ("shapes-clip-heldout", "clip-heldout")]
)
def test_clip_score_is_open_clips(name, folder, prompts):
    place = f"local-dir:{shipped_folder(folder)}"
    model, _, preprocess = open_clip.create_model_and_transforms(place)
    model.eval()
    pictures = to_pil(IMAGES)
    with torch.no_grad():
        seen = model.encode_image(torch.stack([preprocess(p) for p in pictures]))
        read = model.encode_text(open_clip.get_tokenizer(place)(prompts))
    theirs = torch.nn.functional.cosine_similarity(seen, read)
    as_seen = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in pictures])
    torch.testing.assert_close(
        dk.rewards.load(name)(as_seen, prompts), theirs, rtol=1e-4, atol=1e-5
    )


def test_other_image_sizes_are_resized(reward, prompts):
    large = torch.nn.functional.interpolate(IMAGES, scale_factor=2, mode="nearest")
    torch.testing.assert_close(reward(large, prompts), reward(IMAGES, prompts), rtol=0, atol=0.05)


def test_rewards_of_a_batch_are_those_of_its_samples(reward, prompts):
    together = reward(IMAGES, prompts)
    alone = torch.cat([reward(IMAGES[n : n + 1], [p]) for n, p in enumerate(prompts)])
    torch.testing.assert_close(together, alone)


def test_arithmetic(prompts):
    a, b = as_reward(pipelines.Brightness()), as_reward(lambda x, p: x[:, 0].mean((1, 2)))
    both = 0.5 * a + b * 2 - a
    expected = 0.5 * a(IMAGES, prompts) + 2 * b(IMAGES, prompts) - a(IMAGES, prompts)
    torch.testing.assert_close(both(IMAGES, prompts), expected)
    torch.testing.assert_close((-a)(IMAGES, prompts), -a(IMAGES, prompts))
    torch.testing.assert_close(
        sum([a, b])(IMAGES, prompts), a(IMAGES, prompts) + b(IMAGES, prompts)
    )
    torch.testing.assert_close(
        (2 * (a + b))(IMAGES, prompts), 2 * a(IMAGES, prompts) + 2 * b(IMAGES, prompts)
    )
    terms = both.terms(IMAGES, prompts)
    assert set(terms) == {f"{a.name} #1", b.name, f"{a.name} #2"}  # a stands in it twice
    torch.testing.assert_close(terms[b.name], b(IMAGES, prompts))
    assert "0.5" in both.name
    with pytest.raises(TypeError, match="weighted by a number"):
        a * "two"


def test_terms_come_with_the_reward_of_one_pass(prompts):
    calls = []

    def counted(images, prompts):
        calls.append(len(images))
        return images.mean((1, 2, 3))

    both = 2 * as_reward(counted) + 3 * as_reward(lambda x, p: x[:, 0].mean((1, 2)))
    terms = {}
    h = score(both, IMAGES, prompts, terms=terms)
    assert calls == [3]
    torch.testing.assert_close(h, 2 * terms["counted"] + 3 * terms["<lambda>"])
    assert set(as_reward(counted).terms(IMAGES, prompts)) == {"counted"}


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_terms_are_kept_on_a_run(random_backbone, prompts, tmp_path, micro_batch):
    bright, red = as_reward(pipelines.Brightness()), as_reward(lambda x, p: x[:, 0].mean((1, 2)))
    sampler = dk.Sampler(
        random_backbone,
        dk.DATE(2 * bright - red, when=dk.steps(1)),
        num_steps=3,
        micro_batch=micro_batch,
    )
    run = sampler.start(prompts, seeds=[0, 1, 2])
    assert run.step().terms == {}  # nothing looked
    look, info = run.peek(), run.step()
    for seen in (look, info):
        images = random_backbone.decode(seen.x0bar)
        expected = {"brightness": bright(images, prompts), "<lambda>": red(images, prompts)}
        assert list(seen.terms) == list(expected)
        for name, values in seen.terms.items():
            torch.testing.assert_close(values, expected[name])
            assert not values.requires_grad
        torch.testing.assert_close(seen.h, 2 * seen.terms["brightness"] - seen.terms["<lambda>"])
    again = dk.Run.load(run.save(tmp_path / "run.pt"), sampler)
    assert torch.equal(again.history[1].terms["<lambda>"], info.terms["<lambda>"])


def test_a_term_of_another_shape_is_refused_before_it_is_broadcast(prompts):
    total = as_reward(lambda x, p: x.mean((1, 2, 3))) + as_reward(lambda x, p: x.mean())
    with pytest.raises(dk.RewardError, match=r"shape \(3,\); it returned \(\)"):
        total(IMAGES, prompts)


@given(st.floats(-50, 50), st.floats(0.01, 100), st.integers(2, 12), st.integers(1, 5))
def test_standardised_has_mean_zero_and_deviation_one(shift, scale, count, batch):
    images = torch.rand(
        count, 3, 4, 4, generator=torch.Generator().manual_seed(count), dtype=torch.float64
    )
    prompts = [str(n) for n in range(count)]
    raw = as_reward(
        lambda x, p: (
            shift + scale * x.mean((1, 2, 3)) + 0.1 * scale * torch.tensor([float(q) for q in p])
        )
    )
    h, values = raw.standardised(images, prompts, batch)(images, prompts), raw(images, prompts)
    torch.testing.assert_close(h.mean(), torch.zeros_like(h[0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(h.std(), torch.ones_like(h[0]))
    torch.testing.assert_close(h, (values - values.mean()) / values.std())


def test_a_sum_is_standardised_term_by_term(reward, prompts):
    large = as_reward(lambda x, p: 1000 * x[:, 0].mean((1, 2)) - 300)
    both = (0.25 * reward + 0.75 * large).standardised(IMAGES, prompts)
    terms = both.terms(IMAGES, prompts)
    assert list(terms) == ["standardised shapes-clip", "standardised <lambda>"]
    for values in terms.values():
        torch.testing.assert_close(values.std(), torch.tensor(1.0))
    torch.testing.assert_close(
        both(IMAGES, prompts),
        0.25 * terms["standardised shapes-clip"] + 0.75 * terms["standardised <lambda>"],
    )


def test_a_scale_needs_images_that_differ(reward):
    with pytest.raises(ValueError, match="fewer than two images"):
        reward.standardised(IMAGES[:1], ["a star"])
    with pytest.raises(ValueError, match="scores all of these images alike"):
        reward.standardised(IMAGES[:1].expand(4, -1, -1, -1), ["a star"] * 4)
    with pytest.raises(dk.RewardError, match="images need"):
        reward.standardised(IMAGES, ["a star"] * 2)


@pytest.mark.parametrize(
    "without", [None, lambda prompt: ["", "red"]], ids=["each alone", "what it adds"]
)
def test_terms_of_a_combination_over_parts_add_up(without):
    """At the part that is least, or over all of them, the weighted terms are the reward."""
    lengths = lambda power: (
        lambda images, prompts: (
            images.mean((1, 2, 3)) * torch.tensor([float(len(p) + 1) ** power for p in prompts])
        )
    )
    one, two = lengths(1), lengths(-2)
    one.name, two.name = "one", "two"
    both = 0.5 * dk.rewards.base.as_reward(one) - dk.rewards.base.as_reward(two)
    images, prompts = (
        torch.rand(3, 3, 8, 8),
        ["a red circle and blue", "x and a star", "green and a big square"],
    )
    for reduce in ("min", "sum"):
        h = dk.rewards.per_concept(both, lambda prompt: prompt.split(" and "), reduce, without)
        terms = h.terms(images, prompts)
        assert set(terms) == {"one", "two"}
        torch.testing.assert_close(0.5 * terms["one"] - terms["two"], h(images, prompts))
    assert list(dk.rewards.per_concept(one, str.split).terms(images, prompts)) == [
        "min over concepts of one"
    ]


def test_per_concept_is_the_least_or_the_sum_over_parts(reward):
    texts = ["a red circle and a blue square", "a star", "a circle and a star and a square"]
    split = lambda prompt: prompt.split(" and ")
    each = [
        torch.stack([reward(IMAGES[n : n + 1], [part])[0] for part in split(text)])
        for n, text in enumerate(texts)
    ]
    for name, reduce in (("min", torch.min), ("sum", torch.sum)):
        combined = dk.rewards.per_concept(reward, split, name)
        torch.testing.assert_close(
            combined(IMAGES, texts),
            torch.stack([reduce(values) for values in each]),
            rtol=1e-5,
            atol=1e-6,
        )
    for found, expected in zip(combined.concepts(IMAGES, texts), each, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_the_least_is_that_of_the_worst_part(reward):
    split, text = lambda prompt: prompt.split(" and "), "a red circle and a blue square"
    values = [reward(IMAGES[:1], [part]).item() for part in split(text)]
    worst = split(text)[values.index(min(values))]
    grads = []
    for h in (dk.rewards.per_concept(reward, split), reward):
        images = IMAGES[:1].clone().requires_grad_()
        grads.append(
            torch.autograd.grad(h(images, [text if h is not reward else worst]).sum(), images)[0]
        )
    torch.testing.assert_close(*grads)


def test_bad_splits(reward):
    with pytest.raises(ValueError, match="Did you mean 'min'"):
        dk.rewards.per_concept(reward, str.split, "mim")
    with pytest.raises(TypeError, match="split must be a function"):
        dk.rewards.per_concept(reward, " and ")
    for split, what in ((lambda prompt: [], r"\[\]"), (lambda prompt: prompt, "'a star'")):
        with pytest.raises(
            ValueError, match=f"at least one part for each prompt; for 'a star' it gave {what}"
        ):
            dk.rewards.per_concept(reward, split)(IMAGES[:1], ["a star"])
    with pytest.raises(TypeError, match="without must be a function from a prompt"):
        dk.rewards.per_concept(reward, str.split, "min", "x")
    for wrong in ([1, 2], ["a star", None], 3):
        with pytest.raises(
            TypeError,
            match="split must give a list of strings for each prompt; for 'a star' it gave",
        ):
            dk.rewards.per_concept(reward, lambda prompt, wrong=wrong: wrong)(
                IMAGES[:1], ["a star"]
            )
        with pytest.raises(TypeError, match="without must give a list of strings"):
            dk.rewards.per_concept(reward, str.split, "min", lambda prompt, wrong=wrong: wrong)(
                IMAGES[:1], ["a star"]
            )


def test_combinations_are_saved_and_made_again(shapes, reward, prompts, tmp_path):
    scaled = (0.5 * reward + 2 * dk.rewards.load("target")).standardised(IMAGES, prompts)
    run = dk.Sampler(shapes, dk.DATE(scaled, when=dk.steps(1)), num_steps=4).start(
        prompts[:1], seeds=[0]
    )
    run.step(1)
    again = dk.Run.load(run.save(tmp_path / "run.pt"))
    torch.testing.assert_close(again.step().h, run.step().h, rtol=0, atol=0)
    assert describe(again.sampler.method.reward) == describe(scaled)


def test_rewards_of_files_are_described_by_what_makes_them(tmp_path):
    resized_otherwise = dk.rewards.CLIPScore(
        f"local-dir:{shipped_folder('clip')}", antialias=False, interpolation="bicubic"
    )
    told = describe(resized_otherwise)
    assert told["settings"] == {
        "model": f"local-dir:{shipped_folder('clip')}",
        "tag": None,
        "antialias": False,
        "interpolation": "bicubic",
    }
    again = _rebuilt(told)
    assert (type(again), again.antialias, again.interpolation) == (
        dk.rewards.CLIPScore,
        False,
        "bicubic",
    )
    assert again.name == resized_otherwise.name
    assert describe(dk.rewards.load("shapes-clip")) == {
        "reward": "shapes-clip",
        "device": dk.rewards.load("shapes-clip").device.type,
    }
    assert _rebuilt(describe(dk.rewards.TargetReward(width=0.5))).width == 0.5
    with pytest.raises(ValueError, match="knows no reward 'Other'"):
        _rebuilt({"reward": "Other", "settings": {}, "device": "cpu"})
    with pytest.raises(ValueError, match="'halves', which cannot be loaded by a name"):
        _rebuilt(describe(dk.rewards.per_concept(again, halves)))


def halves(prompt):
    return prompt.split(" and ")


def test_half_precision_images_are_scored_in_float32(prompts):
    seen = []
    score(lambda x, p: (seen.append(x.dtype), x.mean((1, 2, 3)))[1], IMAGES.bfloat16(), prompts)
    assert seen == [torch.float32]


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


def test_float64_images_are_scored_by_a_float32_model(reward, prompts):
    torch.testing.assert_close(
        reward(IMAGES.double(), prompts), reward(IMAGES, prompts), check_dtype=False
    )


def test_reward_weights_are_frozen(reward, prompts):
    images = IMAGES.clone().requires_grad_()
    reward(images, prompts).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in reward.model.parameters())


def test_a_prompts_reward_does_not_depend_on_what_was_asked_before():
    """To the bit: features of texts are kept, and rounding depends on the batch in which they were made."""
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    texts = ["a red circle", "a green star and a blue square", "two yellow triangles"]
    fresh, used = dk.rewards.load("shapes-clip"), dk.rewards.load("shapes-clip")
    used(images[:1].repeat(5, 1, 1, 1), ["a star", texts[1], "a square", texts[2], "a circle"])
    assert torch.equal(fresh(images, texts), used(images, texts))
