"""CKNNA: against the dense definition, its known properties, and what it refuses."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.cknna import alignment, cknna, neighbourhood, normalized, unbiased_cka, unbiased_hsic


def features(count: int = 60, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two related representations of other widths, float64."""
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(count, 7, generator=draw, dtype=torch.float64)
    mixed = a @ torch.randn(7, 5, generator=draw, dtype=torch.float64)
    return a, mixed + torch.randn(count, 5, generator=draw, dtype=torch.float64)


def dense(a: Tensor, b: Tensor, k: int, eps: float, unbiased: bool) -> float:
    """The definition, with n x n matrices and their product."""
    x, y = normalized(a), normalized(b)
    n = len(x)
    kernels = [x @ x.T, y @ y.T]
    masks = []
    for kernel in kernels:
        seen = kernel.clone().fill_diagonal_(-math.inf) if unbiased else kernel
        masks.append(torch.zeros_like(kernel).scatter_(1, seen.topk(k, dim=1).indices, 1.0))

    def hsic(one: Tensor, other: Tensor) -> float:
        if not unbiased:
            centre = torch.eye(n, dtype=one.dtype) - 1 / n
            return float((one @ centre @ other @ centre).trace())
        one, other = one.clone().fill_diagonal_(0), other.clone().fill_diagonal_(0)
        first = (one * other.T).sum()
        second = one.sum() * other.sum() / ((n - 1) * (n - 2))
        third = 2 * (one @ other).sum() / (n - 2)
        return float((first + second - third) / (n * (n - 3)))

    both = masks[0] * masks[1]
    (kk, ll), (mk, ml) = kernels, masks
    return hsic(both * kk, both * ll) / (math.sqrt(hsic(mk * kk, mk * kk) * hsic(ml * ll, ml * ll)) + eps)


@pytest.mark.parametrize(
    ("k", "unbiased", "chunk"), [*product([2, 10, 59], [True, False], [7]), (10, True, 1000)]
)
def test_the_sparse_form_equals_the_dense_one(k: int, unbiased: bool, chunk: int) -> None:
    a, b = features()
    ours = cknna(a, b, k=k, eps=1e-3, unbiased=unbiased, chunk=chunk)
    assert ours == pytest.approx(dense(a, b, k, 1e-3, unbiased), rel=1e-10)


def test_it_is_symmetric_but_for_a_term_of_order_one_over_n() -> None:
    a, b = features()
    assert cknna(a, b) == pytest.approx(cknna(b, a), rel=0.01)
    assert cknna(b, a) == pytest.approx(dense(b, a, 10, 1e-6, True), rel=1e-10)  # So is the definition.
    assert cknna(a, b, k=59) == pytest.approx(cknna(b, a, k=59), rel=1e-10)  # No mask: exactly.
    a, b = features(1000)
    assert cknna(a, b) == pytest.approx(cknna(b, a), rel=1e-3)


def test_the_order_of_the_samples_does_not_matter() -> None:
    a, b = features()
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(1))
    assert cknna(a[order], b[order]) == pytest.approx(cknna(a, b), rel=1e-12)
    assert abs(cknna(a[order], b) - cknna(a, b)) > 0.05  # But both must have the same.


def test_a_rotation_of_the_channels_does_not_matter() -> None:
    a, b = features()
    draw = torch.Generator().manual_seed(2)
    turn = torch.linalg.qr(torch.randn(7, 7, generator=draw, dtype=torch.float64)).Q
    assert cknna(a @ turn, b, clamp=None) == pytest.approx(cknna(a, b, clamp=None), rel=1e-10)


def test_the_scale_of_the_features_does_not_matter() -> None:
    a, b = features()
    assert cknna(a * 1000, b / 1000) == pytest.approx(cknna(a, b), rel=1e-10)


def test_with_all_neighbours_it_is_unbiased_cka() -> None:
    a, b = features()
    ours = cknna(a, b, k=len(a) - 1, eps=0)
    assert ours == pytest.approx(unbiased_cka(normalized(a), normalized(b), eps=0), rel=1e-10)


def test_eps_alone_keeps_a_representation_from_1() -> None:
    a, _ = features(200)
    assert cknna(a, a, eps=0) == pytest.approx(1, abs=1e-12)
    assert 0.99 < cknna(a, a) < 1 - 1e-6


def test_unrelated_features_are_near_0_and_shared_ones_are_not() -> None:
    draw = torch.Generator().manual_seed(3)
    a, b = torch.randn(400, 20, generator=draw), torch.randn(400, 20, generator=draw)
    assert abs(cknna(a, b)) < 0.05
    assert cknna(a, a + 0.5 * b) > 0.2


def test_no_common_neighbour_at_all_is_0() -> None:
    # Nine samples on a 3 x 3 board: one representation knows the row, the other the column.
    row, column = torch.arange(9) // 3, torch.arange(9) % 3
    board = torch.eye(3, dtype=torch.float64)
    assert cknna(board[row], board[column], k=2, clamp=None) == 0
    assert cknna(board[row], board[row], k=2, clamp=None, eps=0) == pytest.approx(1)


def test_neighbours_found_once_serve_for_every_comparison() -> None:
    a, b = features()
    assert alignment(neighbourhood(a), neighbourhood(b)) == cknna(a, b)


def test_half_precision_features_are_computed_in_single() -> None:
    a, b = (x.half() for x in features())
    assert cknna(a, b) == cknna(a.float(), b.float())


def test_hsic_wants_the_mirror_image_of_one_matrix() -> None:
    draw = torch.Generator().manual_seed(4)
    k, ell = torch.randn(2, 6, 6, generator=draw, dtype=torch.float64).unbind()
    k, ell = k.fill_diagonal_(0), ell.fill_diagonal_(0)
    first, second = (k * ell.T).sum(), k.sum() * ell.sum() / 20
    wanted = float(first + second - (k @ ell).sum() / 2) / 18
    assert unbiased_hsic(k, ell) == pytest.approx(wanted, rel=1e-10)
    assert abs(unbiased_hsic(k, ell) - unbiased_hsic(k, ell.T)) > 1e-3


@pytest.mark.parametrize("k", [-1, 0, 1, 60, 61])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(LumitokError, match=rf"between 2 and 59, got {k}"):
        cknna(*features(), k=k)


def test_too_few_samples() -> None:
    a, b = features(3)
    with pytest.raises(LumitokError, match="at least 4 samples, got 3"):
        cknna(a, b, k=2)


def test_counts_that_differ() -> None:
    a, b = features()
    with pytest.raises(LumitokError, match="60 rows and 59"):
        cknna(a, b[:-1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite(value: float) -> None:
    a, b = features()
    b[3, 2] = value
    with pytest.raises(LumitokError, match="features of 1 of 60 samples are NaN or infinite"):
        cknna(a, b)


@pytest.mark.parametrize(("value", "what"), [(0.0, "all zero"), (3.0, "alike for all samples")])
def test_constant_features(value: float, what: str) -> None:
    a, b = features()
    with pytest.raises(LumitokError, match=what):
        cknna(a, torch.full_like(b, value))


def test_features_that_differ_by_rounding_alone() -> None:
    _, b = features()
    nearly = (1000 + 1e-3 * b).float()
    with pytest.raises(LumitokError, match="alike for all samples"):
        cknna(b.float(), nearly, clamp=None)


def test_features_of_another_shape() -> None:
    with pytest.raises(LumitokError, match=r"not of shape \(60, 2, 3\)"):
        cknna(torch.zeros(60, 2, 3), torch.zeros(60, 4))


def test_a_clamp_that_is_no_quantile() -> None:
    with pytest.raises(LumitokError, match=r"up to 1, not at 95"):
        cknna(*features(), clamp=95.0)


def test_hsic_of_matrices_that_do_not_fit() -> None:
    with pytest.raises(LumitokError, match=r"\(5, 5\) and \(5, 6\)"):
        unbiased_hsic(torch.zeros(5, 5), torch.zeros(5, 6))


def test_neighbourhoods_of_another_k() -> None:
    a, b = features()
    with pytest.raises(LumitokError, match="with k 10 and of 60 with k 5"):
        alignment(neighbourhood(a), neighbourhood(b, k=5))
