"""Pictures and masks of every form come out as the model takes them, or are refused."""

from __future__ import annotations

import families
import numpy as np
import pytest
import torch
from PIL import Image

from datekit.editing import as_images
from datekit.editing.images import as_keep

RGB = (np.random.default_rng(0).random((64, 64, 3)) * 255).astype(np.uint8)
LATENTS = torch.zeros(2, 4, 16, 16)


@pytest.fixture(scope="module")
def backbone():
    return families.backbone("sd")


def wanted(array=RGB):
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255


def test_the_same_picture_in_every_form_is_the_same(backbone, tmp_path):
    path, picture = tmp_path / "a.png", Image.fromarray(RGB)
    picture.save(path)
    first = torch.from_numpy(RGB).permute(2, 0, 1)
    for image in (picture, path, str(path), first, first[None], first / 255.0, [picture]):
        tensor = as_images(image, backbone)
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, wanted(), rtol=0, atol=1e-7)
    grey = as_images(Image.fromarray(RGB[..., 0]), backbone)
    torch.testing.assert_close(grey, wanted(np.dstack([RGB[..., 0]] * 3)))
    assert as_images([picture, path, first], backbone).shape == (3, 3, 64, 64)
    see_through = Image.fromarray(np.dstack([RGB, np.full((64, 64), 51, np.uint8)]))
    torch.testing.assert_close(as_images(see_through, backbone), 0.2 * wanted() + 0.8)


def test_a_photograph_is_turned_as_its_tag_says(backbone, tmp_path):
    """Orientation 6: the camera lay on its side; the stored picture is shown turned clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    shown = wanted(np.rot90(RGB, -1).copy())
    torch.testing.assert_close(as_images(tmp_path / "a.png", backbone), shown)
    mask = np.zeros((64, 64), np.uint8)
    mask[:8] = 255  # shown on the right
    Image.fromarray(mask).save(tmp_path / "m.png", exif=exif)
    cells = as_keep(tmp_path / "m.png", backbone, LATENTS)[1, 0]
    assert cells[:, 14:].all()
    assert not cells[:, :14].any()


def test_another_size_is_scaled_and_cut(backbone):
    ramp = torch.linspace(0, 1, 200).expand(3, 100, 200)
    middle = (torch.arange(64) + 32.5) / 128  # the middle half of the ramp
    torch.testing.assert_close(as_images(ramp, backbone)[0, 0, 10], middle, rtol=0, atol=0.01)
    assert as_images(ramp, backbone, height=32, width=64).shape == (1, 3, 32, 64)


@pytest.mark.parametrize(
    ("image", "error", "said"),
    [
        (torch.full((3, 64, 64), 1.0011), ValueError, r"lie in \[0, 1\]"),
        (torch.full((3, 64, 64), torch.nan), ValueError, "to nan"),
        (torch.ones(3, 64, 64, dtype=torch.int64), ValueError, "int64"),
        (torch.zeros(2, 64, 64), ValueError, "shape"),
        (Image.fromarray(np.ones((8, 8), np.uint16)), ValueError, "save it with 8 bits"),
        (RGB, TypeError, "a path, a PIL image or a tensor, got ndarray"),
        ("none.png", FileNotFoundError, "none.png"),
        (__file__, OSError, "cannot identify image file"),
    ],
)
def test_what_is_no_picture_is_refused(image, error, said, backbone):
    with pytest.raises(error, match=said):
        as_images(image, backbone)
    assert as_images(torch.full((3, 64, 64), 1.0009), backbone).max() == 1  # off by rounding


def test_masks_come_from_every_form(backbone, tmp_path):
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:, :30] = True
    picture = Image.fromarray(mask.numpy())
    picture.save(tmp_path / "m.png")
    cells = torch.arange(16) < 7  # half of the cell of pixels 28 to 31 is kept, so it may change
    for keep in (mask, mask.float(), mask[None], picture, tmp_path / "m.png"):
        kept = as_keep(keep, backbone, LATENTS)
        assert kept.shape == (2, 1, 16, 16)
        assert torch.equal(kept[1, 0, 3], cells)
    for keep, said in (
        (torch.zeros(2, 3, 64, 64), "shape"),
        (mask.byte(), r"bool or lie in \[0, 1\]"),
        (torch.ones(64, 64), "keeps the whole picture"),
        (torch.zeros(3, 64, 64), "2 pictures take one mask or as many, got 3"),
    ):
        with pytest.raises(ValueError, match=said):
            as_keep(keep, backbone, LATENTS)


def test_a_cell_is_kept_only_where_all_its_pixels_are(backbone):
    """Counted cell by cell in the test; a region thinner than a cell stays free."""
    mask = torch.from_numpy(np.random.default_rng(3).random((64, 64)) < 0.9)
    mask[:16] = True
    mask[8:10, 4:40] = False  # two pixels high, inside one row of cells
    cells = as_keep(mask, backbone, LATENTS)[0, 0]
    for y in range(16):
        for x in range(16):
            assert cells[y, x].item() == mask[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].all()
    with pytest.warns(UserWarning, match="keeps nothing: all of a cell of 4 x 4"):
        as_keep(torch.eye(64), backbone, LATENTS)
