"""Figures with known answers; t-SNE on few points."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.density import density_map, kernel_density, one_position, uniformity


def features(count: int = 60) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0))


def test_an_even_density() -> None:
    for level in (1.0, 3e-300, 1e300):
        even = uniformity(np.full(40, level))
        assert even.cv == even.gini == 0
        assert even.entropy == pytest.approx(1, abs=1e-8)


def test_all_of_it_at_one_point() -> None:
    found = uniformity([0.0, 5.0, 0.0, 0.0])
    assert found.cv == pytest.approx(math.sqrt(3))
    assert found.gini == pytest.approx(3 / 4)
    assert found.entropy == pytest.approx(0, abs=1e-8)


def test_two_levels() -> None:
    # Shares 1/8, 1/8, 3/8, 3/8: the formulas by hand.
    found = uniformity([3.0, 1.0, 3.0, 1.0])
    assert found.cv == pytest.approx(0.5)
    assert found.gini == pytest.approx(0.25)
    assert found.entropy == pytest.approx((2 / 8 * 3 + 6 / 8 * math.log2(8 / 3)) / 2, abs=1e-8)


@pytest.mark.parametrize("density", [[1.0], [], [1.0, -1.0], [0.0, 0.0], [1.0, math.nan], [1.0, math.inf]])
def test_what_is_no_density(density: list[float]) -> None:
    with pytest.raises(LumitokError, match="densit"):
        uniformity(density)


def test_the_kernel_density_is_that_of_its_formula() -> None:
    points = np.random.default_rng(0).normal(size=(20, 2))
    covariance = np.cov(points.T) * 20 ** (-2 / 6)  # Scott: n^(-1/(d+4)), squared.
    inverse, norm = np.linalg.inv(covariance), 2 * math.pi * math.sqrt(np.linalg.det(covariance))
    steps = points[:, None] - points[None]
    wanted = np.exp(-0.5 * np.einsum("abi,ij,abj->ab", steps, inverse, steps)).mean(axis=1) / norm
    np.testing.assert_allclose(kernel_density(points), wanted, rtol=1e-9)


def test_points_without_a_density() -> None:
    with pytest.raises(LumitokError, match="n above d"):
        kernel_density(np.zeros((2, 2)))
    with pytest.raises(LumitokError, match="n above d"):
        kernel_density(np.full((9, 2), np.nan))
    with pytest.raises(LumitokError, match="on one line"):
        kernel_density(np.arange(10.0)[:, None] * np.ones(2))


def test_a_map_does_not_depend_on_scale_and_place_of_the_channels() -> None:
    found = density_map(features())
    again = density_map(features().double() * torch.tensor([1.0, 8.0, 0.125, -2.0]).abs() + 4.0)
    assert found.points.shape == (60, 2)
    np.testing.assert_allclose(again.points, found.points, atol=1e-2)
    assert found.density.min() > 0
    assert found.uniformity == uniformity(kernel_density(found.points))
    assert 0 < found.uniformity.gini < found.uniformity.cv < 1
    assert 0.9 < found.uniformity.entropy < 1


def test_clusters_are_less_even_than_a_cloud() -> None:
    cloud = density_map(features(90)).uniformity
    # Nine tenths of the points crowd in one place of the space.
    crowd = features(90) * torch.where(torch.arange(90) % 10 == 0, 5.0, 0.02)[:, None]
    assert density_map(crowd).uniformity.cv > cloud.cv


def test_features_that_cannot_be_laid_out() -> None:
    with pytest.raises(LumitokError, match=r"more than 30 pictures.*got 30"):
        density_map(features(30))
    broken = features()
    broken[3, 1] = math.nan
    with pytest.raises(LumitokError, match="NaN or infinite"):
        density_map(broken)
    flat = features()
    flat[:, 2] = 0.1
    with pytest.raises(LumitokError, match="channel 2 of the latents does not vary"):
        density_map(flat)
    with pytest.raises(LumitokError, match=r"\(n, C\)"):
        density_map(torch.zeros(60, 4, 2))


@pytest.mark.parametrize(("module", "package"), [("scipy", "scipy"), ("sklearn", "scikit-learn")])
def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, module: str, package: str) -> None:
    real = importlib.import_module

    def without(name: str) -> Any:
        if name.startswith(module):
            raise ImportError(f"No module named '{module}'")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(LumitokError, match=rf"needs {package} .*pip install 'lumitok\[eval\]'"):
        density_map(features())


def test_a_picture_gives_the_same_position_in_any_batch() -> None:
    latents = torch.arange(5 * 3 * 4 * 6.0).view(5, 3, 4, 6)

    def drawn(indices: list[int]) -> Tensor:
        return one_position(latents[indices], [np.random.default_rng(index) for index in indices])

    whole = drawn([0, 1, 2, 3, 4])
    assert torch.equal(drawn([3, 1]), whole[[3, 1]])
    for latent, vector in zip(latents, whole, strict=True):
        # All channels come from one position.
        assert (vector == latent.flatten(1).T).all(dim=1).sum() == 1
    places = (whole[:, 0] - latents[:, 0, 0, 0]).tolist()
    assert len(set(places)) > 1
    with pytest.raises(LumitokError, match="B generators"):
        one_position(latents, [np.random.default_rng(0)])
