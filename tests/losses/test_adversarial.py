from __future__ import annotations

import pytest
import torch

from lumitok.losses.adversarial import (
    hinge_discriminator,
    hinge_generator,
    least_squares_discriminator,
    least_squares_generator,
)


def test_hinge_discriminator_has_no_half() -> None:
    real = torch.tensor([[2.0, 0.0], [-1.0, 1.0]])  # costs 0, 1, 2, 0
    fake = torch.tensor([[-2.0, 0.0, 1.0]])  # costs 0, 1, 2
    assert hinge_discriminator(real, fake).item() == pytest.approx(3 / 4 + 3 / 3)


def test_hinge_discriminator_pushes_only_inside_the_margin() -> None:
    real = torch.tensor([2.0, 0.0], requires_grad=True)
    fake = torch.tensor([-2.0, 0.0], requires_grad=True)
    hinge_discriminator(real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    torch.testing.assert_close(real.grad, torch.tensor([0.0, -0.5]))
    torch.testing.assert_close(fake.grad, torch.tensor([0.0, 0.5]))


def test_hinge_generator() -> None:
    assert hinge_generator(torch.tensor([[3.0, -1.0]])).item() == pytest.approx(-1.0)


def test_least_squares_has_no_half_and_weighs_each_scale_alike() -> None:
    real = [torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 0.0, 0.0, 0.0]])]  # means 2 and 1
    fake = [torch.tensor([[1.0, -3.0]]), torch.tensor([[0.0, 0.0, 2.0, 0.0]])]  # means 5 and 1
    assert least_squares_discriminator(real, fake).item() == pytest.approx((2 + 5 + 1 + 1) / 2)
    assert least_squares_generator(fake).item() == pytest.approx((16 / 2 + 4 / 4) / 2)


def test_least_squares_is_float32_for_bfloat16() -> None:
    fake = [torch.full((1, 64), 2.015625, dtype=torch.bfloat16)]  # Its square needs more than 8 bits.
    assert least_squares_generator(fake).item() == pytest.approx(1.015625**2, rel=1e-6)
