"""Pictures of every kind come out as the model takes them, with a word where that changes them, or are refused."""

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
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    channels_first = torch.from_numpy(RGB).permute(2, 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image in (Image.fromarray(RGB), path, str(path), RGB, RGB / 255, (RGB / 255).astype(np.float32), channels_first,
                      channels_first[None], channels_first / 255.0, [RGB], RGB[None], Image.fromarray(RGB).quantize(256).convert("RGB")):
            found = as_images(image, backbone)
            assert found.shape == (1, 3, 64, 64)
            assert found.dtype == torch.float32
            if not isinstance(image, Image.Image):
                torch.testing.assert_close(found, wanted())
    assert as_images([RGB, path, channels_first], backbone).shape == (3, 3, 64, 64)


def test_what_changes_a_picture_says_so(backbone, tmp_path):
    alpha = np.dstack([RGB, np.full((64, 64), 51, np.uint8)])
    with pytest.warns(UserWarning, match="transparency is laid on white"):
        torch.testing.assert_close(as_images(Image.fromarray(alpha), backbone), 0.2 * wanted() + 0.8)
    with pytest.warns(UserWarning, match="transparency"):
        as_images(alpha, backbone)
    grey = RGB[..., 0]
    with pytest.warns(UserWarning, match="grey"):
        torch.testing.assert_close(as_images(grey, backbone), wanted(np.dstack([grey] * 3)))
    deep = grey.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for image in (deep, tmp_path / "deep.png", Image.open(tmp_path / "deep.png"), Image.fromarray(deep.astype(np.int32))):
        with pytest.warns(UserWarning, match="16 bits"):
            torch.testing.assert_close(as_images(image, backbone), wanted(np.dstack([grey] * 3)))
    with pytest.warns(UserWarning, match="mode CMYK"):
        as_images(Image.fromarray(RGB).convert("CMYK"), backbone)
    opaque = np.dstack([RGB, np.full((64, 64), 255, np.uint8)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(as_images(opaque, backbone), wanted())


def test_another_size_is_brought_to_the_models_as_asked(backbone):
    ramp = np.repeat(np.linspace(0, 1, 200, dtype=np.float32)[None, :, None], 100, 0).repeat(3, 2)
    with pytest.warns(UserWarning, match="100 x 200 pixels is resized to 64 x 128 and cropped to 64 x 64"):
        cropped = as_images(ramp, backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(as_images(ramp, backbone, fit="crop"), cropped)
        stretched = as_images(ramp, backbone, fit="stretch")
        wide = as_images(ramp, backbone, fit="crop", height=32, width=64)
    middle = (torch.arange(64) + 32.5) / 128  # the middle half of the ramp
    torch.testing.assert_close(cropped[0, 0, 10], middle, rtol=0, atol=0.01)
    torch.testing.assert_close(stretched[0, 0, 10], (torch.arange(64) + 0.5) / 64, rtol=0, atol=0.02)
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
    cells = torch.arange(16) < 8  # the cell of pixels 28 to 31 is kept by half
    for keep in (mask, mask.astype(float), torch.from_numpy(mask), Image.fromarray(mask), tmp_path / "m.png", mask[None], [mask, mask]):
        found = as_keep(keep, backbone, latents)
        assert found.shape == (2, 1, 16, 16)
        assert torch.equal(found[1, 0, 3], cells)
    with pytest.raises(ValueError, match="shape"):
        as_keep(np.zeros((2, 3, 64, 64)), backbone, latents)
