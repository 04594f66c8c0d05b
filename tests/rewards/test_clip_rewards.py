"""Rewards on CLIP features against the libraries that the weights come from."""

from __future__ import annotations

import shutil

import open_clip
import pytest
import torch
import transformers
from small import MEAN, STD
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

import datekit as dk
from datekit.rewards import towers

PROMPTS = ["a red circle left of a blue square", "A green star", ""]
LONG = ["a red circle left of a blue square and " * 20]
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits(folder, images, prompts):
    """transformers' own forward pass on images of the right size."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(**tokens, pixel_values=TF.normalize(images, MEAN, STD))


@pytest.mark.parametrize("prompts", [PROMPTS, LONG * 3])
def test_clip_score_is_the_cosine_of_transformers(make, folders, prompts):
    """Of open_clip in tests/test_rewards.py."""
    out = logits(folders["transformers"], IMAGES, prompts)
    expected = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
    assert expected.std() > 0.01
    ours = make("transformers")(IMAGES, prompts)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_pick_score_is_the_logit_of_transformers(make, folders):
    expected = logits(folders["transformers"], IMAGES, PROMPTS).logits_per_image.diagonal()
    torch.testing.assert_close(make("pick")(IMAGES, PROMPTS), expected, rtol=1e-5, atol=1e-5)
    assert make("pick").interpolation == "bicubic"


def test_hps_is_the_cosine_of_its_file(make, folders):
    name, path = folders["hps"]
    model = open_clip.create_model(name).eval()
    model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    with torch.no_grad():
        pixels = TF.normalize(IMAGES, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        out = model(pixels, open_clip.get_tokenizer(name)(PROMPTS))
    torch.testing.assert_close(
        make("hps")(IMAGES, PROMPTS), (out[0] * out[1]).sum(1), rtol=1e-5, atol=1e-6
    )


def test_aesthetic_score_is_the_head_on_unit_features(make, folders):
    features = make("open_clip").image_features(IMAGES)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    expected = folders["head"][1].eval()(features)[:, 0]
    reward = make("aesthetic")
    assert expected.std() > 1e-3
    torch.testing.assert_close(reward(IMAGES, PROMPTS), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(reward(IMAGES, PROMPTS), reward(IMAGES, PROMPTS[::-1]))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("way", ["bilinear", "bicubic"])
def test_images_are_resized_as_torchvision_does(folders, way, antialias):
    options = {"antialias": antialias, "interpolation": way}
    reward = dk.rewards.CLIPScore(folders["transformers"], **options)
    large = torch.rand(2, 3, 96, 80, generator=torch.Generator().manual_seed(1))
    resized = TF.resize(large, [32, 32], InterpolationMode(way), antialias=antialias)
    expected = TF.normalize(resized, MEAN, STD)
    torch.testing.assert_close(reward.pixels(large), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(96, 65), (40, 131), (64, 64)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_files_are_fitted_as_open_clip_does(make, folders, mode, size):
    """Its transform works on bytes, so that numbers outside of them are cut."""
    reward = dk.rewards.CLIPScore(folders["open_clip"], interpolation="bicubic", fit="own")
    assert reward.resize_mode == "shortest"  # of the folder
    assert make("hps").resize_mode == "longest"
    reward.resize_mode = mode
    smooth = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    image = TF.to_pil_image(TF.resize(smooth[0], size, InterpolationMode.BILINEAR))
    theirs = open_clip.image_transform(32, False, MEAN, STD, mode, "bicubic")(image)
    ours = reward.pixels(TF.to_tensor(image)[None])[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.05)


OWN = {  # what a processor of transformers is told, and whether it is followed
    "cut": ({"size": {"shortest_edge": 32}, "crop_size": 32}, True),
    "squeezed": ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, True),
    "smaller cut": ({"size": {"shortest_edge": 40}, "crop_size": 32}, False),
    "not resized": ({"do_resize": False, "crop_size": 32}, False),
}


@pytest.mark.parametrize(("told", "followed"), OWN.values(), ids=OWN)
def test_files_are_fitted_as_the_folder_of_a_transformers_clip_says(
    folders, tmp_path, told, followed
):
    folder = shutil.copytree(folders["transformers"], tmp_path / "clip")
    processor = transformers.CLIPImageProcessor(image_mean=MEAN, image_std=STD, **told)
    processor.save_pretrained(folder)
    own = {"interpolation": "bicubic", "fit": "own"}
    if not followed:
        with pytest.raises(ValueError, match="take fit='squash'"):
            dk.rewards.CLIPScore(folder, **own)
        return
    smooth = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    image = TF.to_pil_image(TF.resize(smooth[0], (96, 64), InterpolationMode.BILINEAR))
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = dk.rewards.CLIPScore(folder, **own).pixels(TF.to_tensor(image)[None])[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.05)


def test_another_way_of_resizing_is_refused(folders):
    with pytest.raises(ValueError, match="unknown fit 'crop'"):
        dk.rewards.CLIPScore(folders["transformers"], fit="crop")
    with pytest.raises(ValueError, match="unknown interpolation 'nearest'"):
        dk.rewards.CLIPScore(folders["transformers"], interpolation="nearest", antialias=False)


def test_a_folder_is_known_by_what_is_in_it(folders, tmp_path):
    assert isinstance(towers.towers(folders["open_clip"]), towers.OpenCLIP)
    assert isinstance(towers.towers(f"local-dir:{folders['open_clip']}"), towers.OpenCLIP)
    assert isinstance(towers.towers(folders["transformers"]), towers.TransformersCLIP)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds no CLIP model"):
        dk.rewards.CLIPScore(tmp_path)


def test_a_head_of_fewer_maps_is_refused(folders, tmp_path):
    weights = {"layers.0.weight": torch.zeros(4, 24), "layers.0.bias": torch.zeros(4)}
    torch.save(weights, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"lack layers\.2"):
        dk.rewards.AestheticScore(folders["open_clip"], head=tmp_path / "head.pth")
