"""ImageReward against the `image-reward` package: the same random weights, the same scores and image gradients."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import numpy as np
import oracle_image_reward as oracle
import pytest
import small
import torch
from torchvision.transforms import functional as TF

import datekit as dk
from datekit.rewards.image_reward import FILE, build

PROMPTS = ["a red circle left of a blue square", "", "a green [ENC] star and a [DEC] " * 20]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# At full width two layers of each; DATEKIT_FULL_DEPTH=1 builds the published 24 + 12 (8 GB, one minute, the same differences).
FULL_DEPTH = bool(os.environ.get("DATEKIT_FULL_DEPTH"))
SIZES = {
    "reduced": ({"embed_dim": 128, "depth": 3, "num_heads": 2}, {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 2,
                                                                 "intermediate_size": 96, "max_position_embeddings": 40}),
    "full width": ({"embed_dim": 1024, "depth": 24 if FULL_DEPTH else 2, "num_heads": 16},
                   {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12 if FULL_DEPTH else 2, "intermediate_size": 3072,
                    "max_position_embeddings": 512}),
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    return oracle.package()


@pytest.fixture(scope="module", params=SIZES)
def both(request, theirs, tmp_path_factory):
    """The package's network and ours, from its weights under its names."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("image_reward")
    vision, text = SIZES[request.param]
    facts = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0, "vocab_size": len(small.WORDS) + 2, "add_cross_attention": True,
             "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}  # fmt: skip
    (folder / "med_config.json").write_text(json.dumps(facts | text))
    tokenizer = small.bert_folder(folder / "tokenizer")
    package = oracle.build(theirs, tokenizer, folder / "med_config.json", vision)
    torch.save(package.state_dict(), folder / FILE)
    return SimpleNamespace(
        package=package,
        ours=dk.rewards.ImageReward(folder, tokenizer=tokenizer),
        full=request.param == "full width",
    )


def package_score(both, images, prompts):
    """The package's own differentiable score, of images already 224 x 224."""
    tokens = both.package.blip.tokenizer(
        prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    return both.package.score_gard(
        tokens.input_ids, tokens.attention_mask, TF.normalize(images, MEAN, STD)
    )[:, 0]


def test_scores_and_image_gradients_are_the_packages(both):
    prompts = PROMPTS[:1] if both.full else PROMPTS
    images = torch.rand(len(prompts), 3, 224, 224, generator=torch.Generator().manual_seed(1))
    here, there = images.clone().requires_grad_(), images.clone().requires_grad_()
    ours, expected = both.ours(here, prompts), package_score(both, there, prompts)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    (grad,), (expected_grad,) = (
        torch.autograd.grad(ours.sum(), here),
        torch.autograd.grad(expected.sum(), there),
    )
    sizes = expected_grad.flatten(1).norm(dim=1)
    assert (sizes > 1e-4).all()
    assert (
        (grad - expected_grad).flatten(1).norm(dim=1) < 1e-5 * sizes
    ).all()  # relative: the gradients are small


def test_the_weights_are_those_of_a_vit_large(both):
    vision = both.ours.model.vision.config
    if both.full:
        assert (
            vision.hidden_size,
            vision.num_attention_heads,
            vision.intermediate_size,
            vision.patch_size,
        ) == (1024, 16, 4096, 16)
    assert both.ours.size == (224, 224)
    head = [module.out_features for module in both.ours.model.head]
    assert head == [1024, 128, 64, 16, 1]


def test_tokens_are_the_packages(both):
    tokens = [
        tokenizer(
            PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
        )
        for tokenizer in (both.ours.tokenizer, both.package.blip.tokenizer)
    ]
    assert torch.equal(tokens[0].input_ids, tokens[1].input_ids)
    assert torch.equal(tokens[0].attention_mask, tokens[1].attention_mask)
    assert tokens[0].input_ids.shape == (3, 35)
    added = (
        len(small.WORDS) + 1,
        both.package.blip.tokenizer.enc_token_id,
        both.ours.tokenizer.convert_tokens_to_ids("[ENC]"),
    )
    assert set(added) == {tokens[0].input_ids.max().item()}


def test_score_of_a_picture_file_is_the_packages(both, tmp_path):
    """The package's public `score`, for a picture that needs no resize."""
    from PIL import Image

    picture = Image.fromarray(
        (torch.rand(224, 224, 3, generator=torch.Generator().manual_seed(2)) * 255).byte().numpy()
    )
    picture.save(tmp_path / "picture.png")
    images = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    assert both.ours(images, PROMPTS[:1]).item() == pytest.approx(
        both.package.score(PROMPTS[0], str(tmp_path / "picture.png")), abs=1e-5
    )


def test_bicubic_is_the_packages_own_way_with_a_larger_file(both, tmp_path):
    """Up to Pillow's rounding to bytes; bilinear is further off."""
    from PIL import Image

    coarse = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    smooth = torch.nn.functional.interpolate(coarse, (512, 512), mode="bicubic").clamp(0, 1)
    picture = Image.fromarray((smooth[0].permute(1, 2, 0) * 255).round().byte().numpy())
    picture.save(tmp_path / "picture.png")
    images = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    wanted = both.package.score(PROMPTS[0], str(tmp_path / "picture.png"))
    make = lambda way: dk.rewards.ImageReward(
        both.ours.settings["checkpoint"],
        tokenizer=both.ours.settings["tokenizer"],
        interpolation=way,
    )
    off = {
        way: abs(make(way)(images, PROMPTS[:1]).item() - wanted) for way in ("bicubic", "bilinear")
    }
    spread = both.ours(torch.rand(8, 3, 224, 224), PROMPTS[:1] * 8).std().item()
    assert off["bicubic"] < 0.05 * spread, (off, spread)
    assert off["bicubic"] < off["bilinear"]


@pytest.mark.parametrize("antialias", [True, False])
def test_images_are_resized_as_torchvision_does(both, antialias):
    large = torch.rand(1, 3, 300, 260, generator=torch.Generator().manual_seed(3))
    ours = dk.rewards.ImageReward(
        both.ours.settings["checkpoint"],
        tokenizer=both.ours.settings["tokenizer"],
        antialias=antialias,
    )
    expected = package_score(both, TF.resize(large, [224, 224], antialias=antialias), PROMPTS[:1])
    torch.testing.assert_close(ours(large, PROMPTS[:1]), expected, rtol=1e-4, atol=1e-5)


def test_published_names_written_out_by_hand_load():
    """Without the package: every weight of the published layout finds its place, and only those."""
    published = small.published_image_reward(64, 2, 64, 2, 32, (16, 12, 8, 4))
    network = build(published)
    used = {
        name
        for name in published
        if not name.startswith(("blip.vision_proj", "blip.text_proj"))
        and "position_ids" not in name
    }
    assert len(network.state_dict()) == len(used)
    with pytest.raises(ValueError, match=r"not the weights of an ImageReward: .*head\.4\.bias"):
        build({name: value for name, value in published.items() if name != "mlp.layers.7.bias"})
    with pytest.raises(ValueError, match=r"not the weights of an ImageReward: .*Unexpected"):
        build(published | {"mlp.layers.9.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match="not the weights of an ImageReward"):
        build({"logit_scale": torch.zeros(())})


def test_where_the_checkpoint_is_looked_for(monkeypatch, make, folders, tmp_path):
    import huggingface_hub

    make("image-reward")
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda *args: asked.append(args) or str(folders["image_reward"] / FILE),
    )
    tokenizer = folders["image_reward"] / "tokenizer"
    for checkpoint in (
        "ImageReward-v1.0",
        "THUDM/ImageReward",
        folders["image_reward"] / FILE,
        folders["image_reward"],
    ):
        dk.rewards.ImageReward(checkpoint, tokenizer=tokenizer)
    assert asked == [
        ("zai-org/ImageReward", "ImageReward.pt"),
        ("THUDM/ImageReward", "ImageReward.pt"),
    ]
    with pytest.raises(
        FileNotFoundError, match=r"no folder with ImageReward\.pt; 'ImageReward-v1\.0' fetches"
    ):
        dk.rewards.ImageReward(tmp_path, tokenizer=tokenizer)
