"""Image-caption pairs from folders, tables, COCO's layout and the shapes world."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from studies.softrepa_sweep import shapes_pairs

from datekit import softrepa
from datekit.shapes import detect, parse
from datekit.softrepa import Pairs


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        Image.new("RGB", (48, 64), colour).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("columns", ["image,caption", "file_name,text"])
def test_a_table(folder, columns):
    path = folder / "metadata.csv"
    path.write_text(f'{columns}\na.png,a red sheet\nb.png,"blue, all of it"\n')
    for source in (path, folder):
        assert softrepa.read_pairs(source).captions == ["a red sheet", "blue, all of it"]
    assert softrepa.read_pairs(path, images=folder).digest == softrepa.read_pairs(str(path)).digest
    for line, error, said in (
        ("b.png,", ValueError, r"metadata\.csv, line 3: .* got ''"),
        ("x.png,blue", FileNotFoundError, r"line 3 names .*x\.png, which is not there"),
        ("b.png,red", ValueError, "at least two different captions"),
    ):
        path.write_text(f"image,caption\na.png,red\n{line}\n")
        with pytest.raises(error, match=said):
            softrepa.read_pairs(path)


def test_cocos_layout(folder, tmp_path_factory):
    texts = [(3, "a cat "), (7, "a dog"), (3, "cats")]
    content = {
        "images": [{"id": 7, "file_name": "b.png"}, {"id": 3, "file_name": "a.png"}],
        "annotations": [{"image_id": image, "caption": text} for image, text in texts],
    }
    file = tmp_path_factory.mktemp("annotations") / "captions_val2017.json"
    file.write_text(json.dumps(content))
    pairs = softrepa.read_pairs(file, images=folder)
    assert [path.name for path in pairs.images] == ["a.png", "b.png", "a.png"]
    assert pairs.captions == ["a cat", "a dog", "cats"]


def test_images_of_any_size_reach_the_model(folder, random_backbone):
    (folder / "metadata.csv").write_text("image,caption\na.png,red\nb.png,blue\nc.png,grey\n")
    Image.new("L", (200, 90), 90).save(folder / "c.png")
    latents = softrepa.read_pairs(folder).latents(random_backbone, range(3))
    assert latents.shape == (3, *random_backbone.latent_shape())
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    expected = random_backbone.encode_images(red)
    torch.testing.assert_close(latents[:1], expected, rtol=1e-4, atol=1e-4)


def test_pairs_that_make_no_sense():
    with pytest.raises(ValueError, match="a caption is empty"):
        Pairs(torch.rand(2, 3, 8, 8), ["a", " "])


def test_the_shapes_world():
    pairs = shapes_pairs(30, 3)
    assert len(pairs.images) == len(pairs) == 30
    for n in range(30):
        things = detect(pairs.images[n])
        assert parse(pairs.captions[n]).hold(things)
        assert len(set(pairs.negatives[n])) == 4
        assert not any(parse(text).hold(things) for text in pairs.negatives[n])
    assert shapes_pairs(30, 3).digest == pairs.digest != shapes_pairs(30, 4).digest
