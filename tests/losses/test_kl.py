from __future__ import annotations

import math

import pytest
import torch

from lumitok.losses.kl import kl


def test_kl_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2, 3, 2, 2, generator=generator)
    logvar = torch.randn(2, 3, 2, 2, generator=generator)
    total = 0.0
    for m, v in zip(mean.flatten().tolist(), logvar.flatten().tolist(), strict=True):
        total += 0.5 * (m**2 + math.exp(v) - 1 - v)
    assert kl(mean, logvar).item() == pytest.approx(total / 2, rel=1e-6)


def test_kl_is_the_divergence_that_sampling_estimates() -> None:
    mean, logvar = torch.tensor([[[[0.7]]]]), torch.tensor([[[[-0.5]]]])
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    prior = torch.distributions.Normal(torch.zeros(1), torch.ones(1))
    expected = torch.distributions.kl_divergence(posterior, prior).sum().item()
    assert kl(mean, logvar).item() == pytest.approx(expected, rel=1e-5)


def test_kl_is_zero_only_at_the_standard_normal() -> None:
    zero = torch.zeros(1, 2, 2, 2)
    assert kl(zero, zero).item() == 0.0
    assert kl(zero, zero + 0.1).item() > 0
    assert kl(zero, zero - 0.1).item() > 0


def test_kl_gradient() -> None:
    mean = torch.tensor([[[[2.0]]], [[[0.0]]]], requires_grad=True)
    logvar = torch.tensor([[[[0.0]]], [[[1.0]]]], requires_grad=True)
    kl(mean, logvar).backward()
    assert mean.grad is not None
    assert logvar.grad is not None
    torch.testing.assert_close(mean.grad.flatten(), torch.tensor([1.0, 0.0]))  # mean / B
    torch.testing.assert_close(logvar.grad.flatten(), torch.tensor([0.0, (math.e - 1) / 4]))
