"""Encoder and decoder of latent diffusion against VA-VAE's public code, and the whole against diffusers'."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lumitok.config import LDMConfig
from lumitok.interop.ldm import compare_with, compvis_name, diffusers_name
from lumitok.tokenizers import LDMVAE
from lumitok.tokenizers.ldm import LDMDecoder, LDMEncoder
from lumitok.tokenizers.posterior import DiagonalGaussian
from tests.interop import kl
from tests.parity.fixtures import Fixture, relative_error


class Side(nn.Module):
    """The encoder and the 1x1 convolution after it, or the one before the decoder and the decoder."""

    def __init__(self, fixture: Fixture, *, encodes: bool) -> None:
        super().__init__()
        settings = fixture.arguments
        latent, blocks = settings["latent_channels"], settings["res_blocks_per_level"]
        sizes = (latent, settings["channels"], tuple(settings["multipliers"]), blocks)
        if encodes:
            self.encoder = LDMEncoder(*sizes)
            self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        else:
            self.post_quant_conv = nn.Conv2d(latent, latent, 1)
            self.decoder = LDMDecoder(*sizes)
        name = partial(compvis_name, levels=len(settings["multipliers"]))
        assert {name(key) for key in self.state_dict()} == set(fixture.weights)
        self.load_state_dict({key: fixture.weights[name(key)] for key in self.state_dict()})


def test_decoder() -> None:
    fixture = Fixture("vavae_decoder")
    side = Side(fixture, encodes=False)
    fixture.check(image=side.decoder(side.post_quant_conv(fixture.inputs["z"])))


def test_encoder() -> None:
    fixture = Fixture("vavae_encoder")
    side = Side(fixture, encodes=True)
    output = side.encoder(fixture.inputs["image"])
    posterior = DiagonalGaussian(side.quant_conv(output))
    fixture.check(
        encoder_output=output,
        moments=side.quant_conv(output),
        mean=posterior.mean,
        std=posterior.std,
        kl=posterior.kl(),
    )


# The whole against diffusers' AutoencoderKL -----------------------------------------------------

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SD-VAE, f8d4": ({}, {}),
    "without 1x1 convolutions, f8d16": (
        {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16},
        {"latent_convolutions": False, "latent_channels": 16},
    ),
    "VA-VAE, f16d32, attention at the latent's size": (
        {**kl.VA, "block_out_channels": [32, 32, 32, 32, 64], "layers_per_block": 2, "latent_channels": 32},
        {
            "downsampling": 16,
            "multipliers": [1, 1, 1, 1, 2],
            "latent_channels": 32,
            "encoder_blocks": 2,
            "decoder_blocks": 3,
            "level_attention": True,
        },
    ),
    "latent diffusion's f32, attention at two sizes": (
        {
            "block_out_channels": [32] * 5 + [64],
            "norm_num_groups": 8,  # Groups of one channel at one or two places would blow up rounding.
            "down_block_types": ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"] * 2,
            "up_block_types": ["AttnUpDecoderBlock2D"] * 2 + ["UpDecoderBlock2D"] * 4,
        },
        {
            "downsampling": 32,
            "multipliers": [1, 1, 1, 1, 1, 2],
            "groups": 8,
            "level_attention": [False, False, False, False, True, True],
        },
    ),
    "f2, no attention anywhere": (
        {
            "block_out_channels": [16, 32],
            "norm_num_groups": 8,
            "mid_block_add_attention": False,
            **{name: kinds[:2] for name, kinds in kl.SD.items()},
        },
        {"downsampling": 2, "channels": 16, "multipliers": [1, 2], "groups": 8, "middle_attention": False},
    ),
    "wide levels before narrow ones": (
        {"block_out_channels": [32, 96, 64, 32]},
        {"multipliers": [1, 3, 2, 1]},
    ),
}


def both(case: str) -> tuple[nn.Module, LDMVAE]:
    theirs = kl.autoencoder_kl(**CASES[case][0])
    settings: LDMConfig = kl.settings(**CASES[case][1])
    compared = compare_with(theirs.state_dict(), settings, diffusers_name)
    assert not any(compared.faults.values())
    ours = LDMVAE(settings).eval()
    ours.load_state_dict(compared.state)
    return theirs, ours


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_whole_is_diffusers_autoencoder(case: str) -> None:
    theirs, ours = both(case)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    x = pictures(2, 3, 32, 64)
    wanted, found = theirs.encode(x).latent_dist, ours.encode(x).latent_dist
    for name in ("mean", "logvar", "std"):
        assert relative_error(getattr(found, name), getattr(wanted, name)) < 1e-5, name
    z = wanted.sample(torch.Generator().manual_seed(4))
    assert relative_error(found.sample(torch.Generator().manual_seed(4)), z) < 1e-5
    assert relative_error(ours.decode(z).sample, theirs.decode(z).sample) < 1e-5


@pytest.mark.parametrize("case", list(CASES)[1:3])
@torch.no_grad()
def test_so_are_its_sides_at_odd_sizes(case: str) -> None:
    theirs, ours = both(case)
    x = pictures(1, 3, 37, 51)
    moments = theirs.encoder(x)
    assert relative_error(ours.encoder(x), moments) < 1e-5
    z = moments[:, : ours.settings.latent_channels]
    assert relative_error(ours.decoder(z), theirs.decoder(z)) < 1e-5


def test_the_full_sizes_have_the_counts_of_the_specification() -> None:
    with torch.device("meta"):
        decoder, encoder = LDMDecoder(32), LDMEncoder(32)
        assert decoder(torch.empty(1, 32, 16, 16)).shape == (1, 3, 256, 256)
        assert encoder(torch.empty(1, 3, 256, 256)).shape == (1, 64, 16, 16)
    assert sum(p.numel() for p in decoder.parameters()) == 41_417_603
    assert sum(p.numel() for p in encoder.parameters()) == 28_413_248
