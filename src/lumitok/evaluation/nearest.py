"""The nearest images of a reference set in a feature space: what generated images may be copies of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.feature_checks import check_features, check_matrix, extremes

BLOCK = 1024
"""Rows of a block of distances: with 50,000 reference images about 400 MB."""
METHOD = "Euclidean distance in float64"


class Neighbours(NamedTuple):
    """The k nearest reference images of each image, the nearest first."""

    distances: Tensor
    """float64 (n, k)."""
    indices: Tensor
    """int64 (n, k): rows of the reference."""


@torch.no_grad()
def nearest_neighbours(features: Tensor, reference: Tensor, *, k: int = 1, block: int = BLOCK) -> Neighbours:
    """Find the reference images that lie nearest to each image, by Euclidean distance.

    Args:
        features: of the images to look from (n, d), floating point.
        reference: of the images to look among (m, d), on the same device.
        k: how many of them.
        block: images whose distances are held at one time.

    Raises:
        LumitokError: fewer than k reference images, k or block below 1, or features that are not fit.
    """
    if k < 1 or block < 1:
        raise LumitokError(f"got k={k} and block={block}, wanted at least 1 of each")
    why = f"{k} neighbours"
    check_features(reference, "reference", minimum=max(2, k), why=why)
    check_matrix(features, "generated", dim=reference.shape[1])
    extremes(features, "generated")
    # Distances do not change with the origin; near it the squares below lose the fewest digits.
    centre = reference.mean(dim=0, dtype=torch.float64)
    there = reference.double() - centre
    squares = there.square().sum(dim=1)
    distances, indices = [], []
    for start in range(0, len(features), block):
        here = features[start : start + block].double() - centre
        near = (squares - 2 * here @ there.T).topk(k, dim=1, largest=False).indices
        # Measured again by differences: a copy lies at 0, and not at what rounding leaves.
        exact, order = (here[:, None] - there[near]).square().sum(dim=2).sqrt().sort(dim=1)
        distances.append(exact)
        indices.append(near.gather(1, order))
    return Neighbours(torch.cat(distances), torch.cat(indices))
