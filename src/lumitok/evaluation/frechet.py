"""Fréchet distance between two sets of features, each taken as a Gaussian (Heusel et al. 2017, Eq. 6).

``|mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))``, called FID where the features are Inception's.
Everything is float64: a float32 covariance moves the distance as much as one tokenizer differs from the
next.

The matrix root is never formed. With any roots ``S = R^T R`` of the two covariances, the eigenvalues of
``S1 S2`` are the squared singular values of ``R1 R2^T``, so the last trace is that product's nuclear
norm. R is the transposed Cholesky factor; for a singular covariance it is made from the eigenvectors, and
for fewer images than dimensions it is the centred features themselves, over sqrt(n - 1).

The distance of finite sets is too large by about 1/n: compare scores of equal counts only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.feature_checks import check_matrix, extremes, raise_constant

METHOD = "Gaussians with unbiased covariance, float64, no matrix root"
"""The convention, for :attr:`lumitok.evaluation.protocol.Protocol.method`."""

FOLDED_ROWS = 1024
"""The fewest rows that are folded into a covariance at a time: smaller products waste the processor."""

ROUNDING = 1e-5
"""How far, relative to the largest variance, stored statistics may miss symmetry and definiteness. Files
hold float32 too, whose rounding gives a covariance of 2048 dimensions eigenvalues of about -3e-6."""

ACCURACY = 1e-7
"""Relative error up to which singular values are taken from a Gram matrix, five times faster."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of a set of features, float64 on the CPU.

    Either ``covariance`` or ``factor`` is given, whichever is smaller.

    Attributes:
        mean: (d,).
        covariance: unbiased, (d, d).
        factor: the features less their mean, (n, d); for sets of no more images than dimensions.
        count: images they were taken from; None where a file of statistics does not say.
    """

    mean: Tensor
    covariance: Tensor | None
    factor: Tensor | None
    count: int | None

    @property
    def dim(self) -> int:
        """Dimensions d of the features."""
        return len(self.mean)

    @staticmethod
    def from_features(features: Tensor) -> Statistics:
        """Take the statistics of features (n, d) that are all at hand.

        Raises:
            LumitokError: the features are not fit, see :class:`StatisticsGatherer`.
        """
        check_matrix(features, "given")
        gatherer = StatisticsGatherer(features.shape[1])
        gatherer.update(features)
        return gatherer.result()

    @staticmethod
    def from_arrays(mean: Any, covariance: Any, *, count: int | None = None) -> Statistics:
        """Take over stored statistics, such as ``mu`` and ``sigma`` of ADM's reference files.

        Args:
            mean: array or tensor (d,).
            covariance: array or tensor (d, d).
            count: images they were taken from, where it is known.

        Raises:
            LumitokError: the shapes do not belong together, a value is NaN or infinite, or the matrix
                is no covariance: not symmetric, or negative definite in some direction.
        """
        mu = torch.as_tensor(mean).to("cpu", torch.float64, copy=True)
        sigma = torch.as_tensor(covariance).to("cpu", torch.float64, copy=True)
        if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
            raise LumitokError(
                f"the statistics are a mean of shape {tuple(mu.shape)} and a covariance of shape "
                f"{tuple(sigma.shape)}, wanted (d,) and (d, d); look at what the file holds"
            )
        if not bool(torch.isfinite(mu).all() and torch.isfinite(sigma).all()):
            raise LumitokError(
                "the statistics hold NaN or infinity, wanted finite numbers; make them again from the images"
            )
        _check_covariance(sigma)
        return Statistics(mu, (sigma + sigma.T) / 2, None, count)

    def variance(self) -> float:
        """Trace of the covariance: the variance of all dimensions together."""
        if self.covariance is not None:
            return float(self.covariance.trace())
        assert self.factor is not None
        return float(self.factor.square().sum()) / (len(self.factor) - 1)

    def root(self) -> Tensor:
        """Return an R (r, d) with ``R^T R`` the covariance, r its rank or more."""
        if self.covariance is None:
            assert self.factor is not None
            return self.factor.div((len(self.factor) - 1) ** 0.5)
        lower: Tensor
        lower, failed = torch.linalg.cholesky_ex(self.covariance)
        pivots = lower.diagonal()
        negligible = self.dim * torch.finfo(torch.float64).eps
        if not failed and float(pivots.min()) ** 2 > negligible * float(pivots.max()) ** 2:
            return lower.T
        values, vectors = torch.linalg.eigh(self.covariance)
        # What lies below this is rounding, and its root, 1e-8 a dimension, would add up.
        kept = values > negligible * values[-1]
        root: Tensor = values[kept].sqrt()[:, None] * vectors[:, kept].T
        return root


class StatisticsGatherer:
    """Gathers the statistics of features batch by batch; parts from several processes merge.

    Rows are kept until there are more than ``max(d, FOLDED_ROWS)`` of them, then folded into a mean and
    a scatter matrix, so memory stays flat. Each fold takes the same number of rows whatever the batches
    were, centres them first and merges by Chan et al. (1979): the split into batches changes no digit,
    merging changes rounding only, and a large common offset costs no digits.

    Args:
        dim: dimensions d of the features.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise LumitokError(f"features have at least 1 dimension, got {dim}; give the extractor's width")
        self.dim = dim
        self.count = 0
        self._rows: list[Tensor] = []  # float64 (., d), not yet folded
        self._folded = _Moments(0, torch.zeros(dim, dtype=torch.float64), None)
        self._low = torch.full((dim,), torch.inf, dtype=torch.float64)
        self._high = -self._low

    def update(self, features: Tensor) -> None:
        """Add a batch of features (B, d), floating point on any device; B may be 0.

        Raises:
            LumitokError: another d, or NaN or infinity among the values. Nothing was added.
        """
        check_matrix(features, "given", dim=self.dim)
        if not len(features):
            return
        low, high = extremes(features, "given")
        self._low = torch.minimum(self._low, low.to("cpu", torch.float64))
        self._high = torch.maximum(self._high, high.to("cpu", torch.float64))
        self._keep(features.detach())

    def merge(self, other: StatisticsGatherer) -> None:
        """Add everything that ``other`` has seen; it is left as it was.

        Raises:
            LumitokError: ``other`` has another d.
        """
        if other.dim != self.dim:
            raise LumitokError(
                f"cannot merge statistics of {other.dim} dimensions into those of {self.dim}; features can "
                "only be compared where one extractor made both"
            )
        self._low = torch.minimum(self._low, other._low)
        self._high = torch.maximum(self._high, other._high)
        self._folded = self._folded.merged(other._folded)
        self.count += other._folded.count
        for rows in list(other._rows):
            self._keep(rows)

    def result(self) -> Statistics:
        """Return the statistics of all features so far; more may be added afterwards.

        Raises:
            LumitokError: fewer than 2 images were seen, or all their features are equal.
        """
        if self.count < 2:
            raise LumitokError(f"a covariance needs at least 2 images, got {self.count}; give more images")
        if torch.equal(self._low, self._high):
            raise_constant("given", self.count)
        if self.count <= self.dim:
            rows = torch.cat(self._rows)
            mean = rows.mean(dim=0)
            return Statistics(mean, None, rows - mean, self.count)
        total = self._folded.merged(_Moments.of(self._rows)) if self._rows else self._folded
        assert total.scatter is not None
        return Statistics(total.mean, total.scatter / (self.count - 1), None, self.count)

    def _keep(self, rows: Tensor) -> None:
        """Keep copies of rows, folding each time the fixed number of them has come together."""
        wanted = max(self.dim, FOLDED_ROWS)
        while len(rows):
            room = wanted - sum(map(len, self._rows))
            if not room:
                self._folded = self._folded.merged(_Moments.of(self._rows))
                self._rows, room = [], wanted
            part = rows[:room].to("cpu", torch.float64, copy=True)
            self._rows.append(part)
            self.count += len(part)
            rows = rows[room:]


@dataclass(frozen=True, eq=False)
class _Moments:
    """Count, mean (d,) and scatter (d, d): the sum of outer products of rows less the mean."""

    count: int
    mean: Tensor
    scatter: Tensor | None

    @classmethod
    def of(cls, parts: list[Tensor]) -> _Moments:
        rows = torch.cat(parts)
        mean = rows.mean(dim=0)
        rows -= mean
        return cls(len(rows), mean, rows.T @ rows)

    def merged(self, other: _Moments) -> _Moments:
        """Chan, Golub and LeVeque (1979), Eq. 2.1, for a covariance."""
        if self.scatter is None or other.scatter is None:
            return other if self.scatter is None else self
        count = self.count + other.count
        offset = other.mean - self.mean
        between = self.count * (other.count / count)
        scatter = (self.scatter + other.scatter).addr_(offset, offset, alpha=between)
        return _Moments(count, self.mean + offset * (other.count / count), scatter)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Fréchet distance of two Gaussians; 0 for equal ones, symmetric, in squared units of the features.

    Either may be low-rank, stored or gathered.

    Raises:
        LumitokError: the two have not the same number of dimensions.
    """
    if a.dim != b.dim:
        raise LumitokError(
            f"got statistics of {a.dim} and of {b.dim} dimensions; features can only be compared where one "
            "extractor made both"
        )
    overlap = _nuclear_norm(a.root() @ b.root().T)
    distance = float((a.mean - b.mean).square().sum()) + a.variance() + b.variance() - 2.0 * overlap
    return max(distance, 0.0)  # Rounding alone takes it below.


def _nuclear_norm(product: Tensor) -> float:
    """Sum of the singular values of a matrix (r1, r2)."""
    if not product.numel():
        return 0.0
    wide = product if product.shape[0] <= product.shape[1] else product.T
    squares = torch.linalg.eigvalsh(wide @ wide.T).clamp_min_(0.0)
    # Rounding moves each square by about this much, and its root by that over the root: small singular
    # values suffer. The sum of all that bounds the error; where it is too much, the slow way is taken.
    moved = torch.finfo(torch.float64).eps * len(squares) ** 0.5 * squares[-1]
    # What it may have made of nothing is nothing: centred features always have one such direction.
    values = squares.where(squares > moved, 0.0).sqrt()
    bound = (moved / squares.clamp_min(float(moved)).sqrt()).nansum()
    if float(bound) <= ACCURACY * float(values.sum()):
        return float(values.sum())
    return float(torch.linalg.svdvals(product).sum())


def _check_covariance(sigma: Tensor) -> None:
    """Refuse a finite square matrix (d, d) that is no covariance, but for rounding."""
    largest = float(sigma.diagonal().max())
    tolerance = ROUNDING * max(largest, 0.0)
    skew = float((sigma - sigma.T).abs().max())
    if skew > tolerance:
        raise LumitokError(
            f"the covariance is not symmetric, its halves differ by up to {skew:.3g} where the largest "
            f"variance is {largest:.3g}; look whether it is another array of the file"
        )
    if not bool(sigma.any()):  # Every image alike: a point, whose distances are well defined.
        return
    lifted = (sigma + sigma.T) / 2
    lifted.diagonal().add_(tolerance)
    if bool(torch.linalg.cholesky_ex(lifted).info):
        least = float(torch.linalg.eigvalsh(sigma).min())
        raise LumitokError(
            f"the covariance has a negative eigenvalue, {least:.3g}, where the largest variance is "
            f"{largest:.3g}: no features have it; make the statistics again from the images, in float64"
        )
