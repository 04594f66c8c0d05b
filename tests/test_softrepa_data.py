"""Image-caption pairs from folders, tables, COCO's layout and the shapes world."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from datekit import softrepa
from datekit.cli import main
from datekit.shapes import detect, parse


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        Image.new("RGB", (48, 64), colour).save(tmp_path / f"{name}.png")
    return tmp_path


def test_a_folder_with_a_text_for_each_image(folder):
    (folder / "a.txt").write_text("a red sheet\n\nall red\n")
    (folder / "b.txt").write_text("a blue sheet")
    with pytest.raises(FileNotFoundError, match=r"c\.txt"):
        softrepa.read_pairs(folder)
    (folder / "c.txt").write_text("a green sheet\n")
    pairs = softrepa.read_pairs(folder)
    assert [path.name for path in pairs.images] == ["a.png", "b.png", "c.png"]
    captions = ["a red sheet", "all red", "a blue sheet", "a green sheet"]
    assert (pairs.rows, pairs.captions) == ([0, 0, 1, 2], captions)
    (folder / "c.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"c\.txt holds no caption"):
        softrepa.read_pairs(folder)


@pytest.mark.parametrize("columns", ["image,caption,negative", "file_name,text,negative"])
def test_a_table(folder, columns):
    path = folder / "metadata.csv"
    lines = ["a.png,a red sheet,a blue sheet|a green sheet", 'b.png,"blue, all of it",']
    path.write_text("\n".join([columns, *lines]))
    for source in (path, folder):
        pairs = softrepa.read_pairs(source)
        assert pairs.captions == ["a red sheet", "blue, all of it"]
        assert pairs.negatives == [("a blue sheet", "a green sheet"), ()]
    assert softrepa.read_pairs(path, images=folder).digest == softrepa.read_pairs(str(path)).digest
    for line, error, said in (
        ("b.png,", ValueError, r"metadata\.csv, line 3: .* got ''"),
        ("x.png,blue", FileNotFoundError, r"images that are not there: .*x\.png"),
        ("b.png,red", ValueError, "at least two different captions"),
    ):
        path.write_text(f"image,caption\na.png,red\n{line}\n")
        with pytest.raises(error, match=said):
            softrepa.read_pairs(path)


def test_cocos_layout(tmp_path):
    texts = [(3, "a cat "), (7, "a dog"), (3, "cats")]
    content = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 3, "file_name": "3.jpg"}],
        "annotations": [{"image_id": image, "caption": text} for image, text in texts],
    }
    for name in ("annotations", "val2017"):
        (tmp_path / name).mkdir()
    for name in ("3.jpg", "7.jpg"):
        Image.new("RGB", (48, 64)).save(tmp_path / "val2017" / name)
    file = tmp_path / "annotations" / "captions_val2017.json"
    file.write_text(json.dumps(content))
    pairs = softrepa.read_pairs(file)
    assert [path.name for path in pairs.images] == ["3.jpg", "7.jpg"]
    assert (pairs.rows, pairs.captions) == ([0, 1, 0], ["a cat", "a dog", "cats"])


def test_images_of_any_size_reach_the_model(folder, random_backbone):
    (folder / "metadata.csv").write_text("image,caption\na.png,red\nb.png,blue\nc.png,grey\n")
    Image.new("L", (200, 90), 90).save(folder / "c.png")
    latents = softrepa.read_pairs(folder).latents(random_backbone, range(3))
    assert latents.shape == (3, *random_backbone.latent_shape())
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    expected = random_backbone.encode_images(red)
    torch.testing.assert_close(latents[:1], expected, rtol=1e-4, atol=1e-4)


def test_the_shapes_world():
    pairs = softrepa.read_pairs("shapes:30", seed=3)
    assert len(pairs.images) == len(pairs) == 30
    for n in range(30):
        things = detect(pairs.images[n])
        assert parse(pairs.captions[n]).hold(things)
        assert len(set(pairs.negatives[n])) == 4
        assert not any(parse(text).hold(things) for text in pairs.negatives[n])
    assert softrepa.read_pairs("shapes:30", seed=3).digest == pairs.digest
    assert softrepa.read_pairs("shapes:30", seed=4).digest != pairs.digest
    with pytest.raises(ValueError, match="shapes:N"):
        softrepa.read_pairs("shapes:x")


def test_the_command_line_trains_and_refuses(tmp_path, capsys):
    out = tmp_path / "t.safetensors"
    args = ["softrepa", "train", "--out", str(out), "--steps", "2", "--batch", "2"]
    args += ["--device", "cpu", "--pairs"]
    assert main([*args, "shapes:8", "--layers", "down,up", "--time"]) == 0
    tokens = softrepa.load(out)
    assert (tokens.layers, tokens.time is not None) == (("down", "up"), True)
    assert tokens.config["pairs"] == "shapes:8"
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]
    assert main([*args, str(tmp_path / "none")]) == 2
    assert "No such file or directory" in capsys.readouterr().err
