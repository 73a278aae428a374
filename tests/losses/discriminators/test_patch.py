from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lumitok.config import PatchDiscriminatorConfig
from lumitok.errors import LumitokError
from lumitok.losses.discriminators.head import BatchNormLocal
from lumitok.losses.discriminators.patch import PatchDiscriminator, PatchLayer


def make(**changes: int) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(PatchDiscriminatorConfig(**{"channels": 4, **changes}))


def pictures(height: int = 32, width: int = 32, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, height, width, generator=generator) * 2 - 1


def test_it_has_the_size_of_the_paper() -> None:
    with torch.device("meta"):
        discriminator = PatchDiscriminator(PatchDiscriminatorConfig())
        judged = discriminator(torch.empty(1, 3, 256, 256))
    count = sum(p.numel() for p in discriminator.parameters())
    assert count == 8_299_587  # 8.30 M
    assert [layers[-1].shape[-1] for layers in judged] == [35, 19, 11]


def test_layers_in_order() -> None:
    discriminator = make(strided_layers=2, scales=1)
    x = pictures()
    (outputs,) = discriminator(x)
    assert len(outputs) == 4
    layers = list(discriminator.networks[0])
    for layer, output, stride, normed in zip(
        layers, outputs, [2, 2, 1, 1], [False, True, True, False], strict=True
    ):
        y = F.conv2d(x, layer.conv.weight, layer.conv.bias, stride=stride, padding=2)
        if normed:
            y = (y - y.mean(dim=(0, 2, 3), keepdim=True)) / (
                y.var(dim=(0, 2, 3), keepdim=True, unbiased=False) + 1e-5
            ).sqrt()
        if layer is not layers[-1]:
            y = torch.where(y > 0, y, 0.2 * y)
        torch.testing.assert_close(output, y, rtol=1e-4, atol=1e-5)
        x = output
    assert [output.shape[1:] for output in outputs] == [(4, 17, 17), (8, 9, 9), (16, 10, 10), (1, 11, 11)]


def test_each_scale_sees_the_picture_at_half_the_size() -> None:
    discriminator = make(scales=3)
    x = pictures(40, 36)
    judged = discriminator(x)
    assert len(judged) == 3
    for scale, network in enumerate(discriminator.networks):
        alone = make(scales=1)
        alone.networks[0].load_state_dict(network.state_dict())
        for ours, theirs in zip(judged[scale], alone(x)[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        x = halved(x)


def halved(x: Tensor) -> Tensor:
    """Mean over a window of 3 around every second pixel, of the pixels inside the picture alone."""
    rows = []
    for i in range(0, x.shape[2], 2):
        top = x[:, :, max(0, i - 1) : i + 2]
        rows.append(
            torch.stack(
                [top[..., max(0, j - 1) : j + 2].mean(dim=(2, 3)) for j in range(0, x.shape[3], 2)], dim=-1
            )
        )
    return torch.stack(rows, dim=2)


def test_channels_double_up_to_eight_times() -> None:
    network = make(strided_layers=5).networks[0]
    assert [layer.conv.out_channels for layer in network] == [4, 8, 16, 32, 32, 32, 1]
    assert [layer.conv.stride[0] for layer in network] == [2, 2, 2, 2, 2, 1, 1]


def test_only_convolution_weights_are_set() -> None:
    torch.manual_seed(0)
    layer = PatchLayer(64, 64, stride=2, padding=2, norm="local")
    weight = layer.conv.weight.detach()
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert weight.mean().item() == pytest.approx(0.0, abs=3e-4)
    assert layer.conv.bias is not None
    bound = (64 * 4 * 4) ** -0.5  # torch's own: uniform within it.
    assert 0.8 * bound < layer.conv.bias.abs().max() <= bound
    assert isinstance(layer.norm, BatchNormLocal)
    assert torch.all(layer.norm.weight == 1)
    assert torch.all(layer.norm.bias == 0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (5, 5), (33, 64)])
@pytest.mark.parametrize("batch", [1, 8])
def test_other_sizes(height: int, width: int, batch: int) -> None:
    judged = make()(pictures(height, width, batch))
    assert all(layer.isfinite().all() for layers in judged for layer in layers)
    assert all(layers[-1].shape[:2] == (batch, 1) for layers in judged)


def test_pictures_that_are_too_small_are_refused() -> None:
    with pytest.raises(LumitokError, match="3 scales need pictures of at least 5 px a side"):
        make()(pictures(4, 32))


def test_a_batch_is_judged_in_groups_of_eight() -> None:
    x = pictures(batch=16)
    discriminator = make()
    halves = [discriminator(half) for half in x.chunk(2)]
    for scale, layers in enumerate(discriminator(x)):
        for index, layer in enumerate(layers):
            joined = torch.cat([half[scale][index] for half in halves])
            torch.testing.assert_close(layer, joined, rtol=1e-5, atol=1e-6)
    with pytest.raises(LumitokError, match="9 pictures do not divide"):
        discriminator(pictures(batch=9))


def test_training_and_eval_are_the_same() -> None:
    discriminator = make()
    for ours, theirs in zip(
        discriminator.train()(pictures())[0], discriminator.eval()(pictures())[0], strict=True
    ):
        assert torch.equal(ours, theirs)


def test_channels_last_stays_channels_last() -> None:
    discriminator, x = make(), pictures(40, 40)
    plain = discriminator(x)
    judged = discriminator.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for ours, theirs in zip(judged, plain, strict=True):
        for layer, other in zip(ours, theirs, strict=True):
            assert layer.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(layer, other, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter_and_the_pictures() -> None:
    discriminator, x = make(), pictures().requires_grad_()
    torch.stack([layers[-1].square().mean() for layers in discriminator(x)]).sum().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
