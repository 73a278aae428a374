"""How close a reconstruction is to its picture: PSNR, SSIM, MS-SSIM and L1, each image by itself.

Three conventions move these numbers by more than most models differ, so they are fixed here and named
with the numbers: every image is rounded to 8 bits first (what a PNG file would hold), each image has
its own score before the mean is taken, and SSIM says on which range it was computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lumitok.errors import LumitokError, nearest

Rounding = Literal["nearest", "legacy"]

ROUNDINGS: dict[Rounding, str] = {
    "nearest": "8 bits, nearest level",
    "legacy": "8 bits, 255 (x + 1) / 2 truncated, as VFM-VAE's and REPA's published code",
}
"""How a decoded value becomes 8 bits, in the words that stand beside a number."""

PSNR_LIMIT = 100.0
"""dB given to two images that are equal, where the formula has no finite value."""

SSIM_CONVENTION = "torchmetrics, [0, 1], gaussian 11, sigma 1.5"
"""Which of the several SSIMs this is; on [-1, 1] with range 2 the same images score otherwise."""

SSIM_RANGE_2_CONVENTION = "torchmetrics, [-1, 1] with range 2, gaussian 11, sigma 1.5"
"""The SSIM that VA-VAE and VFM-VAE report."""

MS_SSIM_CONVENTION = "torchmetrics, [0, 1], five scales, gaussian 11, sigma 1.5"

MS_SSIM_SIDE = 176
"""Least side for MS-SSIM: halved four times, a picture must still be as wide as the 11-wide window."""

PROTOCOL = f"Images rounded to 8 bits; each image scored by itself, then the mean. SSIM: {SSIM_CONVENTION}."
"""The words to print under a table of these numbers."""

_SSIM_PADDING = 5  # Half of the 11-wide window: the reflected border needs a side longer than this.
SSIM_SIDE = _SSIM_PADDING + 1
"""Smallest side in pixels that SSIM is defined for."""
_SSIM_SIGMA = 1.5
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Largest scale first (Wang et al. 2003).


def to_uint8(
    pictures: Tensor, *, low: float = -1.0, high: float = 1.0, rounding: Rounding = "nearest"
) -> Tensor:
    """Round pictures in [low, high] to the 8-bit levels 0 to 255; values beyond the range are clipped.

    The nearest level is taken. Truncation, which some published code does (``legacy``), biases a decoded
    picture by half a level; rounding gives each of the 256 levels k, written as
    ``low + (high - low) * k / 255``, back as k. VA-VAE's truncated ``127.5 x + 128`` is the nearest level.

    Args:
        pictures: float tensor of any shape, values in [low, high].
        low: the value that becomes 0.
        high: the value that becomes 255.
        rounding: ``nearest`` or ``legacy``.

    Returns:
        A uint8 tensor of the same shape, on the same device.

    Raises:
        LumitokError: a value is NaN or infinite, so there is no picture to speak of.
    """
    pictures = pictures.detach().float()  # bfloat16 has 8 bits of mantissa: too few to scale in.
    if not bool(torch.isfinite(pictures).all()):
        wrong = int((~torch.isfinite(pictures)).sum())
        raise LumitokError(
            f"{wrong} of {pictures.numel()} pixel values are NaN or infinite; the model that made them has "
            "diverged: go back to an earlier checkpoint and lower the learning rate"
        )
    if rounding == "legacy":  # Its own order of operations: it decides where exact levels fall.
        return ((pictures - low) / (high - low) * 255.0).clamp(0, 255).to(torch.uint8)
    return ((pictures - low) * (255.0 / (high - low))).round().clamp(0, 255).to(torch.uint8)


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, one value an image, never above :data:`PSNR_LIMIT`.

    ``-10 log10(mean squared error)``. Equal images would give infinity, and one such image would make
    the mean of a data set infinite; they get 100 dB.

    Args:
        image: pixels (B, C, H, W) in [0, 1].
        target: pixels of the same shape in [0, 1].

    Returns:
        (B,) float64, dB.
    """
    image, target = _pair(image, target)
    squared = (image - target).square().mean(dim=(1, 2, 3))
    return -10.0 * squared.clamp_min(10.0 ** (-PSNR_LIMIT / 10.0)).log10()


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), one value an image, in :data:`SSIM_CONVENTION`.

    In float64: float32 loses digits in E[x^2] - E[x]^2, and a GPU may take TF32 for the convolution.

    Args:
        image: pixels (B, C, H, W) in [0, 1], sides of at least 6 pixels.
        target: pixels of the same shape in [0, 1].

    Returns:
        (B,) float64, at most 1.

    Raises:
        LumitokError: the images differ in shape or are too small for the window.
    """
    return _ssim(*_pair(image, target), data_range=1.0)


def ssim_range_2(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity in :data:`SSIM_RANGE_2_CONVENTION`, one value an image.

    SSIM compares the means of windows relative to their size, so it is not invariant to a shift: here grey
    is 0 and black is -1, an error in brightness weighs more in grey windows and less in dark ones. The same
    images may score higher or lower than on [0, 1]. Arguments (in [0, 1] here too), result and errors as
    :func:`ssim`.
    """
    image, target = _pair(image, target)
    return _ssim(2.0 * image - 1.0, 2.0 * target - 1.0, data_range=2.0)


def ms_ssim(image: Tensor, target: Tensor) -> Tensor:
    """Multi-scale structural similarity (Wang et al. 2003), one value an image, in float64.

    Args:
        image: pixels (B, C, H, W) in [0, 1], sides of at least :data:`MS_SSIM_SIDE` pixels.
        target: pixels of the same shape in [0, 1].

    Returns:
        (B,) float64, 0 to 1; the published five weights, negative similarities set to 0.

    Raises:
        LumitokError: the images differ in shape or are too small for five scales.
    """
    image, target = _pair(image, target)
    if min(image.shape[-2:]) < MS_SSIM_SIDE:
        raise LumitokError(
            f"MS-SSIM halves the picture four times and needs sides of at least {MS_SSIM_SIDE} pixels, got "
            f"{tuple(image.shape[-2:])}; evaluate larger pictures or leave it out"
        )
    return torch.stack([_ms_ssim_of_one(x, y) for x, y in zip(image, target, strict=True)])


def l1(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference, one value an image: (B,) float64 for pixels (B, C, H, W) in [0, 1]."""
    image, target = _pair(image, target)
    return (image - target).abs().mean(dim=(1, 2, 3))


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "psnr": psnr,
    "ssim": ssim,
    "l1": l1,
    "ssim_range_2": ssim_range_2,
    "ms_ssim": ms_ssim,
}
"""Every paired metric of this file: two batches of pixels in [0, 1] -> (B,)."""

CHEAP = ("psnr", "ssim", "l1")
"""What a training run measures of itself."""


class ReconstructionQuality:
    """Paired metrics of a set of reconstructions, gathered batch by batch.

    The score of every image is kept and summed exactly, so the result depends neither on the size of
    the batches nor on their order, and parts measured by several processes can be merged.

    Args:
        metrics: names from :data:`METRICS`; PSNR, SSIM and L1 unless more is asked for.

    Raises:
        LumitokError: there is no metric of such a name.
    """

    def __init__(self, metrics: Iterable[str] = CHEAP) -> None:
        self.scores: dict[str, list[float]] = {name: [] for name in metrics}
        for name in self.scores:
            if name not in METRICS:
                known = ", ".join(METRICS)
                raise LumitokError(
                    f"there is no paired metric '{name}'{nearest(name, METRICS)}; known: {known}"
                )

    def update(self, image: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            image: reconstructions (B, 3, H, W) in [-1, 1]; rounded to 8 bits here.
            target: the pictures they were made from, same shape and range.
        """
        self.update_levels(to_uint8(image), to_uint8(target))

    def update_levels(self, image: Tensor, target: Tensor) -> None:
        """Add a batch that is rounded already: two uint8 tensors (B, 3, H, W)."""
        pixels, wanted = (levels / 255.0 for levels in _pair(image, target))
        for name, values in self.scores.items():
            values += METRICS[name](pixels, wanted).tolist()

    def merge(self, other: ReconstructionQuality) -> None:
        """Add the images that ``other`` has seen."""
        for name, values in other.scores.items():
            self.scores[name] += values

    def __len__(self) -> int:
        return len(next(iter(self.scores.values()), ()))

    def results(self) -> Iterator[tuple[str, float]]:
        """Yield each metric's mean over the images (``psnr`` in dB, ``l1`` of [0, 1]), then ``count``.

        Raises:
            LumitokError: no image was added.
        """
        if not len(self):
            raise LumitokError("no image was scored; give at least one picture to evaluate on")
        for name, values in self.scores.items():
            yield name, math.fsum(values) / len(values)
        yield "count", float(len(self))


def _pair(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as float64 where the device has it, after a look at their shapes."""
    if image.shape != target.shape or image.ndim != 4:
        raise LumitokError(
            f"expected two batches of one shape (B, C, H, W), got {tuple(image.shape)} and "
            f"{tuple(target.shape)}; compare each reconstruction with the picture it was made from"
        )
    if image.device.type == "mps":  # It has no float64.
        image, target = image.cpu(), target.cpu()
    return image.detach().double(), target.detach().double()


def _ssim(image: Tensor, target: Tensor, data_range: float) -> Tensor:
    """SSIM of float64 images (B, C, H, W) whose values span ``data_range``: (B,)."""
    if min(image.shape[-2:]) < SSIM_SIDE:
        raise LumitokError(
            f"SSIM needs sides of at least {SSIM_SIDE} pixels, got {tuple(image.shape[-2:])}; "
            "evaluate larger pictures"
        )
    # One image at a time: a larger batch may be summed in another order.
    terms = (_ssim_terms(x, y, data_range) for x, y in zip(image, target, strict=True))
    return torch.stack([(luminance * structure).mean() for luminance, structure in terms])


def _ms_ssim_of_one(image: Tensor, target: Tensor) -> Tensor:
    """MS-SSIM of one pair (C, H, W) in [0, 1], a scalar."""
    score = image.new_ones(())
    for weight in _MS_SSIM_WEIGHTS[:-1]:
        _, structure = _ssim_terms(image, target, 1.0)
        inside = structure[:, _SSIM_PADDING:-_SSIM_PADDING, _SSIM_PADDING:-_SSIM_PADDING]
        score = score * inside.mean().relu() ** weight
        image, target = F.avg_pool2d(image, 2), F.avg_pool2d(target, 2)
    luminance, structure = _ssim_terms(image, target, 1.0)
    return score * (luminance * structure).mean().relu() ** _MS_SSIM_WEIGHTS[-1]


def _ssim_terms(image: Tensor, target: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure of one pair (C, H, W) under every window, each (C, H, W).

    torchmetrics' own numbers to rounding, with the window taken apart into a column and a row: on the
    processor that is several times as fast in float64.
    """
    steps = torch.arange(-_SSIM_PADDING, _SSIM_PADDING + 1, dtype=image.dtype, device=image.device)
    window = torch.exp(-0.5 * (steps / _SSIM_SIGMA).square())
    window = window / window.sum()
    x, y = (F.pad(one[None], (_SSIM_PADDING,) * 4, mode="reflect")[0] for one in (image, target))
    products = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 1)[:, None]
    blurred = F.conv2d(F.conv2d(products, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    mean_x, mean_y, xx, yy, xy = blurred.view(5, *image.shape)
    variances = (xx - mean_x.square()).clamp_min(0.0) + (yy - mean_y.square()).clamp_min(0.0)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2.0 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return luminance, (2.0 * (xy - mean_x * mean_y) + c2) / (variances + c2)
