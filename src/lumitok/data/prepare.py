"""From a picture of any size to pixels of a given size, at random or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Preparation = Literal["random-square", "random-crop", "center-crop", "keep-aspect"]
TRIES = 100
"""Replacements that are tried for one bad picture."""
LONGEST = 64
"""Sides' ratio from which on a picture is cut before it is enlarged."""


def prepare(
    image: Image.Image,
    size: int | tuple[int, int],
    preparation: Preparation,
    *,
    crop_scale: tuple[float, float],
    flip: bool,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Resize a picture, crop it to a size, and perhaps mirror it.

    Args:
        image: RGB.
        size: side of the result in pixels; with ``keep-aspect`` its height and width.
        preparation: ``random-square`` (VFM-VAE), ``random-crop`` (AlignTok), ``center-crop`` (ADM) or
            ``keep-aspect`` (AlignTok's web-scale tokenizer; the size is that of the picture's bucket).
        crop_scale: bounds of the random square's side, divided by the picture's short side.
        flip: mirror the picture with probability one half.
        rng: the only source of chance; see :func:`augmentation_rng`.

    Returns:
        (height, width, 3), values 0 to 255.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if preparation in ("random-crop", "keep-aspect"):
        image = random_crop(image, height, width, rng)
    else:
        assert height == width
        square = preparation == "random-square"
        image = random_square(image, width, crop_scale, rng) if square else center_crop(image, width)
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


def random_crop(image: Image.Image, height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """Resize as :func:`cover` does, and cut ``height`` x ``width`` pixels at a random place."""
    image = cover(image, height, width)
    left = int(rng.integers(0, image.width - width + 1))
    top = int(rng.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cut the centre square as ADM does (guided-diffusion's preparation of ImageNet)."""
    image = cover(image, size, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize a picture, its shape kept, to the smallest that covers ``height`` x ``width`` pixels.

    Halve with a box filter while both sides are at least twice what is wanted, then resize with a bicubic
    filter: for a square, ADM's way to bring the short side to a size. The ends of a picture more than 64
    times as long as it is wide are cut off first: a line of 1 x 60,000 pixels would become one of 4 billion.
    """
    longest = LONGEST * min(image.size)
    if max(image.size) > longest:
        left, top = (max(0, length - longest) // 2 for length in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    size = round(image.width * scale), round(image.height * scale)
    return image.resize(size, Image.Resampling.BICUBIC)


def augmentation_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator for one picture in one epoch: no worker, rank or batch enters it."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch, index))))


def order_rng(seed: int, epoch: int, bucket: int | None = None) -> np.random.Generator:
    """Return the generator for the order of the pictures in one epoch, of all or of one bucket."""
    # As long as no other generator's key.
    key = (epoch,) if bucket is None else (epoch, bucket, 0, 0)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def replacements(seed: int, epoch: int, index: int, count: int) -> Iterator[int]:
    """Yield the pictures, each once, that may stand in for one of ``count`` that cannot be read."""
    entropy = np.random.SeedSequence(seed, spawn_key=(epoch, index, 0))
    rng = np.random.Generator(np.random.Philox(entropy))
    for other in rng.choice(count, size=min(count, TRIES), replace=False):
        if other != index:
            yield int(other)
