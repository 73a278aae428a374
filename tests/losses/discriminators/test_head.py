from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lumitok.errors import LumitokError
from lumitok.losses.discriminators.head import BatchNormLocal, DiscriminatorHead, SpectralConv1d


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def settled(conv: SpectralConv1d) -> SpectralConv1d:
    """Iterate until u and v are the singular vectors."""
    conv.train()
    for _ in range(300):
        conv(torch.zeros(1, conv.weight.shape[1], 1))
    return conv.eval()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 11])
def test_convolution_goes_round_and_has_spectral_norm_one(length: int) -> None:
    torch.manual_seed(0)
    conv = settled(SpectralConv1d(3, 4, 9))
    x = randn(2, 3, length)
    weight = conv.weight / torch.linalg.matrix_norm(conv.weight.flatten(1), ord=2)
    expected = torch.zeros(2, 4, length)
    for position in range(length):
        for k in range(9):
            expected[:, :, position] += x[:, :, (position + k - 4) % length] @ weight[:, :, k].T
        expected[:, :, position] += conv.bias
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)


def test_convolution_iterates_in_training_only() -> None:
    torch.manual_seed(0)
    conv = SpectralConv1d(5, 4, 1)
    u, v = conv.weight_u.clone(), conv.weight_v.clone()
    conv.eval()(randn(1, 5, 3))
    assert torch.equal(conv.weight_u, u)
    assert torch.equal(conv.weight_v, v)
    conv.train()(randn(1, 5, 3))
    matrix = conv.weight.detach().flatten(1)
    v = F.normalize(matrix.T @ u, dim=0)
    torch.testing.assert_close(conv.weight_v, v)
    torch.testing.assert_close(conv.weight_u, F.normalize(matrix @ v, dim=0))


def test_convolution_may_run_twice_before_the_backward_pass() -> None:
    # The discriminator sees real pictures, then decoded ones, then its loss goes back through both.
    torch.manual_seed(0)
    conv = SpectralConv1d(3, 3, 9).train()
    (conv(randn(1, 3, 5)).sum() + conv(randn(1, 3, 5, seed=1)).sum()).backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.abs().sum() > 0


def test_spectral_norm_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    conv = SpectralConv1d(64, 64, 9)
    other = SpectralConv1d(64, 64, 9)
    other.load_state_dict(conv.state_dict())
    x = randn(1, 64, 10)
    conv(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other(x)
    assert torch.equal(conv.weight_u, other.weight_u)
    assert torch.equal(conv.weight_v, other.weight_v)


def test_gradient_through_the_spectral_norm() -> None:
    torch.manual_seed(0)
    conv = SpectralConv1d(2, 3, 3).double().eval()
    x = randn(1, 2, 4).double()

    def run(weight: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(conv, {"weight": weight}, (x,))
        return out

    assert torch.autograd.gradcheck(run, conv.weight.detach().clone().requires_grad_())


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (5, 5), (8, 8), (12, 6), (24, 8)])
def test_batch_norm_local_against_a_loop(batch: int, group: int) -> None:
    norm = BatchNormLocal(2)
    norm.load_state_dict({"weight": torch.tensor([2.0, 0.5]), "bias": torch.tensor([0.1, -0.3])})
    x = randn(batch, 2, 3)
    expected = torch.empty_like(x)
    for start in range(0, batch, group):
        for c, (scale, shift) in enumerate([(2.0, 0.1), (0.5, -0.3)]):
            part = x[start : start + group, c]
            mean = part.sum() / part.numel()
            variance = (part - mean).square().sum() / part.numel()
            expected[start : start + group, c] = (part - mean) / math.sqrt(variance + 1e-5) * scale + shift
    torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.eval()(x), norm.train()(x), rtol=0, atol=0)


def test_batch_norm_local_refuses_a_batch_that_does_not_divide() -> None:
    with pytest.raises(LumitokError, match="9 pictures do not divide into 2 equal groups"):
        BatchNormLocal(2)(torch.zeros(9, 2, 3))


def test_batch_norm_local_is_float32_for_bfloat16() -> None:
    x = randn(8, 4, 6).bfloat16()
    out = BatchNormLocal(4)(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, BatchNormLocal(4)(x.float()), rtol=0, atol=0)


def test_head_is_the_layers_in_order_with_a_skip() -> None:
    torch.manual_seed(0)
    head = DiscriminatorHead(4).eval()
    x = randn(8, 4, 10)
    h = F.leaky_relu(head.norm_in(head.conv_in(x)), 0.2)
    y = F.leaky_relu(head.norm_mid(head.conv_mid(h)), 0.2)
    expected = head.conv_out((h + y) * 0.5**0.5)[:, 0]
    torch.testing.assert_close(head(x), expected)
    assert head(x).shape == (8, 10)


def test_head_has_the_size_of_the_paper() -> None:
    assert sum(p.numel() for p in DiscriminatorHead(384).parameters()) == 1_477_249  # 1.48 M a layer
