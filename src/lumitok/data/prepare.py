"""From a picture of any size to a square of pixels, at random or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Preparation = Literal["random-square", "random-crop", "center-crop"]
TRIES = 100
"""Replacements that are tried for one bad picture."""
LONGEST = 64
"""Sides' ratio from which on a picture is cut before it is enlarged."""


def prepare(
    image: Image.Image,
    size: int,
    preparation: Preparation,
    *,
    crop_scale: tuple[float, float],
    flip: bool,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Crop a picture to a square, resize it, and perhaps mirror it.

    Args:
        image: RGB.
        size: side of the result in pixels.
        preparation: ``random-square`` (VFM-VAE), ``random-crop`` (AlignTok) or ``center-crop`` (ADM).
        crop_scale: bounds of the random square's side, divided by the picture's short side.
        flip: mirror the picture with probability one half.
        rng: the only source of chance; see :func:`augmentation_rng`.

    Returns:
        (size, size, 3), values 0 to 255.
    """
    if preparation == "random-square":
        image = random_square(image, size, crop_scale, rng)
    elif preparation == "random-crop":
        image = random_crop(image, size, rng)
    else:
        image = center_crop(image, size)
    if flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image, dtype=np.uint8)


def random_square(
    image: Image.Image, size: int, crop_scale: tuple[float, float], rng: np.random.Generator
) -> Image.Image:
    """Cut a square of ``U(crop_scale)`` times the short side at a random place; Lanczos to ``size``."""
    short = min(image.size)
    side = min(short, max(1, round(short * rng.uniform(*crop_scale))))
    left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
    # Cropped first: resize(box=...) would let the filter see pixels outside of the square.
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.LANCZOS)


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Resize the short side to ``size``, as :func:`center_crop` does, and cut a square at a random place."""
    image = shrink_short_side(image, size)
    left, top = (int(rng.integers(0, length - size + 1)) for length in image.size)
    return image.crop((left, top, left + size, top + size))


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cut the centre square as ADM does (guided-diffusion's preparation of ImageNet)."""
    image = shrink_short_side(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def shrink_short_side(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to ``size``, the shape kept.

    Halve with a box filter while the short side is at least twice ``size``, then resize with a bicubic
    filter. The ends of a picture more than 64 times as long as it is wide are cut off first: a line of
    1 x 60,000 pixels would become one of 4 billion.
    """
    longest = LONGEST * min(image.size)
    if max(image.size) > longest:
        left, top = (max(0, length - longest) // 2 for length in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def augmentation_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator for one picture in one epoch: no worker, rank or batch enters it."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch, index))))


def order_rng(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator for the order of the pictures in one epoch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch,))))


def replacements(seed: int, epoch: int, index: int, count: int) -> Iterator[int]:
    """Yield the pictures, each once, that may stand in for one of ``count`` that cannot be read."""
    entropy = np.random.SeedSequence(seed, spawn_key=(epoch, index, 0))
    rng = np.random.Generator(np.random.Philox(entropy))
    for other in rng.choice(count, size=min(count, TRIES), replace=False):
        if other != index:
            yield int(other)
