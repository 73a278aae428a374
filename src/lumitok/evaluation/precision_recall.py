"""Improved precision and recall of generated images (Kynkaanniemi et al. 2019).

Every image of a set gets a ball that reaches to its k-th nearest neighbour in that set. Precision is the
share of generated images inside some reference image's ball, recall the share of reference images inside
some generated image's ball.

Distances are taken block by block, so memory does not grow with the product of the counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.feature_checks import check_features
from lumitok.nn.precision import exact_float32

K = 3
"""Neighbours that set a radius, as ADM's evaluator and torch-fidelity have it."""

BLOCK = 2048
"""Rows of a block of distances: about 60 MB for all that one block needs."""

NEAR = 1e-3
"""Pairs whose squared distance is below this share of their squared lengths are measured again in float64:
``|a|^2 + |b|^2 - 2 a.b`` leaves them three digits or fewer of float32."""

SAME = 2e-14
"""Below this share two images are the same: they lie no further apart than float32 rounds features."""


class PrecisionRecall(NamedTuple):
    """Shares of the generated and of the reference images, 0 to 1."""

    precision: float
    recall: float


def method(*, k: int = K, half: bool = False) -> str:
    """Return the convention in one line."""
    return f"k = {k} without the image itself, <=, distances in {'float16' if half else 'float32'}"


@torch.no_grad()
def precision_recall(
    reference: Tensor, generated: Tensor, *, k: int = K, block: int = BLOCK, half: bool = False
) -> PrecisionRecall:
    """Precision and recall of generated images against reference images.

    Both change with the counts: ADM's protocol is 10,000 reference images and 50,000 generated ones.

    Args:
        reference: features of the real images (n, d), floating point.
        generated: features of the generated images (m, d), on the same device.
        k: neighbours that set a radius, the image itself not counted.
        block: rows and columns of the distances that are held at one time.
        half: round distances to float16 as ADM's evaluator does; a block that overflows is taken in
            float32. For parity with its published numbers, which differ by about 0.002.

    Raises:
        LumitokError: fewer than k + 1 images in a set, k or block below 1, or features that are not fit.
    """
    if k < 1 or block < 1:
        raise LumitokError(
            f"got k={k} and block={block}, wanted at least 1 of each; published numbers use k={K}"
        )
    why = f"k={k} neighbours besides each image"
    check_features(reference, "reference", minimum=k + 1, why=why)
    check_features(generated, "generated", minimum=k + 1, why=why, dim=reference.shape[1])
    kind = torch.promote_types(torch.promote_types(reference.dtype, generated.dtype), torch.float32)
    distances = _Distances(reference.mean(dim=0, dtype=kind), half)
    with exact_float32():
        return _count(reference, generated, k, block, distances)


def _count(
    reference: Tensor, generated: Tensor, k: int, block: int, distances: _Distances
) -> PrecisionRecall:
    reference_radii = _squared_radii(reference, k, block, distances)
    generated_radii = _squared_radii(generated, k, block, distances)
    covered = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    good = torch.zeros(len(generated), dtype=torch.bool, device=reference.device)
    for rows in _slices(len(reference), block):
        for columns in _slices(len(generated), block):
            found = distances(reference[rows], generated[columns])
            good[columns] |= (found <= reference_radii[rows, None]).any(dim=0)
            covered[rows] |= (found <= generated_radii[columns]).any(dim=1)
    return PrecisionRecall(float(good.double().mean()), float(covered.double().mean()))


def _squared_radii(features: Tensor, k: int, block: int, distances: _Distances) -> Tensor:
    """Squared distance of each row (n, d) to its k-th nearest other row: (n,) float32."""
    nearest = torch.full((len(features), k), torch.inf, device=features.device)
    for rows in _slices(len(features), block):
        for columns in _slices(len(features), block, start=rows.start):
            same = rows == columns
            found = distances(features[rows], features[columns], same=same)
            nearest[rows] = _smallest(nearest[rows], found)
            if not same:  # The block across the diagonal holds the same distances.
                nearest[columns] = _smallest(nearest[columns], found.T)
    return nearest.amax(dim=1)


def _smallest(nearest: Tensor, found: Tensor) -> Tensor:
    """Return the k smallest of each row of ``nearest`` (b, k) and ``found`` (b, c): (b, k)."""
    k = nearest.shape[1]
    return torch.cat([nearest, found], dim=1).topk(k, dim=1, largest=False).values


class _Distances:
    """Squared Euclidean distances between the rows of two blocks.

    Args:
        centre: (d,) what is taken off all features first: distances stay, and a large common offset would
            cost digits.
        half: round as ADM's evaluator does.
    """

    def __init__(self, centre: Tensor, half: bool) -> None:
        self.centre = centre
        self.half = half

    def __call__(self, a: Tensor, b: Tensor, *, same: bool = False) -> Tensor:
        """Return float32 (rows of a, rows of b) for (., d) each.

        ``same`` says that both are the same rows of a set: the distance from a row to itself is then
        infinite, so that no row is its own neighbour. A duplicate of it, at distance 0, is one.
        """
        found = self._rounded(a, b) if self.half else None
        if found is not None and bool(torch.isfinite(found).all()):
            return found.fill_diagonal_(torch.inf) if same else found
        return self._accurate(a, b, same)

    def _accurate(self, a: Tensor, b: Tensor, same: bool) -> Tensor:
        a, b = ((x.to(self.centre.dtype) - self.centre).float() for x in (a, b))
        found, lengths = _by_products(a, b)
        if same:
            found.fill_diagonal_(torch.inf)
        near = found < NEAR * lengths
        rows, columns = near.any(dim=1).nonzero().flatten(), near.any(dim=0).nonzero().flatten()
        if len(rows):
            part = (rows[:, None], columns)
            again, lengths = _by_products(a[rows].double(), b[columns].double())
            again[again < SAME * lengths] = 0.0
            found[part] = torch.where(near[part], again.float(), found[part])
        return found

    @staticmethod
    def _rounded(a: Tensor, b: Tensor) -> Tensor:
        """Round features, their squared lengths, their products and each sum to float16."""
        a, b = a.half(), b.half()
        products = (a.float() @ b.float().T).half()  # A float16 product adds up in float32, too.
        left, right = (x.square().sum(dim=1) for x in (a, b))
        return (left[:, None] - 2.0 * products + right).clamp_min_(0.0).float()


def _by_products(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``|a|^2 + |b|^2 - 2 a.b`` of all rows, not below 0, and ``|a|^2 + |b|^2``."""
    lengths = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    return torch.addmm(lengths, a, b.T, alpha=-2.0).clamp_min_(0.0), lengths


def _slices(count: int, block: int, *, start: int = 0) -> Iterator[slice]:
    return (slice(first, min(first + block, count)) for first in range(start, count, block))
