"""diffusers' AutoencoderKL, tiny and random, and the same weights in the layouts of others."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lumitok.config import LDMConfig
from lumitok.interop.ldm import compvis_name
from lumitok.tokenizers import LDMVAE

SD = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
"""Block types of the SD-VAE's layout, f8."""
VA = {
    "down_block_types": ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4,
}
"""Those of VA-VAE's, f16, with attention at the latent's size."""


def shake(model: torch.nn.Module, seed: int = 0) -> None:
    """Move every weight from where it starts: no norm stays at one, no bias at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def autoencoder_kl(**changes: Any) -> AutoencoderKL:
    """diffusers' model with all its weights random; the SD-VAE's layout but for its sizes."""
    sizes = {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1, "sample_size": 32}
    torch.manual_seed(0)
    model = AutoencoderKL(**{**SD, **sizes, **changes})
    shake(model)
    return model.eval()


def settings(**changes: Any) -> LDMConfig:
    """A tiny LDMVAE's: f8, four channels, the SD-VAE's layout."""
    sizes = {"image_size": 32, "downsampling": 8, "latent_channels": 4, "channels": 32}
    layout = {"multipliers": [1, 1, 2, 2], "encoder_blocks": 1, "decoder_blocks": 2, "level_attention": False}
    return LDMConfig(**{**sizes, **layout, **changes})


def va_vae(**changes: Any) -> tuple[LDMVAE, dict[str, Tensor]]:
    """A tiny VA-VAE, and its state under the official names."""
    layout = {"downsampling": 16, "multipliers": [1, 1, 1, 1, 2], "level_attention": True}
    torch.manual_seed(0)
    chosen = settings(**{**layout, "vf_head": True, "vf_channels": 6, **changes})
    tokenizer = LDMVAE(chosen).eval()
    shake(tokenizer)
    name = partial(compvis_name, levels=len(chosen.multipliers))
    return tokenizer, {name(key): value.clone() for key, value in tokenizer.state_dict().items()}
