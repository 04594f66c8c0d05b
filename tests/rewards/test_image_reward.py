"""ImageReward against the `image-reward` package, with the same random weights."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import oracle_image_reward as oracle
import pytest
import small
import torch
from PIL import Image
from torchvision.transforms import functional as TF

import datekit as dk
from datekit.rewards.image_reward import FILE, load_published

PROMPTS = ["a red circle left of a blue square", "", "a green [ENC] star and a [DEC] " * 20]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Two layers of each; DATEKIT_FULL_DEPTH=1 builds the published 24 + 12 (8 GB, one minute, the same
# differences).
FULL_DEPTH = bool(os.environ.get("DATEKIT_FULL_DEPTH"))
TOKENS = {"padding": "max_length", "truncation": True, "max_length": 35, "return_tensors": "pt"}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The package's network and ours, from its weights under its names."""
    torch.manual_seed(0)
    theirs, folder = oracle.package(), tmp_path_factory.mktemp("image_reward")
    text = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    text |= {"num_hidden_layers": 12 if FULL_DEPTH else 2, "max_position_embeddings": 512}
    text |= {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0}
    text |= {"vocab_size": len(small.WORDS) + 2, "add_cross_attention": True}
    text |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    vision = {"embed_dim": 1024, "depth": 24 if FULL_DEPTH else 2, "num_heads": 16}
    (folder / "med_config.json").write_text(json.dumps(text))
    tokenizer = small.bert_folder(folder / "tokenizer")
    package = oracle.build(theirs, tokenizer, folder / "med_config.json", vision)
    torch.save(package.state_dict(), folder / FILE)
    eyes = {"num_hidden_layers": vision["depth"]}  # all else is what ours says of itself
    words = {name: text[name] for name in ("vocab_size", "num_hidden_layers")}

    def make(**options):
        with small.image_reward_of(eyes, words):
            return dk.rewards.ImageReward(folder / FILE, tokenizer=tokenizer, **options)

    return SimpleNamespace(package=package, ours=make(), make=make)


def package_score(both, images, prompts):
    """The package's own differentiable score, of images already 224 x 224."""
    tokens = both.package.blip.tokenizer(prompts, **TOKENS)
    pixels = TF.normalize(images, MEAN, STD)
    return both.package.score_gard(tokens.input_ids, tokens.attention_mask, pixels)[:, 0]


def test_scores_and_image_gradients_are_the_packages(both):
    images = torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    here, there = images.clone().requires_grad_(), images.clone().requires_grad_()
    ours, expected = both.ours(here, PROMPTS), package_score(both, there, PROMPTS)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(ours.sum(), here)
    (expected_grad,) = torch.autograd.grad(expected.sum(), there)
    sizes = expected_grad.flatten(1).norm(dim=1)
    assert (sizes > 1e-4).all()
    # Relative: the gradients are small.
    assert ((grad - expected_grad).flatten(1).norm(dim=1) < 1e-5 * sizes).all()


def test_bicubic_is_the_packages_own_way_with_a_larger_file(both, tmp_path):
    """Up to Pillow's rounding to bytes; bilinear is further off."""
    coarse = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    smooth = torch.nn.functional.interpolate(coarse, (512, 512), mode="bicubic").clamp(0, 1)
    picture = (smooth[0].permute(1, 2, 0) * 255).round().byte()
    Image.fromarray(picture.numpy()).save(tmp_path / "picture.png")
    images = picture.permute(2, 0, 1)[None] / 255
    wanted = both.package.score(PROMPTS[0], str(tmp_path / "picture.png"))
    off = {}
    for way in ("bicubic", "bilinear"):
        h = both.make(interpolation=way)(images, PROMPTS[:1]).item()
        off[way] = abs(h - wanted)
    spread = both.ours(torch.rand(8, 3, 224, 224), PROMPTS[:1] * 8).std().item()
    assert off["bicubic"] < 0.05 * spread, (off, spread)
    assert off["bicubic"] < off["bilinear"]


def test_a_file_that_lacks_weights_is_refused(both):
    short = both.package.state_dict()
    del short["blip.visual_encoder.norm.bias"]
    with pytest.raises(ValueError, match=r"of an ImageReward: vision\.post_layernorm\.bias"):
        load_published(both.ours.network, short)
