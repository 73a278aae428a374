from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.losses.ssim import ssim_loss


def pictures(side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def flat(a: float, b: float) -> float:
    """1 - SSIM of two flat pictures: the luminance term alone, c1 = (0.01 * 2)^2."""
    c1 = 0.02**2
    return 1 - (2 * a * b + c1) / (a * a + b * b + c1)


@pytest.mark.parametrize(("a", "b"), [(0.5, -0.25), (0.1, 0.02), (1.0, -1.0)])
def test_flat_pictures(a: float, b: float) -> None:
    loss = ssim_loss(torch.full((1, 3, 12, 12), a), torch.full((1, 3, 12, 12), b))
    assert loss.item() == pytest.approx(flat(a, b), rel=1e-4)


def test_equal_pictures_cost_nothing_and_different_ones_the_mean_of_each() -> None:
    x, y = pictures(), pictures(seed=1)
    assert ssim_loss(x, x).item() == pytest.approx(0.0, abs=1e-5)
    each = [ssim_loss(x[i : i + 1], y[i : i + 1]).item() for i in range(2)]
    assert ssim_loss(x, y).item() == pytest.approx(sum(each) / 2, rel=1e-5)
    assert each[0] != pytest.approx(each[1], rel=1e-3)


def test_values_outside_are_clamped_and_get_no_gradient() -> None:
    x, y = (2 * pictures()).requires_grad_(), 2 * pictures(seed=1)
    loss = ssim_loss(x, y)
    assert loss.item() == ssim_loss(x.detach().clamp(-1, 1), y.clamp(-1, 1)).item()
    loss.backward()
    assert x.grad is not None
    outside = x.detach().abs() > 1
    assert outside.any()
    assert torch.all(x.grad[outside] == 0)
    assert torch.all(x.grad[~outside] != 0)


def test_it_is_float32_under_autocast() -> None:
    x, y = pictures(), pictures(seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ssim_loss(x, y), ssim_loss(x, y).float())
        inside = ssim_loss(x.bfloat16(), y.bfloat16())
    assert inside.item() == ssim_loss(x.bfloat16().float(), y.bfloat16().float()).item()


@pytest.mark.parametrize(("height", "width"), [(5, 16), (16, 5)])
def test_too_small_for_the_window(height: int, width: int) -> None:
    x = torch.zeros(1, 3, height, width)
    with pytest.raises(LumitokError, match=f"at least 6 px, but the pictures are {height}x{width}"):
        ssim_loss(x, x)
    assert ssim_loss(torch.zeros(1, 3, 6, 6), torch.zeros(1, 3, 6, 6)).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), [((2, 3, 16, 16), (1, 3, 16, 16)), ((3, 16, 16), (3, 16, 16))])
def test_other_shapes_are_refused(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    with pytest.raises(LumitokError, match="of one shape, but got"):
        ssim_loss(torch.zeros(ours), torch.zeros(theirs))
