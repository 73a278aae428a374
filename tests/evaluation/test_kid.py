"""The kernel distance against torch-fidelity, torchmetrics and a naive loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.kid import _mmd2, kernel_distance, method


def features(count: int, seed: int, dim: int = 6, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).double() + shift


def naive(x: Tensor, y: Tensor) -> float:
    """Term by term, for samples of one size m: pairs i != j within each, all pairs across."""

    def kernel(a: Tensor, b: Tensor) -> float:
        total = sum(float(p) * float(q) for p, q in zip(a, b, strict=True))
        return (total / len(a) + 1.0) ** 3

    m = len(x)
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i, j in itertools.permutations(range(m), 2))
    across = sum(kernel(a, b) for a in x for b in y)
    return within / (m * (m - 1)) - 2.0 * across / m**2


@pytest.mark.parametrize("seed", [2020, 7])
def test_is_torch_fidelitys_on_the_same_subsets(seed: int) -> None:
    metric = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = features(60, 0), features(45, 1, shift=0.2)
    expected = metric.kid_features_to_metric(
        x, y, kid_subsets=12, kid_subset_size=20, rng_seed=seed, verbose=False
    )
    ours = kernel_distance(x, y, subsets=12, subset_size=20, seed=seed)
    assert ours.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-12)
    assert ours.std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-12)
    assert ours.std > 0.01


def test_is_torchmetrics_on_one_subset_of_everything() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = features(30, 0), features(30, 1, shift=0.2)
    expected = kid.poly_mmd(x, y)
    ours = kernel_distance(x, y, subsets=3, subset_size=30, seed=0)
    assert ours.mean == pytest.approx(float(expected), rel=1e-12)
    assert ours.std == pytest.approx(0.0, abs=1e-14)


def test_is_the_naive_loop() -> None:
    x, y = features(9, 0), features(9, 1, shift=0.5)
    assert _mmd2(x, y) == pytest.approx(naive(x, y), rel=1e-12)


def test_is_unbiased_so_alike_sets_fall_on_both_sides_of_zero() -> None:
    values = [
        kernel_distance(features(20, i), features(20, 100 + i), subsets=1, subset_size=20, seed=0).mean
        for i in range(60)
    ]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5


def test_float32_features_are_compared_in_float64() -> None:
    x, y = features(40, 0).float() * 30, features(40, 1).float() * 30
    wide = kernel_distance(x.double(), y.double(), subsets=2, subset_size=30, seed=1)
    assert kernel_distance(x, y, subsets=2, subset_size=30, seed=1) == wide


def test_the_seed_decides_the_draw() -> None:
    x, y = features(40, 0), features(40, 1)
    first, again, other = (kernel_distance(x, y, subsets=3, subset_size=10, seed=s) for s in (0, 0, 1))
    assert first == again != other


def test_too_few_images_say_what_size_fits() -> None:
    with pytest.raises(LumitokError, match=r"judged set has 30 images, fewer than the 1000 .* at most 20"):
        kernel_distance(features(30, 0), features(20, 1), seed=0)
    with pytest.raises(LumitokError, match="reference set has 20 images, fewer than the 25"):
        kernel_distance(features(30, 0), features(20, 1), subset_size=25, seed=0)


def test_wrong_input_is_refused() -> None:
    good = features(10, 0)
    bad = good.clone()
    bad[2, 1] = float("nan")
    with pytest.raises(LumitokError, match="judged features of 1 of 10 images are NaN"):
        kernel_distance(bad, good, subset_size=5, seed=0)
    with pytest.raises(LumitokError, match="reference features of all 10 images are equal"):
        kernel_distance(good, torch.ones(10, 6), subset_size=5, seed=0)
    with pytest.raises(LumitokError, match="reference features have 4 dimensions, wanted 6"):
        kernel_distance(good, features(10, 0, dim=4), subset_size=5, seed=0)
    for subsets, size in ((0, 5), (1, 1)):
        with pytest.raises(LumitokError, match=f"got {subsets} subsets of {size} images"):
            kernel_distance(good, good, subsets=subsets, subset_size=size, seed=0)
    with pytest.raises(LumitokError, match="got the seed -1"):
        kernel_distance(good, good, subset_size=5, seed=-1)


def test_the_method_names_its_numbers() -> None:
    assert method(subsets=50, subset_size=1000) == (
        "unbiased MMD^2, kernel (x.y/d + 1)^3, 50 subsets of 1,000, not scaled"
    )
