from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lumitok.foundation import Features
from lumitok.losses.feature_distance import FeatureDistance


class Taps(nn.Module):
    """Two layers that are simple functions of the pixels, behind the foundation encoder's contract."""

    name = "taps"

    def forward(self, pixels: Tensor) -> Features:
        coarse = nn.functional.avg_pool2d(pixels, 2) * torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1).to(
            pixels
        )
        return Features(maps=[pixels.square(), coarse], tokens=[None, None])


def by_loops(x: Tensor, y: Tensor) -> list[float]:
    encoder = Taps()
    result = []
    for b in range(len(x)):
        layers = []
        for f, g in zip(encoder(x[b : b + 1]).maps, encoder(y[b : b + 1]).maps, strict=True):
            places = []
            for i in range(f.shape[2]):
                for j in range(f.shape[3]):
                    u, v = f[0, :, i, j].tolist(), g[0, :, i, j].tolist()
                    nu, nv = math.hypot(*u), math.hypot(*v)
                    places.append(sum((s / nu - t / nv) ** 2 for s, t in zip(u, v, strict=True)))
            layers.append(sum(places) / len(places))
        result.append(sum(layers) / len(layers))
    return result


def pictures(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def test_feature_distance_against_loops() -> None:
    x, y = pictures(0), pictures(1)
    expected = by_loops((x + 1) / 2, (y + 1) / 2)
    assert FeatureDistance(Taps())(x, y).tolist() == pytest.approx(expected, rel=1e-5)


def test_feature_distance_gradient_reaches_both_pictures() -> None:
    x, y = pictures(2, torch.float64)[:1, :, :2, :2], pictures(3, torch.float64)[:1, :, :2, :2]
    assert torch.autograd.gradcheck(FeatureDistance(Taps()), (x.requires_grad_(), y.requires_grad_()))


def test_feature_distance_gradient_is_finite_where_a_feature_vector_is_zero() -> None:
    x = torch.full((1, 3, 2, 2), -1.0, requires_grad=True)  # Black: every feature is 0.
    FeatureDistance(Taps())(x, torch.ones(1, 3, 2, 2)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_feature_distance_is_never_called_lpips() -> None:
    assert FeatureDistance(Taps()).name == "feature-distance/taps"
