"""SiT: its sizes, REPA's projector and REG's class token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lumitok.config.networks import ProjectorConfig, SiTConfig
from lumitok.diffusion import build_network
from tests.diffusion.networks import inputs, network

REG: dict[str, Any] = {"class_channels": 768, "projector": ProjectorConfig()}


@pytest.mark.parametrize(
    ("size", "more", "millions"),
    [("S", {}, 32.9), ("B", {}, 130.3), ("L", {}, 457.9), ("XL", {}, 674.8), ("XL", REG, 684.7)],
)
def test_counts_are_the_specifications(size: str, more: dict[str, Any], millions: float) -> None:
    with torch.device("meta"):
        made = build_network(SiTConfig.model_validate({"size": size, **more}))
    count = sum(parameter.numel() for parameter in made.parameters()) / 1e6
    assert abs(count - millions) < 0.06  # Some of them are cut off, some rounded.


@torch.no_grad()
def test_the_class_token_is_read_and_predicted_by_its_own_layers() -> None:
    made = network("reg")
    given = inputs(made)
    out = made(**given)
    made.class_layer.weight.zero_()
    made.class_layer.bias.fill_(2.0)
    assert (made(**given).class_velocity == 2).all()
    assert torch.equal(made(**given).velocity, out.velocity)
    made.class_embedding.norm.weight.zero_()
    made.class_embedding.norm.bias.zero_()
    other = {**given, "class_token": given["class_token"] + 1}
    assert torch.equal(made(**given).velocity, made(**other).velocity)


@torch.no_grad()
def test_the_table_alone_tells_positions() -> None:
    made = network("reg")
    made.position.zero_()
    given = inputs(made)
    turned = made(**{**given, "x": given["x"].flip(2, 3)})
    out = made(**given)
    torch.testing.assert_close(turned.velocity.flip(2, 3), out.velocity, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned.class_velocity, out.class_velocity, rtol=1e-4, atol=1e-5)
