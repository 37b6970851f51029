"""Open any picture as the 8-bit RGB that a person sees."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif"})
VERSION = f"1/pillow-{Image.__version__}"
"""Part of every cache key: what a file's pixels are depends on this code."""

_lock = threading.Lock()
_decoding = 0
_silence = warnings.catch_warnings()


class ImageError(ValueError):
    """The file is not a picture that can be decoded; the message says why."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the decoders' warnings. `warnings.catch_warnings` is of the process, not of a thread: only the
    first of several threads opens it, and the last closes it."""
    global _decoding, _silence
    with _lock:
        if _decoding == 0:
            _silence = warnings.catch_warnings()
            _silence.__enter__()
            warnings.simplefilter("ignore")
        _decoding += 1
    try:
        yield
    finally:
        with _lock:
            _decoding -= 1
            if _decoding == 0:
                _silence.__exit__(None, None, None)


def colour(name: str) -> tuple[int, int, int]:
    """The RGB of white, black or #rrggbb."""
    red, green, blue = ImageColor.getrgb(name)[:3]
    return red, green, blue


def open_rgb(data: bytes | Path, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Decode wholly: first frame, EXIF orientation applied, alpha composited on `background`, 16-bit
    scaled to 8, CMYK through its ICC profile where it has one. Mode RGB. Raises ImageError."""
    return _opened(data, lambda image: _to_rgb(image, background))


def open_alpha(data: bytes | Path) -> Image.Image:
    """How opaque each pixel is, in mode L, oriented as `open_rgb`; white throughout for a picture without
    transparency. Raises ImageError."""
    return _opened(data, _alpha)


def _opened(data: bytes | Path, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    try:
        with _quiet(), Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as opened:
            opened.seek(0)
            opened.load()
            return convert(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("more pixels than can be decoded safely") from None
    except Image.UnidentifiedImageError:
        raise ImageError("not an image, or damaged at its beginning") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError) as error:
        raise ImageError(f"cannot be decoded: {error}") from None


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _alpha(image: Image.Image) -> Image.Image:
    if not _has_alpha(image):
        return Image.new("L", image.size, 255)
    return image.convert("RGBA").getchannel("A")


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep_grey(image)
    if image.mode == "CMYK":
        return _cmyk(image)
    if _has_alpha(image):
        colours = image.convert("RGBA")
        flat = Image.new("RGBA", colours.size, (*background, 255))
        return Image.alpha_composite(flat, colours).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """More than 8 bits of grey: 16-bit range to 0..255; floats are 0..1, or 0..255 if they go beyond 1."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        scaled = values * 255.0 if values.max(initial=0.0) <= 1.0 else values
    else:
        scaled = values / 257.0 if image.mode != "I" or values.max(initial=0.0) > 255 else values
    grey = np.clip(np.nan_to_num(scaled), 0, 255).round().astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _cmyk(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            converted = ImageCms.profileToProfile(
                image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass
    return image.convert("RGB")


def square(image: Image.Image, side: int) -> Image.Image:
    """Scale the shorter side to `side` pixels and cut the middle square out of it."""
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    return resized.crop((left, top, left + side, top + side))
