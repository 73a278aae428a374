from __future__ import annotations

import pytest
import torch

from lumitok.losses.adversarial import hinge_discriminator, hinge_generator


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
