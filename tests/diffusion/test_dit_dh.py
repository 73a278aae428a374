"""DiT-DH: its size, and the head conditioned token by token."""

from __future__ import annotations

import torch

from lumitok.config.networks import DiTDHConfig
from lumitok.diffusion import build_network
from tests.diffusion.networks import inputs, network


def test_xl_has_the_papers_count() -> None:
    with torch.device("meta"):
        made = build_network(DiTDHConfig(size="XL"))
    count = sum(parameter.numel() for parameter in made.parameters()) + made.position.numel()
    assert round(count / 1e6) == 839
    assert made.final_layer.linear.in_features == 2048


@torch.no_grad()
def test_the_head_is_conditioned_token_by_token() -> None:
    made = network("dit-dh")
    # A head that sees no other token, and no position: what differs between tokens is their condition.
    for block in made.head:
        block.attn.proj.weight.zero_()
    made.head_patch_embedding.weight.zero_()
    given = inputs(made)
    wanted = made(**given).velocity
    assert wanted.flatten(2).std(dim=2).min() > 1e-3
    made.to_head.weight.zero_()
    flat = made(**given).velocity.flatten(2)
    torch.testing.assert_close(flat, flat[..., :1].expand_as(flat))


@torch.no_grad()
def test_the_head_sees_the_latent_itself() -> None:
    made = network("dit-dh")
    made.patch_embedding.weight.zero_()
    given = inputs(made)
    other = {**given, "x": given["x"] + 1}
    assert not torch.allclose(made(**given).velocity, made(**other).velocity, atol=1e-3)


def test_equal_widths_need_no_projection() -> None:
    made = network("dit-dh", head_width=24)
    assert not list(made.to_head.parameters())
