"""Differentiable augmentation of what the discriminator sees (DiffAugment, arXiv 2006.10738).

VFM-VAE's setting: color, translation by an eighth and a cutout of a fifth, always on, for real and
decoded pictures, each picture with its own draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lumitok.errors import LumitokError

TRANSLATION = 0.125
"""Largest shift, as a share of the side."""
CUTOUT = 0.2
"""Side of the blanked rectangle, as a share of the picture's side."""


@dataclass(frozen=True)
class AugmentDraws:
    """The random numbers of one augmentation, each (B,), on the processor."""

    brightness: Tensor
    """Added to every pixel, in [-0.5, 0.5)."""
    saturation: Tensor
    """Factor about the pixel's channel mean, in [0, 2)."""
    contrast: Tensor
    """Factor about the picture's mean, in [0.5, 1.5)."""
    shift_rows: Tensor
    """Whole pixels: output row r is input row r + shift."""
    shift_columns: Tensor
    """Whole pixels, likewise."""
    cut_rows: Tensor
    """Row of the centre of the blanked rectangle."""
    cut_columns: Tensor
    """Column of its centre."""


def draw(
    batch: int, height: int, width: int, generators: Sequence[torch.Generator] | None = None
) -> AugmentDraws:
    """Draw an augmentation for each picture.

    The numbers come from CPU generators, so that they are the same on every device. With a generator a
    picture they depend neither on the batch nor on the process that the picture is in.

    Args:
        batch: number of pictures.
        height: of the pictures, in pixels.
        width: of the pictures, in pixels.
        generators: one a picture; None: torch's global generator for all.

    Raises:
        LumitokError: there are more or fewer generators than pictures.
    """
    if generators is not None and len(generators) != batch:
        raise LumitokError(
            f"{len(generators)} generators were given for {batch} pictures; give one a picture"
        )
    sources: Sequence[torch.Generator | None] = generators or [None] * batch

    def uniform() -> Tensor:
        return torch.cat([torch.rand(1, generator=source) for source in sources])

    def whole(low: int, high: int) -> Tensor:
        return torch.cat([torch.randint(low, high, (1,), generator=source) for source in sources])

    brightness, saturation, contrast = uniform() - 0.5, uniform() * 2.0, uniform() + 0.5
    rows, columns = int(height * TRANSLATION + 0.5), int(width * TRANSLATION + 0.5)
    shift_rows, shift_columns = whole(-rows, rows + 1), whole(-columns, columns + 1)
    # A square of even side has its centre between two pixels: one more place than pixels.
    cut_rows = whole(0, height + 1 - _cut_side(height) % 2)
    cut_columns = whole(0, width + 1 - _cut_side(width) % 2)
    return AugmentDraws(brightness, saturation, contrast, shift_rows, shift_columns, cut_rows, cut_columns)


def augment(pictures: Tensor, draws: AugmentDraws) -> Tensor:
    """Apply brightness, saturation, contrast, translation and cutout, in this order.

    What comes from outside and what is cut out is 0, mid-grey. Gradients reach the pictures.

    Args:
        pictures: (B, 3, H, W) in [-1, 1]; the result can lie outside.
        draws: from :func:`draw` for the same B, H and W.
    """
    return cutout(translation(color(pictures, draws), draws), draws)


def color(pictures: Tensor, draws: AugmentDraws) -> Tensor:
    """Brightness, then saturation about each pixel's mean, then contrast about the picture's mean."""

    def along(values: Tensor) -> Tensor:
        return values.to(pictures).view(-1, 1, 1, 1)

    pictures = pictures + along(draws.brightness)
    mean = pictures.mean(dim=1, keepdim=True)
    pictures = (pictures - mean) * along(draws.saturation) + mean
    mean = pictures.mean(dim=(1, 2, 3), keepdim=True)
    return (pictures - mean) * along(draws.contrast) + mean


def translation(pictures: Tensor, draws: AugmentDraws) -> Tensor:
    """Shift each picture by whole pixels and fill with 0."""
    height, width = pictures.shape[-2:]
    rows, columns = draws.shift_rows.tolist(), draws.shift_columns.tolist()
    reach_y, reach_x = max(map(abs, rows)), max(map(abs, columns))
    padded = F.pad(pictures, (reach_x, reach_x, reach_y, reach_y))
    # unbind: the gradient of indexing padded[i] would be as large as the whole batch, B times.
    return torch.stack(
        [
            picture[:, reach_y + dy : reach_y + dy + height, reach_x + dx : reach_x + dx + width]
            for picture, dy, dx in zip(padded.unbind(0), rows, columns, strict=True)
        ]
    )


def cutout(pictures: Tensor, draws: AugmentDraws) -> Tensor:
    """Set a rectangle of each picture to 0; it is clipped at the border."""
    height, width = pictures.shape[-2:]
    rows = _inside(draws.cut_rows.to(pictures.device), height)
    columns = _inside(draws.cut_columns.to(pictures.device), width)
    cut = rows[:, None, :, None] & columns[:, None, None, :]
    return pictures.masked_fill(cut, 0.0)


def _cut_side(side: int) -> int:
    return int(side * CUTOUT + 0.5)


def _inside(centres: Tensor, side: int) -> Tensor:
    """Return (B, side): which rows (or columns) the rectangle covers."""
    start = centres[:, None] - _cut_side(side) // 2
    place = torch.arange(side, device=centres.device)[None]
    return (place >= start) & (place < start + _cut_side(side))
