"""How one picture is read, and why one cannot be."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may hold, whatever its name says. Others stay shut: EPS, for one, runs Ghostscript."""

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""Tags of a TIFF."""
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""

# Pillow refuses a picture from twice its limit on, which makes it a bad one; below, it warns of each.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_picture(file: BinaryIO | Path) -> Image.Image:
    """Read the first frame of a picture as RGB, turned upright by its EXIF orientation.

    The content decides on the format, not the name. Transparent pixels are composited on white. Grey of
    12 or 16 bits is scaled to 8 (65535 becomes 255), colours of 16 bits keep their upper 8. Colour
    profiles are not applied.

    Raises:
        Exception: what Pillow raises for a damaged or truncated file or a decompression bomb, or
            ValueError for a pixel format whose range is not known (floating point, 32-bit integers).
    """
    with _open(file) as opened:
        # Once loaded, the picture no longer says how it was stored.
        white, inverted = _grey_scale(opened)
        _shorten_color_key(opened)
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):
        return _from_deep_grey(image, white, inverted)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_size(file: BinaryIO | Path) -> tuple[int, int]:
    """Read the width and height that :func:`read_picture` gives, upright: the header alone.

    Raises:
        Exception: what Pillow raises for a damaged header or a decompression bomb.
    """
    with _open(file) as opened:
        width, height = opened.size
        if opened.format == "TIFF":  # Pillow has turned it.
            return width, height
        # Not the picture's own method: a PNG's decodes all pixels to look for EXIF behind them.
        orientation = Image.Image.getexif(opened).get(ExifTags.Base.Orientation, 1)
        return (height, width) if orientation in SIDEWAYS else (width, height)


def reason_of(error: Exception) -> str:
    """Say in a few words, alike on every machine, why reading a picture failed."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    known = (OSError, ValueError, SyntaxError, RuntimeError, zipfile.BadZipFile, Image.DecompressionBombError)
    text = " ".join(str(error).split())
    return text if text and isinstance(error, known) else f"{type(error).__name__}: {text}".rstrip(": ")


def _open(file: BinaryIO | Path) -> ImageFile.ImageFile:
    # Another library may have set it, and a truncated picture would pass for a grey one.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError:
        # Pillow's own sentence holds an address in memory.
        if _is_empty(file):
            raise UnidentifiedImageError("the file is empty") from None
        raise UnidentifiedImageError(
            f"it holds no picture, or its header is damaged; wanted one of {', '.join(formats)}"
        ) from None


def _is_empty(file: BinaryIO | Path) -> bool:
    return file.stat().st_size == 0 if isinstance(file, Path) else file.seek(0, 2) == 0


def _grey_scale(opened: ImageFile.ImageFile) -> tuple[int, bool]:
    """Return the value of a deep grey picture's brightest pixel, and whether it stands for black."""
    tags: Any = getattr(opened, "tag_v2", {})
    return 4095 if tags.get(BITS_PER_SAMPLE) == (12,) else 65535, tags.get(PHOTOMETRIC) == 0


def _shorten_color_key(opened: ImageFile.ImageFile) -> None:
    """Give the transparent colour 8 bits where Pillow gives them to the pixels."""
    key = opened.info.get("transparency")
    if isinstance(key, tuple) and any(";16" in str(tile[3]) for tile in opened.tile):
        opened.info["transparency"] = tuple(value >> 8 for value in key)


def _from_deep_grey(image: Image.Image, white: int, inverted: bool) -> Image.Image:
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > white:
        raise ValueError(f"its pixels (mode {image.mode}) have no known range; save it with 8 or 16 bits")
    grey = (values.astype(np.int64) * 255 + white // 2) // white
    grey = 255 - grey if inverted else grey
    if isinstance(key := image.info.get("transparency"), int):
        grey[values == key] = 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
