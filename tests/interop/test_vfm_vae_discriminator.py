from __future__ import annotations

import torch

from lumitok.config import PatchDiscriminatorConfig
from lumitok.interop.vfm_vae_discriminator import convert_patch
from lumitok.losses.discriminators.patch import PatchDiscriminator


def test_the_official_patch_discriminator_numbers_its_scales_from_the_smallest() -> None:
    names = ["scale0_layer0.0.weight", "scale0_layer1.1.bias", "scale1_layer0.0.bias"]
    patch, left_out = convert_patch({name: torch.tensor(float(i)) for i, name in enumerate(names)})
    assert left_out == []
    assert {name: value.item() for name, value in patch.items()} == {
        "networks.1.0.conv.weight": 0.0,
        "networks.1.1.norm.bias": 1.0,
        "networks.0.0.conv.bias": 2.0,
    }


def test_every_weight_has_an_official_name() -> None:
    ours = PatchDiscriminator(PatchDiscriminatorConfig(channels=2, strided_layers=1)).state_dict()
    official = {}
    for key, value in ours.items():
        _, scale, layer, part, name = key.split(".")
        place = ("conv", "norm").index(part)
        official[f"scale{2 - int(scale)}_layer{layer}.{place}.{name}"] = value
    patch, left_out = convert_patch(official)
    assert left_out == []
    assert set(patch) == set(ours)
    assert all(patch[key] is value for key, value in ours.items())


def test_other_keys_are_left_out_by_name() -> None:
    state = {"scale0_layer0.0.weight": torch.zeros(1), "heads.0.cls.bias": torch.zeros(1)}
    patch, left_out = convert_patch(state)
    assert list(patch) == ["networks.0.0.conv.weight"]
    assert left_out == ["heads.0.cls.bias"]
    assert convert_patch({}) == ({}, [])
