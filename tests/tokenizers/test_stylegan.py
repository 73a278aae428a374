"""StyleGAN2's layers: the modulation's definition, the upsampling's geometry, the residual's start."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lumitok.tokenizers.stylegan import ModulatedConvolution, ResidualPair, modulated_convolution


def naive(x: Tensor, weight: Tensor, style: Tensor, upsample: bool) -> Tensor:
    """The definition: a weight a sample, then one convolution a sample."""
    rows = []
    for sample, s in zip(x, style, strict=True):
        w = weight * s[None, :, None, None]
        w = w / (w.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if upsample:
            # A transposed convolution, written out: zeros between the pixels, and the kernel mirrored.
            spread = torch.zeros(1, len(sample), 2 * x.shape[2] - 1, 2 * x.shape[3] - 1, dtype=x.dtype)
            spread[..., ::2, ::2] = sample
            rows.append(F.conv2d(spread, w.flip(2, 3), padding=2))
        else:
            rows.append(F.conv2d(sample[None], w, padding=1))
    return torch.cat(rows)


@pytest.mark.parametrize("upsample", [False, True])
def test_modulation_equals_a_weight_for_every_sample(upsample: bool) -> None:
    torch.manual_seed(0)
    shapes = [(3, 6, 4, 5), (7, 6, 3, 3), (3, 6)]
    ours = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    y = modulated_convolution(*ours, upsample=upsample)
    wanted = naive(*theirs, upsample)
    assert y.shape == ((3, 7, 9, 11) if upsample else (3, 7, 4, 5))
    # float64 throughout, but for the demodulation, which is float32 by design.
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)
    cotangent = torch.randn_like(y)
    (y * cotangent).sum().backward()
    (wanted * cotangent).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_upsampling_smooths_with_1_3_3_1_and_keeps_the_place() -> None:
    layer = ModulatedConvolution(1, 1, 4, upsample=True)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 1, 1] = 1.0  # Only the centre: what is left is the filter.
    x = torch.zeros(1, 1, 5, 5)
    x[..., 2, 2] = 1.0
    y = layer(x, torch.zeros(1, 4)) / 2**0.5  # No leaky ReLU's gain; demodulation makes the centre 1.
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    wanted = torch.zeros(10, 10)
    wanted[3:7, 3:7] = torch.outer(taps, taps)  # Around rows and columns 4 and 5, where pixel 2 lies.
    torch.testing.assert_close(y[0, 0], wanted)


def test_a_constant_stays_constant_inside() -> None:
    layer = ModulatedConvolution(1, 1, 4, upsample=True)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    y = layer(torch.ones(1, 1, 8, 8), torch.zeros(1, 4))[..., 4:-4, 4:-4]
    torch.testing.assert_close(y, y[..., :1, :1].expand_as(y), rtol=1e-5, atol=1e-6)


def test_the_leaky_relu_has_its_gain() -> None:
    layer = ModulatedConvolution(2, 3, 4)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    y = layer(torch.randn(1, 2, 3, 3), torch.zeros(1, 4))[0, :, 0, 0]
    torch.testing.assert_close(y, torch.tensor([-0.2, 0.0, 2.0]) * 2**0.5)


def test_a_residual_pair_starts_near_the_identity_and_follows_the_style() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    pair = ResidualPair(8, 6, layer_scale=1e-5)
    torch.testing.assert_close(pair(x, w), x, rtol=0, atol=1e-3)
    pair = ResidualPair(8, 6, layer_scale=1.0)
    change = pair(x, w) - x
    assert change.std() > 0.3
    assert not torch.allclose(change, pair(x, w.flip(0)) - x, atol=0.1)
    # The norm before the convolutions takes out the scale of what comes in.
    torch.testing.assert_close(pair(100 * x, w) - 100 * x, change, rtol=1e-2, atol=1e-2)
