"""LightningDiT: its sizes, its positions, its modulation."""

from __future__ import annotations

import pytest
import torch

from lumitok.config.networks import LightningDiTConfig
from lumitok.diffusion import build_network
from lumitok.diffusion.layers import patchify, rotary_table, rotate, unpatchify
from tests.diffusion.networks import inputs, network


@pytest.mark.parametrize(
    ("size", "millions"), [("B", 130.6), ("L", 458.2), ("XL", 675.26), ("1p0B", 1029), ("1p6B", 1632)]
)
def test_counts_with_the_fixed_table_are_the_specifications(size: str, millions: float) -> None:
    with torch.device("meta"):
        made = build_network(LightningDiTConfig.model_validate({"size": size}))
    trained = sum(parameter.numel() for parameter in made.parameters())
    digits = len(str(millions).partition(".")[2])
    assert round((trained + made.position.numel()) / 1e6, digits) == millions
    if size == "XL":
        assert round(trained / 1e6, 2) == 674.96


def test_a_swiglu_is_two_thirds_of_four_widths() -> None:
    made = network("lightningdit", width=64, heads=4)
    assert made.blocks[0].mlp.w3.in_features == 170


@pytest.mark.parametrize("patch", [1, 2])
def test_patches_go_and_come_back(patch: int) -> None:
    x = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    tokens = patchify(x, patch)
    assert tokens.shape == (2, 16 // patch**2, 3 * patch**2)
    kernel = torch.randn(5, 3, patch, patch)
    convolved = torch.nn.functional.conv2d(x, kernel, stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens @ kernel.flatten(1).T, convolved)
    # Out of a network the channels of a position lie together, into it the positions of a channel do.
    swapped = tokens.unflatten(2, (3, patch**2)).transpose(2, 3).flatten(2)
    assert torch.equal(unpatchify(swapped, patch), x)


def test_rotary_products_see_distances_alone() -> None:
    rotation = rotary_table(8, 5)
    q, k = torch.randn(2, 8)
    turned = rotate(q.expand(25, 8), rotation) @ rotate(k.expand(25, 8), rotation).T
    grid = turned.view(5, 5, 5, 5)
    torch.testing.assert_close(grid[0, 0, 2, 1], grid[2, 3, 4, 4])
    assert not torch.isclose(grid[0, 0, 2, 1], grid[0, 0, 1, 2])


@torch.no_grad()
def test_without_rotary_positions_the_table_alone_tells_them() -> None:
    made = network("lightningdit", rotary=False)
    made.position.zero_()
    given = inputs(made)
    turned = made(**{**given, "x": given["x"].flip(2, 3)}).velocity
    torch.testing.assert_close(turned.flip(2, 3), made(**given).velocity, rtol=1e-4, atol=1e-5)
    made = network("lightningdit")
    made.position.zero_()
    turned = made(**{**given, "x": given["x"].flip(2, 3)}).velocity
    assert not torch.allclose(turned.flip(2, 3), made(**given).velocity, atol=1e-3)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_autocast_and_training_in_bfloat16(qk_norm: bool) -> None:
    made = network("lightningdit", qk_norm=qk_norm, norm="rms")
    given = inputs(made)
    wanted = made(**given).velocity
    with torch.autocast("cpu", torch.bfloat16):
        found = made(**given).velocity
    assert (found.float() - wanted).abs().max() < 0.05 * wanted.abs().max()
    found.float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in made.blocks.parameters())
