"""Rewards: their arithmetic, their gradients, and open_clip as the oracle of the CLIP score."""

from __future__ import annotations

import numpy as np
import open_clip
import pipelines
import pytest
import torch

import datekit as dk
from datekit.backbones import shipped_folder
from datekit.rewards import as_reward, score
from datekit.types import to_pil

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "folder"), [("shapes-clip", "clip"), ("shapes-clip-heldout", "clip-heldout")])
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
    torch.testing.assert_close(dk.rewards.load(name)(as_seen, prompts), theirs, rtol=1e-4, atol=1e-5)


def test_other_image_sizes_are_resized(reward, prompts):
    large = torch.nn.functional.interpolate(IMAGES, scale_factor=2, mode="nearest")
    torch.testing.assert_close(reward(large, prompts), reward(IMAGES, prompts), rtol=0, atol=0.05)


@pytest.mark.parametrize("name", ["shapes-clip", "shapes-clip-heldout"])
def test_gradient_equals_central_differences(name, prompts):
    reward = dk.rewards.load(name)
    reward.model.double()
    images = IMAGES.double().requires_grad_()
    grad, = torch.autograd.grad(reward(images, prompts).sum(), images)
    v = torch.randn(images.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        step = 1e-8  # so small because the image tower has rectifiers, and a step must not cross their kinks
        numeric = (reward(images + step * v, prompts) - reward(images - step * v, prompts)) / (2 * step)
    torch.testing.assert_close((grad * v).flatten(1).sum(1), numeric, rtol=1e-3, atol=1e-5)


def test_rewards_of_a_batch_are_those_of_its_samples(reward, prompts):
    together = reward(IMAGES, prompts)
    alone = torch.cat([reward(IMAGES[n:n + 1], [p]) for n, p in enumerate(prompts)])
    torch.testing.assert_close(together, alone)


def test_arithmetic(prompts):
    a, b = as_reward(pipelines.Brightness()), as_reward(lambda x, p: x[:, 0].mean((1, 2)))
    both = 0.5 * a + b * 2 - a
    expected = 0.5 * a(IMAGES, prompts) + 2 * b(IMAGES, prompts) - a(IMAGES, prompts)
    torch.testing.assert_close(both(IMAGES, prompts), expected)
    torch.testing.assert_close((-a)(IMAGES, prompts), -a(IMAGES, prompts))
    torch.testing.assert_close(sum([a, b])(IMAGES, prompts), a(IMAGES, prompts) + b(IMAGES, prompts))
    torch.testing.assert_close((2 * (a + b))(IMAGES, prompts), 2 * a(IMAGES, prompts) + 2 * b(IMAGES, prompts))
    terms = both.terms(IMAGES, prompts)
    assert set(terms) == {f"{a.name} #1", b.name, f"{a.name} #2"}  # a stands in it twice
    torch.testing.assert_close(terms[b.name], b(IMAGES, prompts))
    assert "0.5" in both.name
    with pytest.raises(TypeError, match="weighted by a number"):
        a * "two"


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
    torch.testing.assert_close(reward(IMAGES.double(), prompts), reward(IMAGES, prompts), check_dtype=False)


def test_reward_weights_are_frozen(reward, prompts):
    images = IMAGES.clone().requires_grad_()
    reward(images, prompts).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in reward.model.parameters())
