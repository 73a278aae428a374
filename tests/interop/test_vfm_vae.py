"""The two layouts of the official keys."""

from __future__ import annotations

import pytest
import torch

from lumitok.errors import LumitokError
from lumitok.interop.vfm_vae import number_blocks, official_to_ours, wrong_constants
from tests.interop import official
from tests.parity.fixtures import Fixture


def test_the_older_layout_becomes_the_newer() -> None:
    state = official.generator(Fixture("vfmvae_decoder_plain"))
    renamed, side = number_blocks(official.older(state))
    assert side == 256
    assert renamed.keys() == state.keys()
    assert all(renamed[key] is value for key, value in state.items())


def test_the_newer_layout_stays() -> None:
    state = official.generator(Fixture("vfmvae_decoder_plain"))
    assert number_blocks(state) == (state, None)


def test_sides_are_counted_from_the_first_block() -> None:
    older = dict.fromkeys(["synthesis.b16.x", "synthesis.b512.x", "synthesis.z_convs.64.0.y"], 0)
    renamed, side = number_blocks(older)
    assert (list(renamed), side) == (
        ["synthesis.blocks.0.x", "synthesis.blocks.5.x", "synthesis.z_convs.2.0.y"],
        512,
    )


def test_a_side_that_is_no_block_keeps_its_name() -> None:
    renamed, _ = number_blocks(dict.fromkeys(["synthesis.b8.x", "synthesis.b24.x"], 0))
    assert list(renamed) == ["synthesis.blocks.0.x", "synthesis.b24.x"]


def test_one_weight_under_both_names_is_refused() -> None:
    with pytest.raises(
        LumitokError, match=r"'synthesis\.blocks\.0\.x' twice, once under .* 'synthesis\.b8\.x'"
    ):
        number_blocks({"synthesis.blocks.0.x": 0, "synthesis.b8.x": 0})


def test_every_tensor_of_the_decoder_has_one_place() -> None:
    for name in ("plain", "noise"):
        weights = Fixture(f"vfmvae_decoder_{name}").weights
        dropped = [key for key in weights if key.endswith(("x_avg", "blur_weight", "zero_k_bias"))]
        assert len(official_to_ours(weights)) == len(weights) - len(dropped)
        assert len(dropped) == 1 + 11 + 1


def test_constants_are_those_that_we_build() -> None:
    state = Fixture("vfmvae_decoder_plain").weights
    assert wrong_constants(state) == []
    blur, bias = (
        "synthesis.blocks.3.last_upsample_conv.blur_weight",
        "ldm_adapter.post_quant.blocks.0.attn.zero_k_bias",
    )
    other = {**state, blur: torch.full((32, 1, 5, 5), 0.04), bias: state[bias] + 0.1}
    assert wrong_constants(other) == [f"{bias} is not zero", f"{blur} is not the binomial blur"]
