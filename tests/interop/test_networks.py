"""Diffusion networks' official keys and ours; what the conversion does to the weights."""

from __future__ import annotations

import pytest
import torch

from lumitok.config.networks import LightningDiTConfig, SiTConfig
from lumitok.diffusion.layers import time_waves
from lumitok.errors import LumitokError
from lumitok.interop import lightningdit, sit
from lumitok.interop.networks import compare_network, drop_sigma, split_pairs, turn_time
from tests.interop.networks import state


def test_every_key_is_accounted_for() -> None:
    weights = state("lightningdit_qknorm")
    settings = lightningdit.read_settings(weights)
    del weights["blocks.1.norm2.weight"], weights["feat_rope.freqs_sin"]
    weights["blocks.0.attn.q_norm.bias"] = torch.zeros(24)
    weights["final_layer.linear.bias"] = torch.zeros(7)
    weights["pos_embed"] = weights["pos_embed"] + 0.01
    weights["t_embedder.mlp.0.bias"][0] = torch.nan
    faults = compare_network(weights, settings, "lightningdit").faults
    assert faults == {
        "missing": ["blocks.1.norm2.weight", "feat_rope.freqs_sin"],
        "unexpected": ["blocks.0.attn.q_norm.bias"],
        "not a tensor of floating-point numbers": [],
        "of another shape": ["final_layer.linear.bias [7], wanted [6]"],
        "not finite": ["t_embedder.mlp.0.bias"],
        "not what lumitok builds": ["pos_embed"],
    }


def test_time_turned_round_twice_is_as_it_was() -> None:
    weight = torch.randn(5, 32, dtype=torch.float64).float()
    last = torch.randn(3, 5)
    first = "time_embedding.mlp.0.weight"
    ours = {first: weight, "final_layer.linear.weight": last, "class_layer.bias": last}
    turn_time(ours)
    t = torch.tensor([0.0, 0.3, 1.0])
    there, here = time_waves(1 - t, 32) @ weight.T, time_waves(t, 32) @ ours[first].T
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours["final_layer.linear.weight"], -last)
    assert torch.equal(ours["class_layer.bias"], -last)
    turn_time(ours)
    torch.testing.assert_close(ours[first], weight, rtol=1e-5, atol=1e-5)


def test_small_conversions() -> None:
    # Two positions of a patch, three channels and their variances.
    assert drop_sigma(torch.arange(12), 3).tolist() == [0, 1, 2, 6, 7, 8]
    # Two heads of four channels.
    assert split_pairs(torch.arange(8), 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("name", "kind"), [("sit_original", "sit"), ("repa_sit", "repa"), ("reg_sit", "reg")]
)
def test_the_kind_is_told_by_the_keys(name: str, kind: str) -> None:
    weights = state(name)
    for other in ("sit", "repa", "reg"):
        if other == kind:
            sit.check_kind(weights, kind, "it")
        else:
            with pytest.raises(LumitokError, match=f"import it so: `import-weights {kind}`"):
                sit.check_kind(weights, other, "it")  # type: ignore[arg-type]


def test_heads_are_the_named_sizes_or_must_be_said() -> None:
    weights = state("sit_original")
    with pytest.raises(LumitokError, match=r"depth 2 and width 48 has.*--heads"):
        sit.read_settings(weights)
    assert sit.read_settings(weights, heads=4).heads == 4
    with pytest.raises(LumitokError, match="lumitok has no SiT of this file's sizes: width 48 over 5 heads"):
        sit.read_settings(weights, heads=5)
    weights = {"blocks.11.attn.proj.bias": torch.zeros(768), "pos_embed": torch.zeros(1, 9, 768)}
    weights["x_embedder.proj.weight"] = torch.zeros(768, 4, 2, 2)
    settings = sit.read_settings(weights)
    assert settings == SiTConfig(size="B", in_channels=4, input_size=6, patch=2, classes=0).model_copy(
        update={"size": None}
    )


def test_positions_that_are_no_square_are_refused() -> None:
    weights = state("lightningdit_qknorm")
    weights["pos_embed"] = torch.zeros(1, 15, 48)
    with pytest.raises(LumitokError, match="a table of 15 positions, which is no square"):
        lightningdit.read_settings(weights)


def test_what_the_shapes_say_of_a_lightningdit_without_classes() -> None:
    weights = state("lightningdit_without_shift")
    settings = lightningdit.read_settings(weights)
    assert isinstance(settings, LightningDiTConfig)
    assert (settings.modulation_shift, settings.rotary, settings.classes) == (False, True, 7)
    del weights["y_embedder.embedding_table.weight"]
    settings = lightningdit.read_settings(weights)
    assert settings.classes == 0
    assert not any(compare_network(weights, settings, "lightningdit").faults.values())
