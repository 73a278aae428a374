"""The latent diffusion decoder against numbers computed with VA-VAE's public code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lumitok.interop.ldm import decoder_to_ours
from lumitok.tokenizers.ldm import LDMDecoder
from tests.parity.fixtures import Fixture


class WithConvolution(nn.Module):
    """The decoder behind the 1x1 convolution that the fixture begins with."""

    def __init__(self, fixture: Fixture) -> None:
        super().__init__()
        settings = fixture.arguments
        latent = settings["latent_channels"]
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        self.decoder = LDMDecoder(
            latent,
            settings["channels"],
            tuple(settings["multipliers"]),
            settings["res_blocks_per_level"],
        )

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv(z))
        return image


def test_decoder() -> None:
    fixture = Fixture("vavae_decoder")
    module = WithConvolution(fixture)
    module.load_state_dict(decoder_to_ours(fixture.weights), strict=True)
    fixture.check(image=module(fixture.inputs["z"]))


def test_unknown_keys_are_left_for_the_strict_load() -> None:
    fixture = Fixture("vavae_decoder")
    state = decoder_to_ours(fixture.weights | {"decoder.up.0.blokc.0.bias": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*decoder\.levels\.1\.blokc\.0\.bias"):
        WithConvolution(fixture).load_state_dict(state, strict=True)


def test_the_full_decoder_has_the_count_of_the_specification() -> None:
    with torch.device("meta"):
        decoder = LDMDecoder(32)
        assert decoder(torch.empty(1, 32, 16, 16)).shape == (1, 3, 256, 256)
    assert sum(p.numel() for p in decoder.parameters()) == 41_417_603
