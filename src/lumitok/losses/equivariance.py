"""Equivariance regularisation: a latent that is resized or turned decodes to the picture so changed.

EQ-VAE (arXiv 2502.09509) and VFM-VAE (arXiv 2510.18457, section 3.4), whose two branches these are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lumitok.config import EquivarianceConfig
from lumitok.errors import LumitokError

WHOLE = 0.01
"""How far side * scale may be from a whole number, so that 0.3333 passes for a third."""


@dataclass(frozen=True)
class Equivariance:
    """The transforms of one step, the same for all its pictures; the default changes nothing.

    One training step: ``x = shrink(pictures)`` is encoded to z, ``latent(z)`` is decoded, and the result
    is compared with ``picture(x)``. Where there is nothing to do, each returns the very tensor it got.
    """

    input_scale: float = 1.0
    """Prior branch: factor on the side of the pictures before they are encoded."""
    latent_scale: float = 1.0
    """Latent branch: factor on the side of the latent."""
    quarter_turns: int = 0
    """Latent branch: turns by 90 degrees after resizing, from the last axis to the one before it."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How pictures are resized."""

    @property
    def identity(self) -> bool:
        """Whether nothing is changed."""
        return self.input_scale == 1 and self.latent_scale == 1 and self.quarter_turns == 0

    def shrink(self, pictures: Tensor) -> Tensor:
        """Resize pictures (B, 3, H, W) for the encoder, with antialias; not clamped.

        Raises:
            LumitokError: a side times ``input_scale`` is not a whole number.
        """
        return _resize(pictures, self.input_scale, self.interpolation, antialias=True)

    def latent(self, z: Tensor) -> Tensor:
        """Resize latents (B, C, h, w), bilinear without antialias, then turn them.

        Raises:
            LumitokError: a side times ``latent_scale`` is not a whole number.
        """
        return self._turn(_resize(z, self.latent_scale, "bilinear", antialias=False))

    def picture(self, x: Tensor) -> Tensor:
        """Change pictures (B, 3, H, W) as the latent was, resizing with antialias; not clamped.

        Raises:
            LumitokError: a side times ``latent_scale`` is not a whole number.
        """
        return self._turn(_resize(x, self.latent_scale, self.interpolation, antialias=True))

    def _turn(self, x: Tensor) -> Tensor:
        return torch.rot90(x, self.quarter_turns, dims=(-1, -2)) if self.quarter_turns else x


def draw_equivariance(config: EquivarianceConfig, rng: np.random.Generator) -> Equivariance:
    """Draw the transforms of one step: the latent branch, else the prior branch, else the identity."""
    if rng.random() < config.latent_probability:
        scale, turns = rng.choice(config.latent_scales), rng.choice(config.quarter_turns)
        return Equivariance(1.0, float(scale), int(turns), config.interpolation)
    if rng.random() < config.prior_probability:
        return Equivariance(float(rng.choice(config.prior_scales)), 1.0, 0, config.interpolation)
    return Equivariance(interpolation=config.interpolation)


def check_equivariance(
    config: EquivarianceConfig, image_size: int, size_multiple: int, latent_side: int
) -> None:
    """Check that every scale that can be drawn gives sizes that the tokenizer takes.

    Args:
        config: of the stage.
        image_size: side of the training pictures, px.
        size_multiple: px that the sides of the tokenizer's pictures, encoded or decoded, are a multiple of.
        latent_side: side of the latent at ``image_size``.

    Raises:
        LumitokError: one does not fit; it names the nearest that do.
    """
    if config.latent_probability < 1 and config.prior_probability > 0:
        for scale in config.prior_scales:
            _check(f"prior_scales: {scale:g}", scale, image_size, size_multiple, "the picture's side")
    if config.latent_probability > 0:
        # What one latent position decodes to may be less than the decoder's grids can be cut to.
        multiple = max(1, size_multiple * latent_side // image_size)
        for scale in config.latent_scales:
            _check(f"latent_scales: {scale:g}", scale, latent_side, multiple, "the latent's side")


def _check(key: str, scale: float, side: int, multiple: int, what: str) -> None:
    """``side * scale`` must be a multiple of ``multiple``, and not 0."""
    result = side * scale
    count = round(result / multiple)
    if count > 0 and abs(result - count * multiple) <= WHOLE:
        return
    fitting = [k * multiple / side for k in range(1, side // multiple + 1)]
    below = [f"{fit:g}" for fit in fitting if fit < scale][-1:]
    above = [f"{fit:g}" for fit in fitting if fit > scale][:1]
    near = " and ".join(below + above)
    advice = f"the nearest that fit are {near}" if near else "none fits; set its probability to 0"
    raise LumitokError(
        f"equivariance.{key} brings {what} from {side} to {result:g}, but it must be a multiple of "
        f"{multiple}; {advice}"
    )


def _resize(x: Tensor, scale: float, mode: str, *, antialias: bool) -> Tensor:
    """Resize (B, C, h, w) to whole sides, round(side * scale)."""
    if scale == 1:
        return x
    sides = [x.shape[-2] * scale, x.shape[-1] * scale]
    size = [round(side) for side in sides]
    if min(size) < 1 or any(abs(side - whole) > WHOLE for side, whole in zip(sides, size, strict=True)):
        raise LumitokError(
            f"equivariance scales {x.shape[-2]}x{x.shape[-1]} by {scale:g} to {sides[0]:g}x{sides[1]:g}, but "
            "sides are whole numbers from 1; choose scales that divide evenly"
        )
    return F.interpolate(x, size=size, mode=mode, align_corners=False, antialias=antialias)
