from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lumitok.losses.feature_matching import feature_matching


def judged(*values: list[float]) -> list[list[Tensor]]:
    """One list a scale, each a list of flat layers, larger in the first scale."""
    sides = (4, 2, 1)
    return [
        [torch.full((2, 3, side, side), value) for value in layers]
        for side, layers in zip(sides, values, strict=False)
    ]


def test_mean_over_scales_of_the_sum_over_layers_without_the_logits() -> None:
    real = judged([1.0, 2.0, 100.0], [0.0, 0.0, 100.0])
    fake = judged([0.5, 2.25, -100.0], [-1.0, 3.0, -100.0])
    assert feature_matching(real, fake).item() == pytest.approx(((0.5 + 0.25) + (1.0 + 3.0)) / 2)


def test_only_the_reconstructions_get_a_gradient() -> None:
    real, fake = judged([1.0, 2.0, 3.0]), judged([0.0, 0.0, 0.0])
    for layer in (*real[0], *fake[0]):
        layer.requires_grad_()
    feature_matching(real, fake).backward()
    assert all(layer.grad is None for layer in real[0])
    assert fake[0][-1].grad is None
    for layer in fake[0][:-1]:
        assert layer.grad is not None
        torch.testing.assert_close(layer.grad, torch.full_like(layer, -1 / layer.numel()))


def test_scales_and_layers_must_be_paired() -> None:
    with pytest.raises(ValueError, match="shorter"):
        feature_matching(judged([1.0, 2.0]), judged([1.0, 2.0], [1.0, 2.0]))
