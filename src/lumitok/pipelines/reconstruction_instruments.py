"""What reconstructions are measured with, and what of it this machine lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lumitok.errors import LumitokError, nearest
from lumitok.evaluation import image_quality
from lumitok.evaluation.extractors import INCEPTION, Extractor, frechet_name, open_extractor
from lumitok.evaluation.perceptual import (
    PerceptualDistance,
    obtain_vgg16,
    open_dists,
    open_feature_distance,
    open_lpips,
)
from lumitok.evaluation.results import Better

METRICS = {
    "rfid": "rFID",
    "ris": "rIS",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "ssim-range-2": "SSIM on [-1, 1]",
    "ms-ssim": "MS-SSIM",
    "l1": "L1",
    "lpips": "LPIPS",
    "dists": "DISTS",
}
"""What a metric is asked for by, and the name of its number. A feature distance comes with its encoder."""

INSTEAD = "efficientnet-lite0"
"""Encoder whose weights come with pip, to be named where Inception's or VGG16's cannot be had."""


@dataclass(frozen=True)
class PairedMetric:
    """A metric of :mod:`lumitok.evaluation.image_quality` and the words that travel with its number."""

    key: str
    """Its name there."""
    method: str
    better: Better
    unit: str = ""


_EACH = "each image by itself, then the mean"
PAIRED = {
    "PSNR": PairedMetric("psnr", f"{image_quality.PSNR_LIMIT:g} dB where equal; {_EACH}", "high", "dB"),
    "SSIM": PairedMetric("ssim", f"{image_quality.SSIM_CONVENTION}; {_EACH}", "high"),
    "SSIM on [-1, 1]": PairedMetric(
        "ssim_range_2", f"{image_quality.SSIM_RANGE_2_CONVENTION}; {_EACH}", "high"
    ),
    "MS-SSIM": PairedMetric("ms_ssim", f"{image_quality.MS_SSIM_CONVENTION}; {_EACH}", "high"),
    "L1": PairedMetric("l1", f"mean absolute difference on [0, 1]; {_EACH}", "low"),
}
"""The paired metrics that need no network, by the name of the number."""

_PERCEPTUAL = {"LPIPS": open_lpips, "DISTS": open_dists}


@dataclass
class Instruments:
    """The formulas and networks of one evaluation."""

    paired: list[str] = field(default_factory=list)
    """Keys of :data:`PAIRED`."""
    perceptual: list[PerceptualDistance] = field(default_factory=list)
    extractor: Extractor | None = None
    """Of the distance between the sets."""
    frechet: bool = False
    """Whether that distance is measured."""
    score: bool = False
    """Whether the inception score is measured."""
    missing: dict[str, str] = field(default_factory=dict)
    """What cannot be measured here, by the name of its number, and why."""

    @property
    def frechet_name(self) -> str:
        """``rFID``, or the name of the same distance on another encoder."""
        assert self.extractor is not None
        return f"r{frechet_name(self.extractor)}"


def choose_metrics(metrics: Sequence[str] | None) -> list[str]:
    """Return names of numbers for keys of :data:`METRICS`; None: all.

    Raises:
        LumitokError: there is no such metric, or none was chosen.
    """
    if metrics is None:
        return list(METRICS.values())
    for name in metrics:
        if name.lower() not in METRICS:
            raise LumitokError(
                f"there is no metric '{name}'{nearest(name.lower(), METRICS)}; known: {', '.join(METRICS)}"
            )
    if not metrics:
        raise LumitokError(f"no metric was chosen; known: {', '.join(METRICS)}")
    asked = {name.lower() for name in metrics}
    return [number for name, number in METRICS.items() if name in asked]


def open_instruments(
    wanted: list[str],
    size: int,
    device: torch.device,
    *,
    perceptual_encoder: str | None,
    vgg16: Path | None,
    set_encoder: str,
    set_weights: Path | None,
) -> Instruments:
    """Open what the wanted numbers need; what cannot be had is entered as missing.

    Args:
        wanted: from :func:`choose_metrics`.
        size: side of the pictures in pixels.
        device: where the networks compute.
        perceptual_encoder: registered encoder of a feature distance, or None.
        vgg16: file of VGG16's weights, or None.
        set_encoder: ``inception`` or a registered encoder.
        set_weights: its file, or None.

    Raises:
        LumitokError: something that the user named cannot be had.
    """
    found = Instruments(paired=[name for name in PAIRED if name in wanted])
    if "MS-SSIM" in wanted and size < image_quality.MS_SSIM_SIDE:
        found.paired.remove("MS-SSIM")
        found.missing["MS-SSIM"] = (
            f"five scales need pictures of at least {image_quality.MS_SSIM_SIDE} px; these have {size} px"
        )
    _open_perceptual(found, wanted, device, vgg16)
    if perceptual_encoder is not None:
        found.perceptual.append(open_feature_distance(perceptual_encoder, device))
    _open_extractor(found, wanted, device, set_encoder, set_weights)
    return found


def _open_perceptual(found: Instruments, wanted: list[str], device: torch.device, vgg16: Path | None) -> None:
    openers = {name: opener for name, opener in _PERCEPTUAL.items() if name in wanted}
    if not openers:
        return
    try:
        path = obtain_vgg16(vgg16)
    except LumitokError as error:
        if vgg16 is not None:
            raise
        found.missing |= dict.fromkeys(openers, str(error))
        return
    for name, opener in openers.items():
        try:
            found.perceptual.append(opener(path, device))
        except LumitokError as error:  # The package lpips, say, is not installed; DISTS does without.
            if vgg16 is not None:
                raise
            found.missing[name] = str(error)


def _open_extractor(
    found: Instruments, wanted: list[str], device: torch.device, name: str, weights: Path | None
) -> None:
    asked = [number for number in ("rFID", "rIS") if number in wanted]
    if name != INCEPTION and "rIS" in asked:
        asked.remove("rIS")
        found.missing["rIS"] = f"it is a score of Inception's classes, and the sets are compared on {name}"
    if not asked:
        return
    try:
        found.extractor = open_extractor(name, weights, device)
    except LumitokError as error:
        if name != INCEPTION or weights is not None:
            raise
        found.missing |= dict.fromkeys(asked, f"{error}. Here that is --set-encoder {INSTEAD}")
        return
    found.frechet, found.score = "rFID" in asked, "rIS" in asked
