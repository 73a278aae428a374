"""How alike two representations are: CKNNA, and the kernel alignment it localises.

Centered kernel nearest-neighbour alignment (Huh et al., arXiv 2405.07987) asks whether the pictures that
are close in one representation are close in the other. It is computed here as platonic-rep's and
VFM-VAE's code do, in a sparse form that needs no n x n matrix. VFM-VAE's appendix A writes another
formula, with one mutual mask above and below the fraction; that one is near 1 for any two representations,
and the published values are not its.

The value falls as n grows, so it means nothing without the number of pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lumitok.errors import LumitokError

ClampBy = Literal["all", "rows"]

NEIGHBOURS = 10
CLAMP = 0.95
EPSILON = 1e-6
CHUNK = 1024
"""Rows of the kernel that are in memory at a time."""

_QUANTILE_LIMIT = 2**24  # Elements that torch.quantile takes at once.


@dataclass(frozen=True)
class Neighbourhood:
    """The nearest neighbours of all samples in one representation, and how similar they are.

    It is a sparse, in general asymmetric, n x n matrix: the kernel where j is a neighbour of i, zero
    elsewhere. One serves for any number of comparisons.

    Attributes:
        count: n.
        k: neighbours of each sample.
        keys: int64 (n k,), sorted: ``i n + j`` for sample i and its neighbour j.
        values: float64 (n k,), cosine similarities.
        unbiased: whether a sample is barred from being its own neighbour.
    """

    count: int
    k: int
    keys: Tensor
    values: Tensor
    unbiased: bool


def cknna(
    a: Tensor,
    b: Tensor,
    *,
    k: int = NEIGHBOURS,
    clamp: float | None = CLAMP,
    clamp_by: ClampBy = "all",
    eps: float = EPSILON,
    unbiased: bool = True,
    chunk: int = CHUNK,
) -> float:
    """CKNNA of two representations of the same samples.

    With masked kernels K_M = M_K o K and so on, M = M_K o M_L, and HSIC after Song et al. (2012), equation 5:
    ``HSIC(M o K, M o L) / (sqrt(HSIC(K_M, K_M) HSIC(L_M, L_M)) + eps)``. The masks are asymmetric, so
    exchanging ``a`` and ``b`` moves the value by a term of order 1 / n; with k = n - 1 it is unbiased CKA.

    Args:
        a: features (n, d1), a row a sample.
        b: features (n, d2) of the same samples in the same order.
        k: neighbours of each sample, 2 to n - 1.
        clamp: quantile of the absolute values beyond which features are clamped; None or 1: not at all.
        clamp_by: ``all``, VFM-VAE's: one quantile of all values; ``rows``, platonic-rep's default: the mean
            of the rows' quantiles.
        eps: added to the denominator. It keeps the similarity with oneself a little under 1 (0.9987 at
            n = 4000); 0 takes it away.
        unbiased: the estimator; False also lets a sample be its own neighbour, as platonic-rep does.
        chunk: rows of the kernel that are in memory at a time; beyond rounding it changes nothing.

    Returns:
        Near 1: the same neighbours; near 0: unrelated, also a little below.

    Raises:
        LumitokError: counts that differ, fewer than 4 samples, k out of range, NaN or infinity, or
            features that do not tell the samples apart.
    """
    if len(a) != len(b):
        raise LumitokError(
            f"CKNNA compares two representations of the same samples, and there are {len(a):,} rows and "
            f"{len(b):,}; gather both over the same pictures in the same order"
        )
    one, other = (
        neighbourhood(x, k=k, clamp=clamp, clamp_by=clamp_by, unbiased=unbiased, chunk=chunk) for x in (a, b)
    )
    return alignment(one, other, eps=eps)


def neighbourhood(
    features: Tensor,
    *,
    k: int = NEIGHBOURS,
    clamp: float | None = CLAMP,
    clamp_by: ClampBy = "all",
    unbiased: bool = True,
    chunk: int = CHUNK,
) -> Neighbourhood:
    """Find the ``k`` nearest neighbours of every sample by cosine similarity; see :func:`cknna`."""
    count = len(features)
    most = count - 1 if unbiased else count
    if count < 4:
        raise LumitokError(f"CKNNA needs at least 4 samples, got {count}; evaluate more pictures")
    if not 2 <= k <= most:
        raise LumitokError(
            f"CKNNA of {count:,} samples needs k between 2 and {most:,}, got {k}; evaluate more pictures or "
            "take fewer neighbours"
        )
    x = normalized(features, clamp=clamp, clamp_by=clamp_by)
    _check_distinct(x)
    keys = torch.empty(count, k, dtype=torch.int64, device=x.device)
    values = torch.empty(count, k, dtype=_wide(x), device=x.device)
    for start in range(0, count, chunk):
        rows = torch.arange(start, min(start + chunk, count), device=x.device)
        similarity = x[start : start + chunk] @ x.T
        if unbiased:
            similarity[rows - start, rows] = -math.inf
        found, columns = similarity.topk(k, dim=1, sorted=False)
        columns, order = columns.sort(dim=1)
        keys[rows] = rows[:, None] * count + columns
        values[rows] = found.gather(1, order).to(values.dtype)
    return Neighbourhood(count, k, keys.flatten(), values.flatten(), unbiased)


def alignment(a: Neighbourhood, b: Neighbourhood, *, eps: float = EPSILON) -> float:
    """CKNNA of two representations whose neighbours are known; see :func:`cknna`."""
    if (a.count, a.k, a.unbiased) != (b.count, b.k, b.unbiased):
        raise LumitokError(
            f"neighbourhoods of {a.count:,} samples with k {a.k} and of {b.count:,} with k {b.k} cannot be "
            "compared; make both alike"
        )
    place, common = _find(a.keys, b.keys)
    keys, ours, theirs = a.keys[common], a.values[common], b.values[place[common]]
    across = _sparse_hsic(a.count, keys, ours, theirs, a.unbiased)
    within = [_sparse_hsic(x.count, x.keys, x.values, x.values, x.unbiased) for x in (a, b)]
    if min(within) <= 0:
        raise LumitokError(
            f"CKNNA is not defined here: a representation's dependence on itself came out as "
            f"{min(within):.2e}, where it must be above 0; take more samples or more neighbours than {a.k}"
        )
    return across / (math.sqrt(within[0] * within[1]) + eps)


def normalized(features: Tensor, *, clamp: float | None = CLAMP, clamp_by: ClampBy = "all") -> Tensor:
    """Clamp outliers and bring every row to length 1, as CKNNA is computed on.

    Args:
        features: (n, d), finite; float64 stays so, anything else becomes float32.
        clamp: see :func:`cknna`.
        clamp_by: see :func:`cknna`.
    """
    if features.ndim != 2:
        raise LumitokError(f"features must be (samples, channels), not of shape {tuple(features.shape)}")
    x = features.detach()
    x = x if x.dtype == torch.float64 else x.float()
    if not bool(torch.isfinite(x).all()):
        wrong = int((~torch.isfinite(x)).any(dim=1).sum())
        raise LumitokError(
            f"the features of {wrong:,} of {len(x):,} samples are NaN or infinite; the network that made "
            "them has diverged, or its precision is too low"
        )
    if clamp is not None and not 0 < clamp <= 1:
        raise LumitokError(f"features are clamped at a quantile above 0 and up to 1, not at {clamp}")
    if clamp is not None and clamp < 1:
        limit = _quantile_of_all(x, clamp) if clamp_by == "all" else _quantile_of_rows(x, clamp)
        x = x.clamp(-limit, limit)
    return F.normalize(x, dim=1)


def unbiased_hsic(k: Tensor, ell: Tensor) -> float:
    """Hilbert-Schmidt independence criterion, unbiased (Song et al. 2012, equation 5).

    Args:
        k: (n, n), n of at least 4; its diagonal does not count. It need not be symmetric.
        ell: likewise.
    """
    n = len(k)
    if n < 4 or k.shape != ell.shape or k.shape != (n, n):
        raise LumitokError(
            f"HSIC needs two square matrices of one size, at least 4 x 4; got {tuple(k.shape)} and "
            f"{tuple(ell.shape)}"
        )
    off = ~torch.eye(n, dtype=torch.bool, device=k.device)
    keys = off.flatten().nonzero().flatten()
    return _sparse_hsic(n, keys, k[off].to(_wide(k)), ell[off].to(_wide(ell)), unbiased=True)


def unbiased_cka(a: Tensor, b: Tensor, *, eps: float = EPSILON) -> float:
    """Linear kernel alignment of features (n, d1) and (n, d2), as they are: CKNNA without neighbours."""
    k, ell = a @ a.T, b @ b.T
    return unbiased_hsic(k, ell) / (math.sqrt(unbiased_hsic(k, k) * unbiased_hsic(ell, ell)) + eps)


def _sparse_hsic(n: int, keys: Tensor, k: Tensor, ell: Tensor, unbiased: bool) -> float:
    """HSIC of two n x n matrices with the same non-zero places: sorted keys ``i n + j``, values of each."""
    rows, columns = keys // n, keys % n
    place, mirrored = _find(columns * n + rows, keys)
    # sum(K o L^T): the masks are asymmetric, so each entry needs its mirror image's place.
    trace = float((k[mirrored] * ell[place[mirrored]]).sum())
    # sum(K L) without the product: the column sums of one meet the row sums of the other.
    forth = float(_sums(n, columns, k) @ _sums(n, rows, ell))
    total = float(k.sum() * ell.sum())
    if unbiased:
        return (trace + total / ((n - 1) * (n - 2)) - 2 * forth / (n - 2)) / (n * (n - 3))
    back = float(_sums(n, columns, ell) @ _sums(n, rows, k))
    return trace - (forth + back) / n + total / n**2


def _find(wanted: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the place of each wanted key among the sorted ``keys``, and whether it is one of them."""
    if not len(keys):
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return place, keys[place] == wanted


def _sums(n: int, places: Tensor, values: Tensor) -> Tensor:
    return torch.zeros(n, dtype=values.dtype, device=values.device).index_add(0, places, values)


def _quantile_of_all(x: Tensor, q: float) -> Tensor:
    rank = min(int(q * x.numel()), x.numel() - 1)
    return x.abs().flatten().kthvalue(rank + 1).values


def _quantile_of_rows(x: Tensor, q: float) -> Tensor:
    rows = max(1, _QUANTILE_LIMIT // x.shape[1])
    return torch.cat([part.abs().quantile(q, dim=1) for part in x.split(rows)]).mean()


def _check_distinct(x: Tensor) -> None:
    """Refuse rows so alike that rounding, not the pictures, would choose their neighbours."""
    squared = (x - x.mean(dim=0)).square().sum(dim=1).max()
    if float(squared) < 16 * torch.finfo(x.dtype).eps:
        kind = "all zero" if not bool(x.any()) else "alike for all samples"
        raise LumitokError(
            f"the features are {kind} (after clamping and scaling to length 1), so they have no neighbours "
            "to compare; is the network trained, and are the pictures not all the same?"
        )


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64  # It has no float64.
