"""Kernel distance, called KID where the features are Inception's (Binkowski et al. 2018).

The unbiased estimate of the squared maximum mean discrepancy under the kernel ``(x.y / d + 1)^3``. Unlike
the Fréchet distance its expectation does not depend on the number of images; for sets that are alike it
falls on either side of 0.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.feature_checks import check_features

SUBSETS = 100
"""Subsets that are drawn, as all the published numbers have it."""

SUBSET_SIZE = 1000
"""Images of each set in one subset."""


class KernelDistance(NamedTuple):
    """Mean over the subsets, which may be negative, and their standard deviation (population)."""

    mean: float
    std: float


def method(*, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE) -> str:
    """Return the convention in one line; papers also print the number times 1000."""
    return f"unbiased MMD^2, kernel (x.y/d + 1)^3, {subsets} subsets of {subset_size:,}, not scaled"


def kernel_distance(
    features: Tensor,
    reference: Tensor,
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int,
) -> KernelDistance:
    """Kernel distance of two sets of features, over random subsets without repetition within each.

    The subsets are those torch-fidelity draws with the same seed (2020 is its default) and the sets in
    this order; here everything after the draw is float64.

    Args:
        features: of the judged images (n, d).
        reference: of the images they are held against (m, d).
        subsets: how many are drawn.
        subset_size: images of each set in one, at least 2 and at most n and m.
        seed: of the draw, 0 to 2^32 - 1.

    Raises:
        LumitokError: there are fewer images than ``subset_size``, or the features are not fit.
    """
    if subsets < 1 or subset_size < 2:
        raise LumitokError(
            f"got {subsets} subsets of {subset_size} images, wanted at least 1 subset of at least 2; "
            f"papers use {SUBSETS} of {SUBSET_SIZE}"
        )
    check_features(features, "judged")
    check_features(reference, "reference", dim=features.shape[1])
    most = min(len(features), len(reference))
    for name, found in (("judged", len(features)), ("reference", len(reference))):
        if found < subset_size:
            raise LumitokError(
                f"the {name} set has {found} images, fewer than the {subset_size} of one subset; give more "
                f"images, or set the subset size to at most {most} and report it"
            )
    if not 0 <= seed < 2**32:
        raise LumitokError(f"got the seed {seed}, wanted 0 to 2^32 - 1; choose a smaller one")
    draw = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        x, y = (
            rows[torch.from_numpy(draw.choice(len(rows), subset_size, replace=False)).to(rows.device)]
            for rows in (features, reference)
        )
        values.append(_mmd2(x.detach().to("cpu", torch.float64), y.detach().to("cpu", torch.float64)))
    return KernelDistance(statistics.fmean(values), statistics.pstdev(values))


def _mmd2(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD^2 of two samples (m, d) of one size: Eq. 4 of Binkowski et al."""
    m = len(x)
    within = sum(_kernel(z, z).fill_diagonal_(0.0).sum() for z in (x, y)) / (m * (m - 1))
    return float(within - 2.0 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """``(x.y / d + 1)^3`` of every row of x (m, d) with every row of y (m, d): (m, m)."""
    products = (x @ y.T).div_(x.shape[1]).add_(1.0)
    return products.square().mul_(products)
