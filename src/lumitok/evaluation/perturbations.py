"""The changes of SE-CKNNA that leave a picture's meaning alone (VFM-VAE, arXiv 2510.18457, section 4.3).

Four strengths of noise, and one turn by a right angle with a change of scale. What is drawn for a picture
depends on its index alone, and every network is shown the same changed pixels. Draws, noise and turn equal
the official preparation's bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lumitok.errors import LumitokError

SEED = 42
NOISE = (0.05, 0.10, 0.15, 0.20)
"""Standard deviations, of pixels in [0, 1]."""
ROTATIONS = (0, 90, 180, 270)
"""Degrees, counter-clockwise."""
SCALES = (1.0, 0.75, 0.5, 0.25)
TURNED = "rotation and scale"
"""Name of the picture that is turned and scaled; those with noise are named by :func:`noise_name`."""

Scaled = Literal["back", "smaller"]


@dataclass(frozen=True)
class Turn:
    """What is drawn for one picture: degrees counter-clockwise, and the side's factor."""

    degrees: int
    scale: float


@dataclass(frozen=True)
class Group:
    """Changed pictures of one size.

    Attributes:
        pixels: uint8 (b, 3, h, w).
        places: int64 (b,): where in the batch they stood.
    """

    pixels: Tensor
    places: Tensor


def noise_name(sigma: float) -> str:
    """Return what a strength of noise is called: ``noise 0.10``."""
    return f"noise {sigma:.2f}"


def names() -> list[str]:
    """Return the names of all changes, in the order of :func:`perturb`."""
    return [*(noise_name(sigma) for sigma in NOISE), TURNED]


def perturb(
    pixels: Tensor, indices: Sequence[int], *, seed: int = SEED, scaled: Scaled = "back"
) -> dict[str, list[Group]]:
    """Change a batch of pictures in all five ways.

    Args:
        pixels: uint8 (B, 3, H, H), squares.
        indices: number of each picture in the sorted listing; with ``seed`` it is all that is drawn from.
        seed: of the draws; 42 is the paper's.
        scaled: how a picture with another scale is shown. ``back``: shrunk, then brought back to its size,
            so that every network takes it; ``smaller``: as small as it has become. Which of the two the
            paper shows is not stated.

    Returns:
        For each of :func:`names` the changed pictures; only the smaller ones come in more than one group.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[2] != pixels.shape[3]:
        raise LumitokError(
            f"changed are square 8-bit pictures (B, 3, H, H), not {pixels.dtype} of shape "
            f"{tuple(pixels.shape)}; crop them to squares first"
        )
    if len(indices) != len(pixels):
        raise LumitokError(f"there are {len(indices)} indices for {len(pixels)} pictures; give one a picture")
    noisy: dict[str, list[NDArray[np.uint8]]] = {noise_name(sigma): [] for sigma in NOISE}
    turned = []
    for picture, index in zip(pixels.permute(0, 2, 3, 1).cpu().numpy(), indices, strict=True):
        for sigma, changed in zip(NOISE, add_noise(picture, NOISE, index, seed), strict=True):
            noisy[noise_name(sigma)].append(changed)
        turned.append(turn(picture, draw_turn(index, seed), scaled))
    return {name: _grouped(pictures) for name, pictures in [*noisy.items(), (TURNED, turned)]}


def add_noise(
    picture: NDArray[np.uint8], sigmas: Sequence[float], index: int, seed: int = SEED
) -> list[NDArray[np.uint8]]:
    """Add the same normal noise in several strengths.

    Args:
        picture: (H, W, 3), 8 bits.
        sigmas: standard deviations, of pixels in [0, 1].
        index: number of the picture; numpy's legacy generator is seeded with ``seed + index``.
        seed: see ``index``.

    Returns:
        For each sigma a picture, clipped to [0, 255] and truncated (not rounded) to 8 bits.
    """
    noise = np.random.RandomState(seed + index).standard_normal(picture.shape)
    return [np.clip(picture + noise * (sigma * 255), 0, 255).astype(np.uint8) for sigma in sigmas]


def draw_turn(index: int, seed: int = SEED) -> Turn:
    """Draw a picture's rotation, then its scale, from numpy's legacy generator seeded ``seed + index``."""
    rng = np.random.RandomState(seed + index)
    return Turn(degrees=int(rng.choice(ROTATIONS)), scale=float(rng.choice(SCALES)))


def turn(picture: NDArray[np.uint8], by: Turn, scaled: Scaled = "back") -> NDArray[np.uint8]:
    """Turn a picture (H, W, 3) of 8 bits, then scale it (bilinear, shrinking with antialias)."""
    turned = np.ascontiguousarray(np.rot90(picture, by.degrees // 90))
    if by.scale == 1:
        return turned
    x = torch.from_numpy(turned).permute(2, 0, 1)[None].float()
    height, width = x.shape[2:]
    small = (max(1, round(height * by.scale)), max(1, round(width * by.scale)))
    x = F.interpolate(x, size=small, mode="bilinear", align_corners=False, antialias=True)
    if scaled == "back":
        x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
    levels: NDArray[np.uint8] = x[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
    return levels


def _grouped(pictures: Sequence[NDArray[np.uint8]]) -> list[Group]:
    """Put pictures of one size together, large ones first."""
    sides = sorted({picture.shape[0] for picture in pictures}, reverse=True)
    groups = []
    for side in sides:
        places = [i for i, picture in enumerate(pictures) if picture.shape[0] == side]
        stack = torch.from_numpy(np.stack([pictures[i] for i in places]))
        groups.append(Group(stack.permute(0, 3, 1, 2).contiguous(), torch.tensor(places)))
    return groups
