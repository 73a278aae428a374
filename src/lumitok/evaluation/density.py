"""How evenly latents fill their space: density CV, Gini coefficient and normalised entropy.

LightningDiT's analysis (arXiv 2501.01423, ``tools/latent_vis.py``), which AlignTok's Table 16 repeats: one
position of each picture's latent -> standardised channels -> t-SNE in two dimensions -> kernel density at
the points themselves -> three figures. The map and the density come from scikit-learn and scipy, the
optional extra ``eval``; the figures need neither.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lumitok.errors import LumitokError, some

PERPLEXITY = 30
"""Of the t-SNE; it needs more points than this."""

ITERATIONS = 1000
SEED = 42
"""Of the t-SNE, whatever the seed of the positions: the published figures have it."""

PROTOCOL = (
    f"one random position a picture, channels standardised; t-SNE (scikit-learn, 2 dimensions, perplexity "
    f"{PERPLEXITY}, {ITERATIONS} iterations, seed {SEED}); Gaussian kernel density (scipy, Scott) at "
    "the points; no mirrored copies"
)
"""How the three figures come about, in words."""

_ENTROPY_EPS = 1e-10  # Under the logarithm, as in the published code.

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Uniformity:
    """Three figures of one sample of densities; an even density has 0, 0 and 1."""

    cv: float
    """Coefficient of variation: population standard deviation over mean; 0 to sqrt(n - 1)."""
    gini: float
    """Gini coefficient; 0 to (n - 1) / n."""
    entropy: float
    """Entropy of the densities taken as shares, over log2 n; 0 to 1."""


@dataclass(frozen=True)
class DensityMap:
    """Where the latents came to lie and how dense it is there.

    Attributes:
        points: (n, 2) float64, t-SNE's coordinates.
        density: (n,) float64, positive.
        uniformity: the figures of ``density``.
    """

    points: Array
    density: Array
    uniformity: Uniformity


def uniformity(density: npt.ArrayLike) -> Uniformity:
    """Return the three figures of densities at n points.

    With mean m, standard deviation s, shares p = density / sum and ranks i = 1..n of the sorted density d:
    CV = s / m; Gini = sum((2i - n - 1) d_i) / (n sum d); entropy = -sum(p log2(p + 1e-10)) / log2 n.

    Args:
        density: (n,) values from 0 on, n at least 2.

    Raises:
        LumitokError: fewer than two values, a value that is negative, NaN or infinite, or all are zero.
    """
    values = np.sort(np.asarray(density, dtype=np.float64).ravel())
    count = len(values)
    if count < 2:
        raise LumitokError(f"the uniformity of a density needs at least 2 points, got {count}")
    if not np.isfinite(values).all() or values[0] < 0 or values[-1] == 0:
        raise LumitokError(
            "densities are finite and not negative, and one at least is positive; these are not"
        )
    # Densities may be tiny numbers; as shares of the largest, sums and squares neither under- nor overflow.
    values = values / values[-1]
    total = values.sum()
    shares = values / total
    ranks = 2 * np.arange(1, count + 1) - count - 1
    return Uniformity(
        cv=float(values.std() / values.mean()),
        gini=float((ranks * values).sum() / (count * total)),
        entropy=float(-(shares * np.log2(shares + _ENTROPY_EPS)).sum() / math.log2(count)),
    )


def kernel_density(points: npt.ArrayLike) -> Array:
    """Return the Gaussian kernel density (Scott's bandwidth) of points, at each of them.

    Args:
        points: (n, d), n above d.

    Returns:
        (n,) float64.

    Raises:
        LumitokError: too few points, a value that is not finite, points all on one line, or no scipy.
    """
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2 or len(values) <= values.shape[1] or not np.isfinite(values).all():
        raise LumitokError(
            f"a kernel density needs finite points (n, d) with n above d, got the shape {values.shape}"
        )
    kde = _optional("scipy.stats").gaussian_kde
    try:
        found: Array = kde(values.T)(values.T)
    except np.linalg.LinAlgError:
        raise LumitokError(
            "the points all lie on one line, so they have no density in the plane; the latents are alike"
        ) from None
    return found


def density_map(features: Tensor) -> DensityMap:
    """Lay features out in the plane and measure how evenly they fill it.

    Args:
        features: (n, C), one position of each picture's latent, see :func:`one_position`; any scale,
            since each channel is standardised here. n above :data:`PERPLEXITY`.

    Raises:
        LumitokError: too few of them, NaN or infinite values, a channel that does not vary, or scipy or
            scikit-learn are missing.
    """
    require_libraries()
    values = _standardised(features)
    tsne = _optional("sklearn.manifold").TSNE(
        n_components=2, perplexity=PERPLEXITY, max_iter=ITERATIONS, random_state=SEED
    )
    points = np.asarray(tsne.fit_transform(values), dtype=np.float64)
    density = kernel_density(points)
    return DensityMap(points, density, uniformity(density))


def _standardised(features: Tensor) -> npt.NDArray[np.float32]:
    """Channels of mean 0 and standard deviation 1, as t-SNE takes them."""
    if features.ndim != 2 or not features.shape[1]:
        raise LumitokError(f"expected features (n, C), got the shape {tuple(features.shape)}")
    if len(features) <= PERPLEXITY:
        raise LumitokError(
            f"the density of latents needs more than {PERPLEXITY} pictures (t-SNE's perplexity), got "
            f"{len(features)}; give more pictures or leave the density out"
        )
    values = features.detach().double().cpu()
    if not bool(torch.isfinite(values).all()):
        raise LumitokError("the latents hold NaN or infinite values; the model that made them has diverged")
    std, mean = torch.std_mean(values, dim=0, correction=0)
    # A constant that float32 cannot hold exactly leaves rounding behind; it is no variation.
    dead = (std <= 1e-7 * mean.abs()).nonzero().flatten().tolist()
    if dead:
        raise LumitokError(
            f"channel {some([str(channel) for channel in dead], 8)} of the latents does not vary, so it "
            "cannot be standardised; the tokenizer does not use it: leave the density out"
        )
    standard: npt.NDArray[np.float32] = ((values - mean) / std).float().numpy()
    return standard


def one_position(latents: Tensor, draws: Sequence[np.random.Generator]) -> Tensor:
    """Take one random position of each picture's latent.

    Args:
        latents: (B, C, h, w).
        draws: one generator a picture; its draw is the same in whatever batch the picture stands.

    Returns:
        (B, C).

    Raises:
        LumitokError: not one generator a picture.
    """
    if latents.ndim != 4 or len(draws) != len(latents):
        raise LumitokError(
            f"expected latents (B, C, h, w) and B generators, got {tuple(latents.shape)} and {len(draws)}"
        )
    flat = latents.flatten(2)
    chosen = torch.tensor([int(draw.integers(flat.shape[2])) for draw in draws], device=latents.device)
    return flat.gather(2, chosen.view(-1, 1, 1).expand(-1, flat.shape[1], 1)).squeeze(2)


def require_libraries() -> None:
    """Raise a LumitokError where scipy or scikit-learn are missing."""
    for name in ("scipy.stats", "sklearn.manifold"):
        _optional(name)


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(name.split(".")[0], "scipy")
        raise LumitokError(
            f"the density of latents needs {package} ({error}); install it: pip install 'lumitok[eval]', or "
            "leave the density out"
        ) from None
