"""Image-caption pairs from folders, CSVs, COCO's layout and the shapes world; what is missing is named."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from datekit import softrepa
from datekit.cli import main
from datekit.shapes import detect, parse


def picture(path, colour, size=(48, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        picture(tmp_path / f"{name}.png", colour)
    return tmp_path


def test_a_folder_with_a_text_for_each_image(folder):
    for name, text in (
        ("a", "a red sheet\nall red\n"),
        ("b", "a blue sheet"),
        ("c", "a green sheet\n"),
    ):
        (folder / f"{name}.txt").write_text(text)
    found = softrepa.read_pairs(folder)
    assert [path.name for path in found.images] == ["a.png", "b.png", "c.png"]
    assert (found.rows, found.captions) == (
        (0, 0, 1, 2),
        ("a red sheet", "all red", "a blue sheet", "a green sheet"),
    )
    assert softrepa.read_pairs(folder, limit=2).captions == (
        "a red sheet",
        "all red",
        "a blue sheet",
    )
    (folder / "c.txt").unlink()
    with pytest.raises(ValueError, match=r"3 images, and 1 of them without a caption \(c\.png\)"):
        softrepa.read_pairs(folder)
    (folder / "c.txt").write_text("green")
    (folder / "d.txt").write_text("nobody")
    with pytest.raises(ValueError, match=r"1 captions without an image \(d\.txt\)"):
        softrepa.read_pairs(folder)
    (folder / "d.txt").unlink()
    (folder / "c.txt").write_text(" \n")
    with pytest.raises(ValueError, match="caption 3 is ''; each image needs a text"):
        softrepa.read_pairs(folder)


@pytest.mark.parametrize("columns", ["image,caption,negative", "file_name,text,negative"])
def test_a_table(folder, columns):
    path = folder / "metadata.csv"
    path.write_text(
        f'{columns}\na.png,a red sheet,a blue sheet|a green sheet\nb.png,"blue, all of it",\n'
    )
    for source in (path, folder):
        found = softrepa.read_pairs(source)
        assert found.captions == ("a red sheet", "blue, all of it")
        assert found.negatives == (("a blue sheet", "a green sheet"), ())
    assert softrepa.read_pairs(path, images=folder).digest == softrepa.read_pairs(str(path)).digest
    path.write_text("picture,caption\na.png,red\n")
    with pytest.raises(
        ValueError, match=r"needs a column image or file_name.*it has picture, caption"
    ):
        softrepa.read_pairs(path)
    path.write_text("image,caption\na.png,red\nb.png,\n")
    with pytest.raises(ValueError, match=r"metadata\.csv, line 3: image 'b\.png' and caption ''"):
        softrepa.read_pairs(path)
    path.write_text("image,caption\na.png,red\nx.png,blue\ny.png,green\n")
    with pytest.raises(
        FileNotFoundError, match=r"names 2 of 3 images that are not there: .*x\.png, .*y\.png"
    ):
        softrepa.read_pairs(path)
    path.write_text("image,caption\n")
    with pytest.raises(ValueError, match="holds no image-caption pairs"):
        softrepa.read_pairs(path)
    path.write_text("image,caption\na.png,red\nb.png,red\n")
    with pytest.raises(ValueError, match="at least two different captions, got 1"):
        softrepa.read_pairs(path)


def test_cocos_layout(tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 3, "file_name": "3.jpg"}],
        "annotations": [
            {"image_id": 3, "caption": "a cat "},
            {"image_id": 7, "caption": "a dog"},
            {"image_id": 3, "caption": "cats"},
        ],
    }
    for name in ("3", "7"):
        picture(tmp_path / "val2017" / f"{name}.jpg", "red")
    file = tmp_path / "annotations" / "captions_val2017.json"
    file.parent.mkdir()
    file.write_text(json.dumps(content))
    for source in (tmp_path, file):
        found = softrepa.read_pairs(source)
        assert [path.name for path in found.images] == ["3.jpg", "7.jpg"]
        assert list(zip(found.rows, found.captions, strict=True)) == [
            (0, "a cat"),
            (1, "a dog"),
            (0, "cats"),
        ]
    (tmp_path / "val2017" / "7.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"names 1 of 2 images that are not there: .*7\.jpg"
    ):
        softrepa.read_pairs(tmp_path)
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    with pytest.raises(ValueError, match="2 annotation files; name one"):
        softrepa.read_pairs(tmp_path)
    with pytest.raises(ValueError, match=r"captions_train2017\.json is not a COCO caption file"):
        softrepa.read_pairs(tmp_path / "annotations" / "captions_train2017.json")


def test_images_of_any_size_reach_the_model(folder, random_backbone):
    (folder / "metadata.csv").write_text(
        "image,caption\na.png,a red circle\nb.png,a blue square\nc.png,a green star\n"
    )
    Image.new("L", (200, 90), 90).save(folder / "c.png")
    encoded = softrepa.encode(random_backbone, softrepa.read_pairs(folder))
    assert encoded.latents.shape == (3, *random_backbone.latent_shape())
    flat = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    torch.testing.assert_close(
        encoded.latents[:1], random_backbone.encode_images(flat), rtol=1e-4, atol=1e-4
    )
    (folder / "b.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"b\.png is not an image that Pillow can read"):
        softrepa.encode(random_backbone, softrepa.read_pairs(folder))


def test_the_shapes_world():
    found = softrepa.read_pairs("shapes:30", seed=3)
    assert (len(found.images), len(found)) == (30, 30)
    for n in range(30):
        things = detect(found.images[n])
        assert parse(found.captions[n]).hold(things)
        assert len(set(found.negatives[n])) == 4
        assert not any(parse(text).hold(things) for text in found.negatives[n])
    assert (
        softrepa.read_pairs("shapes:30", seed=3).digest
        == found.digest
        != softrepa.read_pairs("shapes:30", seed=4).digest
    )
    for source in ("shapes:none", "shapes:0"):
        with pytest.raises(ValueError, match="shapes or shapes:N"):
            softrepa.read_pairs(source)
    with pytest.raises(FileNotFoundError, match="there are no pairs at"):
        softrepa.read_pairs("no/such/folder")


def test_lists_that_do_not_go_together():
    with pytest.raises(ValueError, match="3 rows, 2 captions"):
        softrepa.Pairs([1, 2, 3], (0, 1, 2), ("a", "b"))
    with pytest.raises(ValueError, match="a caption names image 2 of 2"):
        softrepa.Pairs([1, 2], (0, 2), ("a", "b"))


def test_the_command_line_trains_and_refuses(tmp_path, capsys):
    out = tmp_path / "t.safetensors"
    args = [
        "softrepa",
        "train",
        "--out",
        str(out),
        "--steps",
        "2",
        "--batch",
        "2",
        "--device",
        "cpu",
    ]
    assert (
        main(
            [
                *args,
                "--pairs",
                "shapes:8",
                "--layers",
                "down,up",
                "--time",
                "--raw",
                "--dweight",
                "1",
            ]
        )
        == 0
    )
    tokens = softrepa.load(out)
    assert "parameters in" in capsys.readouterr().out
    assert (tokens.layers, tokens.time is not None, tokens.config["contrast"]["exponential"]) == (
        ("down", "up"),
        True,
        False,
    )
    assert (tokens.config["contrast"]["dweight"], tokens.config["pairs"]) == (1.0, "shapes:8")
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]
    assert main([*args, "--pairs", str(tmp_path / "none")]) == 2
    assert "datekit softrepa train: there are no pairs at" in capsys.readouterr().err
