"""Rewards on CLIP features against the libraries that the weights come from, and how their sources are told apart."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import small
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

import datekit as dk
from datekit.rewards import clip_towers as towers

PROMPTS = ["a red circle left of a blue square", "A green star", ""]
LONG = ["a red circle left of a blue square and " * 20]
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MEAN, STD = [0.4, 0.5, 0.6], [0.3, 0.25, 0.2]  # of the folders made in small.py


def theirs_transformers(folder, images, prompts, cosine=True):
    """transformers' own forward pass on images of the right size; cosines, or its scaled logits."""
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(
        prompts, padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(**tokens, pixel_values=TF.normalize(images, MEAN, STD))
    return (
        torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
        if cosine
        else out.logits_per_image.diagonal()
    )


def theirs_open_clip(folder, images, prompts):
    """open_clip's own forward pass on images of the right size."""
    model, tokenizer = (
        open_clip.create_model(f"local-dir:{folder}").eval(),
        open_clip.get_tokenizer(f"local-dir:{folder}"),
    )
    with torch.no_grad():
        seen, read = (
            model.encode_image(TF.normalize(images, MEAN, STD)),
            model.encode_text(tokenizer(prompts)),
        )
    return torch.nn.functional.cosine_similarity(seen, read)


@pytest.mark.parametrize(
    ("name", "theirs"), [("open_clip", theirs_open_clip), ("transformers", theirs_transformers)]
)
def test_clip_score_is_the_librarys(make, folders, name, theirs):
    reward = make(name)
    expected = theirs(folders[name], IMAGES, PROMPTS)
    assert expected.std() > 0.01
    torch.testing.assert_close(reward(IMAGES, PROMPTS), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        reward(IMAGES[:1], LONG), theirs(folders[name], IMAGES[:1], LONG), rtol=1e-5, atol=1e-6
    )


def test_pick_score_is_the_logit_of_transformers(make, folders):
    expected = theirs_transformers(folders["transformers"], IMAGES, PROMPTS, cosine=False)
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


@pytest.mark.parametrize(
    ("name", "head", "tower"),
    [("aesthetic", "improved", "open_clip"), ("aesthetic-laion", "laion", "transformers")],
)
def test_aesthetic_score_is_the_head_on_unit_features(make, folders, name, head, tower):
    features = make(tower).image_features(IMAGES)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    expected = folders[head][1].eval()(features)[:, 0]
    reward = make(name)
    assert expected.std() > 1e-3
    torch.testing.assert_close(reward(IMAGES, PROMPTS), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(
        reward(IMAGES, PROMPTS), reward(IMAGES, PROMPTS[::-1])
    )  # whatever the prompt


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("kind", ["open_clip", "transformers"])
def test_images_are_resized_as_torchvision_does(folders, kind, antialias):
    reward = dk.rewards.CLIPScore(folders[kind], antialias=antialias)
    large = torch.rand(2, 3, 96, 80, generator=torch.Generator().manual_seed(1))
    small_ones = TF.resize(large, [32, 32], InterpolationMode.BILINEAR, antialias=antialias)
    torch.testing.assert_close(
        reward(large, PROMPTS[:2]), reward(small_ones, PROMPTS[:2]), rtol=1e-4, atol=1e-5
    )
    other = TF.resize(large, [32, 32], InterpolationMode.BILINEAR, antialias=not antialias)
    assert not torch.allclose(
        reward(other, PROMPTS[:2]), reward(small_ones, PROMPTS[:2]), atol=1e-3
    )


def test_bicubic_is_torchvisions(make):
    large = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    expected = TF.normalize(
        TF.resize(large, [32, 32], InterpolationMode.BICUBIC, antialias=True), MEAN, STD
    )
    torch.testing.assert_close(make("pick").pixels(large), expected, rtol=1e-4, atol=1e-5)


def test_a_folder_is_known_by_what_is_in_it(folders, tmp_path):
    assert isinstance(towers.towers(folders["open_clip"]), towers.OpenCLIP)
    assert isinstance(towers.towers(f"local-dir:{folders['open_clip']}"), towers.OpenCLIP)
    assert isinstance(towers.towers(folders["transformers"]), towers.TransformersCLIP)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        ValueError, match=r"holds no CLIP model.*a transformers model of type 'bert'"
    ):
        dk.rewards.CLIPScore(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ValueError, match=r"it holds weights\.bin"):
        dk.rewards.CLIPScore(tmp_path)


def test_names_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'ViT-L-14'"):
        dk.rewards.CLIPScore("VIT-L-14")
    with pytest.raises(ValueError, match=r"ViT-L-14 needs a tag.*'openai'"):
        dk.rewards.CLIPScore("ViT-L-14")
    with pytest.raises(ValueError, match=r"unknown HPSv2 version '3'\..*'2\.0', '2\.1'"):
        dk.rewards.HPSv2("3")
    with pytest.raises(
        FileNotFoundError,
        match=r"no file; leave `checkpoint` out to fetch HPS_v2\.1_compressed\.pt from xswu/HPSv2",
    ):
        dk.rewards.HPSv2(checkpoint=tmp_path / "hps.pt")
    with pytest.raises(ValueError, match=r"unknown aesthetic head 'best'.*'improved', 'laion'"):
        dk.rewards.AestheticScore("best")
    with pytest.raises(ValueError, match="interpolation must be"):
        dk.rewards.PickScore(small.transformers_folder(tmp_path / "clip"), interpolation="nearest")


def test_heads_that_do_not_fit(folders, tmp_path):
    torch.save(
        {"layers.0.weight": torch.zeros(4, 24), "layers.0.bias": torch.zeros(4)},
        tmp_path / "relu.pth",
    )
    with pytest.raises(
        ValueError, match=r"holds no aesthetic head: .*layers\.7, found layers\.0\.bias"
    ):
        dk.rewards.AestheticScore(tmp_path / "relu.pth", folders["open_clip"])
    torch.save(torch.nn.Linear(768, 1).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"takes 768 features, but .* gives 24"):
        dk.rewards.AestheticScore(tmp_path / "wide.pth", folders["open_clip"])


class Asked(Exception):
    pass


def test_what_is_asked_of_the_hub(monkeypatch, folders):
    """Each default names the published weights; nothing is downloaded here."""
    import huggingface_hub
    import transformers

    def asked(*args, **kwargs):
        raise Asked(*args)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", asked)
    monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", asked)
    wanted = {
        dk.rewards.HPSv2: ("xswu/HPSv2", "HPS_v2.1_compressed.pt"),
        lambda: dk.rewards.HPSv2("2.0"): ("xswu/HPSv2", "HPS_v2_compressed.pt"),
        dk.rewards.PickScore: ("yuvalkirstain/PickScore_v1",),
        lambda: dk.rewards.CLIPScore("openai/clip-vit-base-patch32"): (
            "openai/clip-vit-base-patch32",
        ),
    }
    for make, args in wanted.items():
        with pytest.raises(Asked) as caught:
            make()
        assert caught.value.args == args
    for head, file in (
        ("improved", "sac%2Blogos%2Bava1-l14-linearMSE.pth"),
        ("laion", "sa_0_4_vit_l_14_linear.pth"),
    ):
        with pytest.raises(Asked) as caught:
            dk.rewards.AestheticScore(head)
        assert Path(caught.value.args[0]).name == file


def test_the_aesthetic_score_takes_the_clip_that_its_head_was_trained_on(monkeypatch, folders):
    asked = []
    monkeypatch.setattr(
        "datekit.rewards.aesthetic_score.towers",
        lambda *args: asked.append(args) or towers.TransformersCLIP(str(folders["transformers"])),
    )
    dk.rewards.AestheticScore(folders["laion"][0])
    assert asked == [("ViT-L-14", "openai")]


def test_pick_score_takes_its_processor_from_where_the_model_card_says(monkeypatch, folders):
    asked = []
    monkeypatch.setattr(
        "datekit.rewards.pick_score.TransformersCLIP",
        lambda *args: asked.append(args) or towers.TransformersCLIP(str(folders["transformers"])),
    )
    dk.rewards.PickScore()
    dk.rewards.PickScore(folders["transformers"])
    assert asked == [
        ("yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
        (str(folders["transformers"]), None),
    ]
