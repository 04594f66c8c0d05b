"""Pictures of every kind come out as the model takes them, with a word where that changes them, or
are refused."""

from __future__ import annotations

import warnings

import families
import numpy as np
import pytest
import torch
from PIL import Image

from datekit.editing import as_images
from datekit.editing.images import as_keep

RGB = (np.random.default_rng(0).random((64, 64, 3)) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def backbone():
    return families.backbone("sd")


def wanted(array=RGB):
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255


def test_the_same_picture_in_every_form_is_the_same(backbone, tmp_path):
    path, grey = tmp_path / "a.png", np.dstack([RGB[..., 0]] * 3)
    Image.fromarray(RGB).save(path)
    first = torch.from_numpy(RGB).permute(2, 0, 1)
    opaque = np.dstack([RGB, np.full((64, 64), 255, np.uint8)])
    deep = RGB[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image in (
            *(Image.fromarray(RGB), path, str(path), RGB, RGB / 255, (RGB / 255).astype("f4")),
            *(first, first[None], first / 255.0, [RGB], RGB[None], opaque),
        ):
            tensor = as_images(image, backbone)
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, wanted())
        for image in (
            *(RGB[..., 0], deep, tmp_path / "deep.png", Image.open(tmp_path / "deep.png")),
            Image.fromarray(deep.astype(np.int32)),
        ):
            torch.testing.assert_close(as_images(image, backbone), wanted(grey))
    assert as_images([RGB, path, first], backbone).shape == (3, 3, 64, 64)
    see_through = np.dstack([RGB, np.full((64, 64), 51, np.uint8)])
    for image in (see_through, Image.fromarray(see_through)):
        with pytest.warns(UserWarning, match="transparency is laid on white"):
            torch.testing.assert_close(as_images(image, backbone), 0.2 * wanted() + 0.8)


def test_a_photograph_is_turned_as_its_tag_says(backbone, tmp_path):
    """Orientation 6: the camera lay on its side; the stored picture is shown turned clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    shown = wanted(np.rot90(RGB, -1).copy())
    torch.testing.assert_close(as_images(tmp_path / "a.png", backbone), shown)
    torch.testing.assert_close(as_images(Image.open(tmp_path / "a.png"), backbone), shown)
    mask = np.zeros((64, 64), np.uint8)
    mask[:8] = 255  # shown on the right
    Image.fromarray(mask).save(tmp_path / "m.png", exif=exif)
    cells = as_keep(tmp_path / "m.png", backbone, torch.zeros(1, 4, 16, 16))[0, 0]
    assert cells[:, 14:].all()
    assert not cells[:, :14].any()


def test_floats_off_by_rounding_are_clipped(backbone):
    assert as_images(np.full((64, 64, 3), 1.0009), backbone).max() == 1
    assert as_images(np.full((64, 64, 3), -0.0009), backbone).min() == 0
    for off in (1.0011, -0.0011):
        with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
            as_images(np.full((64, 64, 3), off), backbone)


def test_another_size_is_brought_to_the_models_as_asked(backbone):
    ramp = np.repeat(np.linspace(0, 1, 200, dtype=np.float32)[None, :, None], 100, 0).repeat(3, 2)
    with pytest.warns(UserWarning, match=r"100 x 200 .* resized to 64 x 128 and cropped to 64 x 6"):
        cropped = as_images(ramp, backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(as_images(ramp, backbone, fit="crop"), cropped)
        stretched = as_images(ramp, backbone, fit="stretch")
        wide = as_images(ramp, backbone, fit="crop", height=32, width=64)
    middle = (torch.arange(64) + 32.5) / 128  # the middle half of the ramp
    torch.testing.assert_close(cropped[0, 0, 10], middle, rtol=0, atol=0.01)
    whole = (torch.arange(64) + 0.5) / 64
    torch.testing.assert_close(stretched[0, 0, 10], whole, rtol=0, atol=0.02)
    assert wide.shape == (1, 3, 32, 64)
    assert 0 <= stretched.min() <= stretched.max() <= 1
    with pytest.raises(ValueError, match=r"100 x 200 pixels .* and 64 x 64"):
        as_images(ramp, backbone, fit="exact")
    with pytest.raises(ValueError, match="unknown fit"):
        as_images(ramp, backbone, fit="pad")


@pytest.mark.parametrize(
    ("image", "error", "said"),
    [
        (RGB.astype(np.float32), ValueError, r"lies in \[0, 1\].*divide by 255"),
        (np.full((64, 64, 3), np.nan), ValueError, "NaN"),
        (RGB.astype(np.int64), ValueError, "int64 has no known range"),
        (RGB[..., :2], ValueError, "shape"),
        (torch.zeros(64, 64), ValueError, "shape"),
        (Image.fromarray(np.full((8, 8), -5, np.int32)), ValueError, "8 or 16 bits"),
        (3.5, TypeError, "path, a PIL image"),
        ([], ValueError, "no image"),
        ("none.png", FileNotFoundError, "no image at"),
        (__file__, ValueError, "not an image"),
    ],
)
def test_what_is_no_picture_is_refused(image, error, said, backbone):
    with pytest.raises(error, match=said):
        as_images(image, backbone)


def test_masks_come_from_every_form(backbone, tmp_path):
    latents, mask = torch.zeros(2, 4, 16, 16), np.zeros((64, 64), bool)
    mask[:, :30] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "m.png")
    cells = torch.arange(16) < 7  # half of the cell of pixels 28 to 31 is kept, so it may change
    for keep in (
        *(mask, mask.astype(float), torch.from_numpy(mask), Image.fromarray(mask), mask[None]),
        *(tmp_path / "m.png", [mask, mask], mask.astype(int), mask.astype(int) * 255),
        *(mask.astype(np.uint8), mask.astype(np.uint16) * 65535, mask[:, ::-1][:, ::-1]),
    ):
        kept = as_keep(keep, backbone, latents)
        assert kept.shape == (2, 1, 16, 16)
        assert torch.equal(kept[1, 0, 3], cells)
    for keep, error, said in (
        (np.zeros((2, 3, 64, 64)), ValueError, "shape"),
        (np.zeros((64, 64, 3)), ValueError, r"take mask\[\.\.\., 0\]"),
        ([], ValueError, "no mask: give at least one"),
        (mask * np.int64(-1), ValueError, "a mask of integers holds 0 and 1"),
        (np.full((64, 64), np.nan), ValueError, "a mask holds NaN"),
        (3, TypeError, "a mask is a path, a PIL image, an array or a tensor, got int"),
        (np.ones((64, 64)), ValueError, "nothing left to edit"),
        (np.zeros((3, 64, 64)), ValueError, "2 pictures take one mask or 2"),
    ):
        with pytest.raises(error, match=said):
            as_keep(keep, backbone, latents)


def test_a_cell_is_kept_only_where_all_its_pixels_are(backbone):
    """Counted cell by cell in the test; a region thinner than a cell stays free."""
    latents = torch.zeros(1, 4, 16, 16)
    mask = np.random.default_rng(3).random((64, 64)) < 0.9
    mask[:16] = True
    mask[8:10, 4:40] = False  # two pixels high, inside one row of cells
    cells = as_keep(mask, backbone, latents)[0, 0]
    for y in range(16):
        for x in range(16):
            assert cells[y, x].item() == mask[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].all()
    with pytest.warns(UserWarning, match="keeps nothing: all pixels of a cell of 4 x 4"):
        as_keep(np.eye(64), backbone, latents)
    drawn = Image.fromarray(np.kron(mask[::4, ::4], np.ones((4, 4))).astype(np.uint8) * 255)
    drawn.putalpha(9)
    with pytest.warns(UserWarning, match="transparency is left out"):
        as_keep(drawn, backbone, latents)
