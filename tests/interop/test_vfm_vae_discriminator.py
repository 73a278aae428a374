from __future__ import annotations

import pytest
import torch

from lumitok.config import PatchDiscriminatorConfig
from lumitok.interop.vfm_vae_discriminator import PATCH, official_keys, patch_key, patch_sizes
from lumitok.losses.discriminators.patch import PatchDiscriminator


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("foundation.heads.3.conv_in.weight", "heads.3.main.0.0.weight_orig"),
        ("foundation.heads.3.conv_in.weight_u", "heads.3.main.0.0.weight_u"),
        ("foundation.heads.0.norm_mid.weight", "heads.0.main.1.fn.1.weight"),
        ("foundation.heads.0.conv_out.bias", "heads.0.cls.bias"),
        ("foundation.encoder.model.blocks.2.norm1.bias", "dino.model.model.blocks.2.norm1.bias"),
        # The official scales are numbered from the smallest.
        ("patch.networks.0.1.norm.bias", "patchgan_discriminator.scale2_layer1.1.bias"),
        ("patch.networks.2.0.conv.weight", "patchgan_discriminator.scale0_layer0.0.weight"),
    ],
)
def test_official_keys(name: str, key: str) -> None:
    assert official_keys([name], scales=3) == {name: key}


def test_a_patch_discriminator_s_sizes_are_read_from_its_keys() -> None:
    sizes = {"channels": 2, "strided_layers": 1, "scales": 2}
    ours = PatchDiscriminator(PatchDiscriminatorConfig(**sizes)).state_dict()
    official = {PATCH + patch_key(name, 2): value for name, value in ours.items()}
    assert len(official) == len(ours)
    assert patch_sizes(official) == sizes
    assert patch_sizes({"heads.0.cls.bias": torch.zeros(1)}) == {}
