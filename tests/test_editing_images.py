"""Pictures of every kind come out as the model takes them, with a word where that changes them, or are refused."""

from __future__ import annotations

import struct
import warnings
import zlib

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
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    channels_first = torch.from_numpy(RGB).permute(2, 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image in (
            Image.fromarray(RGB),
            path,
            str(path),
            RGB,
            RGB / 255,
            (RGB / 255).astype(np.float32),
            channels_first,
            channels_first[None],
            channels_first / 255.0,
            [RGB],
            RGB[None],
            Image.fromarray(RGB).quantize(256).convert("RGB"),
        ):
            found = as_images(image, backbone)
            assert found.shape == (1, 3, 64, 64)
            assert found.dtype == torch.float32
            if not isinstance(image, Image.Image):
                torch.testing.assert_close(found, wanted())
    assert as_images([RGB, path, channels_first], backbone).shape == (3, 3, 64, 64)


def deep_colour(path, values):
    """A PNG of 16 bits a colour, which Pillow cannot write: (H, W, 3) uint16."""
    chunk = lambda name, data: (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    )
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_a_photograph_is_turned_as_its_tag_says(backbone, tmp_path):
    """Orientation 6: the camera lay on its side, and what is shown is the stored picture turned by a quarter, clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    shown = wanted(np.rot90(RGB, -1).copy())
    for image in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        torch.testing.assert_close(as_images(image, backbone), shown)
    mask = np.zeros((64, 64), np.uint8)
    mask[:8] = 255  # shown on the right
    Image.fromarray(mask).save(tmp_path / "m.png", exif=exif)
    for keep in (tmp_path / "m.png", Image.open(tmp_path / "m.png")):
        found = as_keep(keep, backbone, torch.zeros(1, 4, 16, 16))[0, 0]
        assert found[:, 14:].all()
        assert not found[:, :14].any()


def test_floats_off_by_rounding_are_clipped(backbone):
    for off in (1 + 1e-7, 1.0009):
        assert as_images(np.full((64, 64, 3), off), backbone).max() == 1
    for off in (-1e-8, -0.0009):
        assert as_images(np.full((64, 64, 3), off), backbone).min() == 0
    for off in (1.0011, -0.0011):
        with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
            as_images(np.full((64, 64, 3), off), backbone)


def test_what_changes_a_picture_says_so(backbone, tmp_path):
    alpha = np.dstack([RGB, np.full((64, 64), 51, np.uint8)])
    with pytest.warns(UserWarning, match="transparency is laid on white"):
        torch.testing.assert_close(
            as_images(Image.fromarray(alpha), backbone), 0.2 * wanted() + 0.8
        )
    with pytest.warns(UserWarning, match="transparency"):
        as_images(alpha, backbone)
    grey = RGB[..., 0]
    with pytest.warns(UserWarning, match="grey"):
        torch.testing.assert_close(as_images(grey, backbone), wanted(np.dstack([grey] * 3)))
    deep = grey.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for image in (
        deep,
        tmp_path / "deep.png",
        Image.open(tmp_path / "deep.png"),
        Image.fromarray(deep.astype(np.int32)),
    ):
        with pytest.warns(UserWarning, match="16 bits"):
            torch.testing.assert_close(as_images(image, backbone), wanted(np.dstack([grey] * 3)))
    Image.fromarray(RGB).save(tmp_path / "eight.png")
    deep_colour(tmp_path / "colour.png", RGB.astype(np.uint16) * 257)
    for image in (tmp_path / "colour.png", Image.open(tmp_path / "colour.png")):
        with pytest.warns(UserWarning, match="16 bits a colour is read with 8"):
            torch.testing.assert_close(as_images(image, backbone), wanted())
    (tmp_path / "colour.ppm").write_bytes(
        b"P6 64 64 65535\n" + (RGB.astype(">u2") * 257).astype(">u2").tobytes()
    )
    with pytest.warns(UserWarning, match="16 bits a colour is read with 8"):
        torch.testing.assert_close(as_images(tmp_path / "colour.ppm", backbone), wanted())
    with pytest.warns(UserWarning, match="mode CMYK"):
        as_images(Image.fromarray(RGB).convert("CMYK"), backbone)
    opaque = np.dstack([RGB, np.full((64, 64), 255, np.uint8)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(as_images(opaque, backbone), wanted())


def test_another_size_is_brought_to_the_models_as_asked(backbone):
    ramp = np.repeat(np.linspace(0, 1, 200, dtype=np.float32)[None, :, None], 100, 0).repeat(3, 2)
    with pytest.warns(
        UserWarning, match="100 x 200 pixels is resized to 64 x 128 and cropped to 64 x 64"
    ):
        cropped = as_images(ramp, backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(as_images(ramp, backbone, fit="crop"), cropped)
        stretched = as_images(ramp, backbone, fit="stretch")
        wide = as_images(ramp, backbone, fit="crop", height=32, width=64)
    middle = (torch.arange(64) + 32.5) / 128  # the middle half of the ramp
    torch.testing.assert_close(cropped[0, 0, 10], middle, rtol=0, atol=0.01)
    torch.testing.assert_close(
        stretched[0, 0, 10], (torch.arange(64) + 0.5) / 64, rtol=0, atol=0.02
    )
    assert wide.shape == (1, 3, 32, 64)
    assert 0 <= stretched.min() <= stretched.max() <= 1
    with pytest.raises(ValueError, match="100 x 200 pixels and 64 x 64"):
        as_images(ramp, backbone, fit="exact")
    with pytest.raises(ValueError, match="unknown fit"):
        as_images(ramp, backbone, fit="pad")
    with pytest.raises(ValueError, match="multiple of 8"):
        as_images(ramp, backbone, height=30)


@pytest.mark.parametrize(("image", "error", "said"), [
    (RGB.astype(np.float32), ValueError, r"lies in \[0, 1\].*divide it by 255"),
    (RGB / 127.5 - 1, ValueError, r"\(x \+ 1\) / 2"),
    (np.full((64, 64, 3), np.nan), ValueError, "NaN"),
    (RGB.astype(np.int64), ValueError, "int64 has no known range"),
    (RGB[..., :2], ValueError, "shape"),
    (torch.zeros(2, 64, 64), ValueError, "shape"),
    (torch.zeros(64, 64), ValueError, "shape"),
    (Image.fromarray(np.zeros((8, 8), np.float32)), ValueError, "mode F"),
    (Image.fromarray(np.full((8, 8), -5, np.int32)), ValueError, "8 or 16 bits"),
    (3.5, TypeError, "path, a PIL image"), ([], ValueError, "no image"), ("none.png", FileNotFoundError, "no image at"),
])  # fmt: skip
def test_what_is_no_picture_is_refused(image, error, said, backbone):
    with pytest.raises(error, match=said):
        as_images(image, backbone)


def test_a_file_that_is_no_image_is_refused(backbone, tmp_path):
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(ValueError, match="not an image"):
        as_images(tmp_path / "a.png", backbone)


def test_masks_come_from_every_form(backbone, tmp_path):
    latents, mask = torch.zeros(2, 4, 16, 16), np.zeros((64, 64), bool)
    mask[:, :30] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "m.png")
    cells = (
        torch.arange(16) < 7
    )  # the cell of pixels 28 to 31 is kept by half, so it belongs to the edit
    for keep in (
        mask,
        mask.astype(float),
        torch.from_numpy(mask),
        Image.fromarray(mask),
        tmp_path / "m.png",
        mask[None],
        [mask, mask],
        mask.astype(np.int64),
        mask.astype(np.int64) * 255,
        mask.astype(np.uint8),
        mask.astype(np.uint8) * 255,
        mask.astype(np.uint16) * 65535,
        mask.astype(np.float32) * (1 + 1e-6),
        mask[:, ::-1][:, ::-1],
    ):
        found = as_keep(keep, backbone, latents)
        assert found.shape == (2, 1, 16, 16)
        assert torch.equal(found[1, 0, 3], cells)
    with pytest.raises(ValueError, match="shape"):
        as_keep(np.zeros((2, 3, 64, 64)), backbone, latents)
    with pytest.raises(ValueError, match=r"no mask: give at least one"):
        as_keep([], backbone, latents)
    with pytest.raises(ValueError, match=r"\(64, 64, 3\) is a picture's: take mask\[\.\.\., 0\]"):
        as_keep(np.zeros((64, 64, 3)), backbone, latents)
    for wrong in (mask * np.int64(-1), mask * np.int64(70000)):
        with pytest.raises(
            ValueError, match="a mask of integers holds 0 and 1, 0 to 255 or 0 to 65535, got"
        ):
            as_keep(wrong, backbone, latents)
    with pytest.raises(ValueError, match="a mask holds NaN"):
        as_keep(np.full((64, 64), np.nan), backbone, latents)
    with pytest.raises(
        TypeError, match="a mask is a path, a PIL image, an array or a tensor, got int"
    ):
        as_keep(3, backbone, latents)


def test_a_cell_is_kept_only_where_all_its_pixels_are(backbone):
    """Counted cell by cell in the test; a region thinner than a cell stays free wherever it lies."""
    latents = torch.zeros(1, 4, 16, 16)
    mask = np.random.default_rng(3).random((64, 64)) < 0.9
    mask[:16] = True
    mask[8:10, 4:40] = False  # two pixels high, inside one row of cells
    found = as_keep(mask, backbone, latents)[0, 0]
    for y in range(16):
        for x in range(16):
            assert found[y, x].item() == mask[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].all()
    assert not found[2, 1:10].any()
    assert found[0].all()
    with pytest.warns(UserWarning, match="keeps nothing: all pixels of a cell of 4 x 4"):
        as_keep(np.eye(64), backbone, latents)
    with pytest.warns(UserWarning, match="transparency is left out"):
        as_keep(
            Image.fromarray(
                np.dstack(
                    [
                        np.kron(mask[::4, ::4], np.ones((4, 4)))[..., None].repeat(3, 2) * 255,
                        np.full((64, 64), 9),
                    ]
                ).astype(np.uint8)
            ),
            backbone,
            latents,
        )
