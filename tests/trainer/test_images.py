"""Every mode of picture becomes the 8-bit RGB that a person sees, and says how opaque it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.trainer.picture_sets import ORIENTATION, encoded
from trainer.data.images import ImageError, colour, open_alpha, open_rgb

RED, BLUE = (255, 0, 0), (0, 0, 255)


def palette(*colours: int) -> Image.Image:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*colours, *([0, 0, 255] * (256 - len(colours) // 3))])
    return image


MODES = {
    "1": (encoded(Image.new("1", (8, 8), 1), "PNG"), (255, 255, 255)),
    "L": (encoded(Image.new("L", (8, 8), 77), "PNG"), (77, 77, 77)),
    "LA, half": (encoded(Image.new("LA", (8, 8), (100, 128)), "PNG"), (50, 50, 50)),
    "P": (encoded(palette(*RED), "PNG"), RED),
    "P, see-through": (encoded(palette(*RED), "PNG", transparency=0), (0, 0, 0)),
    "P, alpha a colour": (encoded(palette(*RED), "PNG", transparency=bytes([128] * 256)), (128, 0, 0)),
    "RGB": (encoded(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG"), (1, 2, 3)),
    "RGB, one colour see-through": (
        encoded(Image.new("RGB", (8, 8), RED), "PNG", transparency=RED),
        (0, 0, 0),
    ),
    "RGBA, half": (encoded(Image.new("RGBA", (8, 8), (200, 100, 0, 128)), "PNG"), (100, 50, 0)),
    "16-bit grey": (encoded(Image.fromarray(np.full((8, 8), 257 * 9, np.uint16)), "PNG"), (9, 9, 9)),
    "16-bit TIFF": (encoded(Image.fromarray(np.full((8, 8), 257 * 9, np.uint16)), "TIFF"), (9, 9, 9)),
    "32-bit": (encoded(Image.fromarray(np.full((8, 8), 257 * 9, np.int32)), "TIFF"), (9, 9, 9)),
    "float, 0 to 1": (encoded(Image.fromarray(np.full((8, 8), 0.2, np.float32)), "TIFF"), (51, 51, 51)),
    "float, not a number": (encoded(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"), (0, 0, 0)),
    "CMYK": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), RED),
    "YCbCr": (encoded(Image.new("YCbCr", (8, 8), (128, 128, 128)), "TIFF"), (128, 128, 128)),
    "WebP, see-through": (
        encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "WEBP", lossless=True, exact=True),
        (0, 0, 0),
    ),
    "GIF of two frames": (
        encoded(
            Image.new("RGB", (8, 8), RED),
            "GIF",
            save_all=True,
            append_images=[Image.new("RGB", (8, 8), BLUE)],
        ),
        RED,
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_on_black(mode: str) -> None:
    data, seen = MODES[mode]
    image = open_rgb(data, (0, 0, 0))
    assert image.mode == "RGB"
    found = image.getpixel((3, 3))
    assert isinstance(found, tuple)
    assert max(abs(one - other) for one, other in zip(found, seen, strict=True)) <= 1


def test_cmyk_goes_through_its_profile_where_there_is_one() -> None:
    grey = Image.new("CMYK", (8, 8), (0, 0, 0, 128))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = open_rgb(encoded(grey, "JPEG"))
    wrong = open_rgb(encoded(grey, "JPEG", icc_profile=profile))
    broken = open_rgb(encoded(grey, "JPEG", icc_profile=b"no profile"))
    assert plain.getpixel((4, 4)) == wrong.getpixel((4, 4)) == broken.getpixel((4, 4))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_alpha_is_turned_with_its_picture(orientation: int) -> None:
    image = Image.new("RGBA", (20, 10), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 5, 5))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(image, "PNG", exif=exif)
    shown, alpha = open_rgb(data), open_alpha(data)
    assert shown.size == alpha.size == ((20, 10) if orientation < 5 else (10, 20))
    hidden = np.asarray(alpha) == 0
    assert hidden.sum() == 25
    assert (np.asarray(shown)[hidden] == 255).all()
    assert (np.asarray(shown)[~hidden] == RED).all()


def test_what_has_no_alpha_is_opaque() -> None:
    assert open_alpha(MODES["CMYK"][0]).getextrema() == (255, 255)
    assert open_alpha(MODES["LA, half"][0]).getextrema() == (128, 128)


@pytest.mark.parametrize(
    ("name", "rgb"), [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("#0a0B0c", (10, 11, 12))]
)
def test_backgrounds(name: str, rgb: tuple[int, int, int]) -> None:
    assert colour(name) == rgb


def test_a_picture_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match="more pixels than can be decoded safely"):
        open_rgb(MODES["RGB"][0])


def test_a_path_of_any_letters(tmp_path: Path) -> None:
    path = tmp_path / "ünï 猫 🐈.png"
    path.write_bytes(MODES["RGB"][0])
    assert open_rgb(path).size == (8, 8)
    with pytest.raises(FileNotFoundError):
        open_rgb(tmp_path / "gone.png")
