"""How close a reconstruction is to its picture: PSNR, SSIM and L1, each image by itself.

Two conventions move these numbers by more than most models differ, so both are fixed here and named
in :data:`PROTOCOL`: every image is rounded to 8 bits first (what a PNG file would hold), and each
image has its own score before the mean is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lumitok.errors import LumitokError

PSNR_LIMIT = 100.0
"""dB given to two images that are equal, where the formula has no finite value."""

SSIM_CONVENTION = "torchmetrics, [0, 1], gaussian 11, sigma 1.5"
"""Which of the several SSIMs this is; on [-1, 1] with range 2 the same images score higher."""

PROTOCOL = f"Images rounded to 8 bits; each image scored by itself, then the mean. SSIM: {SSIM_CONVENTION}."
"""The words to print under a table of these numbers."""

_SSIM_PADDING = 5  # Half of the 11-wide window: the reflected border needs a side longer than this.


def to_uint8(pictures: Tensor, *, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Round pictures in [low, high] to the 8-bit levels 0 to 255; values beyond the range are clipped.

    The nearest level is taken. Truncation, which some published code does, biases a decoded picture by
    half a level; rounding gives each of the 256 levels k, written as ``low + (high - low) * k / 255``,
    back as k.

    Args:
        pictures: float tensor of any shape, values in [low, high].
        low: the value that becomes 0.
        high: the value that becomes 255.

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

    In float64 and one image at a time: float32 loses digits in E[x^2] - E[x]^2, a GPU may take TF32
    for the convolution, and a larger batch may be summed in another order.

    Args:
        image: pixels (B, C, H, W) in [0, 1], sides of at least 6 pixels.
        target: pixels of the same shape in [0, 1].

    Returns:
        (B,) float64, at most 1.

    Raises:
        LumitokError: the images differ in shape or are too small for the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    image, target = _pair(image, target)
    if min(image.shape[-2:]) <= _SSIM_PADDING:
        raise LumitokError(
            f"SSIM needs sides of at least {_SSIM_PADDING + 1} pixels, got {tuple(image.shape[-2:])}; "
            "evaluate larger pictures"
        )
    scores = [
        structural_similarity_index_measure(one[None], other[None], data_range=1.0, sigma=1.5)
        for one, other in zip(image, target, strict=True)
    ]
    return torch.stack([score for score in scores if isinstance(score, Tensor)])


class ReconstructionQuality:
    """PSNR, SSIM and L1 of a set of reconstructions, gathered batch by batch.

    The score of every image is kept and summed exactly, so the result depends neither on the size of
    the batches nor on their order, and parts measured by several processes can be merged.
    """

    def __init__(self) -> None:
        self.scores: dict[str, list[float]] = {"psnr": [], "ssim": [], "l1": []}

    def update(self, image: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            image: reconstructions (B, 3, H, W) in [-1, 1]; rounded to 8 bits here.
            target: the pictures they were made from, same shape and range.
        """
        pixels, wanted = (levels / 255.0 for levels in _pair(to_uint8(image), to_uint8(target)))
        self.scores["psnr"] += psnr(pixels, wanted).tolist()
        self.scores["ssim"] += ssim(pixels, wanted).tolist()
        self.scores["l1"] += (pixels - wanted).abs().mean(dim=(1, 2, 3)).tolist()

    def merge(self, other: ReconstructionQuality) -> None:
        """Add the images that ``other`` has seen."""
        for name, values in other.scores.items():
            self.scores[name] += values

    def __len__(self) -> int:
        return len(self.scores["psnr"])

    def results(self) -> Iterator[tuple[str, float]]:
        """Yield ``psnr`` (dB), ``ssim``, ``l1`` (mean over images, pixels in [0, 1]), then ``count``.

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
