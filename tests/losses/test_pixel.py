from __future__ import annotations

import pytest
import torch

from lumitok.errors import LumitokError
from lumitok.losses.pixel import l1, multi_resolution_l1


def test_l1_is_the_mean_of_absolute_differences() -> None:
    image = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1)
    target = torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1)
    assert l1(image, target).item() == pytest.approx((1.0 + 3.0 + 0.0) / 3)


def test_l1_refuses_to_broadcast() -> None:
    with pytest.raises(LumitokError, match=r"\(2, 3, 4, 4\) and \(1, 3, 4, 4\)"):
        l1(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))


def test_multi_resolution_sums_the_means_and_weighs_each_resolution_alike() -> None:
    target = torch.full((2, 3, 16, 16), 0.25)  # A flat picture stays flat at every size.
    images = [torch.full((2, 3, side, side), value) for side, value in ((4, 0.0), (8, 1.0), (16, 0.5))]
    assert multi_resolution_l1(images, target).item() == pytest.approx(0.25 + 0.75 + 0.25)


def test_multi_resolution_targets_are_antialiased() -> None:
    # A triangle filter of radius 4 (antialias, factor 4), written out; without antialias the weights are
    # those of the two middle pixels alone.
    generator = torch.Generator().manual_seed(0)
    row = torch.rand(1, 1, 1, 16, generator=generator)
    small = []
    for i in range(4):
        centre = 4 * i + 1.5
        weights = [max(0.0, 1 - abs(j - centre) / 4) for j in range(16)]
        small.append(sum(w * row[0, 0, 0, j].item() for j, w in enumerate(weights)) / sum(weights))
    target = row.expand(1, 1, 16, 16)
    expected = torch.tensor(small).expand(1, 1, 4, 4)
    assert multi_resolution_l1([expected], target).item() == pytest.approx(0.0, abs=1e-6)


def test_multi_resolution_gradient_reaches_every_image() -> None:
    images = [torch.zeros(1, 3, side, side, requires_grad=True) for side in (2, 4)]
    multi_resolution_l1(images, torch.ones(1, 3, 8, 8)).backward()
    for image in images:
        assert image.grad is not None
        torch.testing.assert_close(image.grad, torch.full_like(image, -1 / image.numel()))


def test_multi_resolution_needs_an_image() -> None:
    with pytest.raises(LumitokError, match="no images"):
        multi_resolution_l1([], torch.zeros(1, 3, 8, 8))
