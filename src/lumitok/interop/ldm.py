"""Latent diffusion's autoencoder elsewhere: our weights' names under those of CompVis and of diffusers.

CompVis' names are VA-VAE's too. They number the decoder's levels from the picture's size; ours and
diffusers' go from the latent's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lumitok.config import LDMConfig
from lumitok.interop.faults import Faults, compare
from lumitok.tokenizers import LDMVAE

_COMPVIS = [
    (r"\.middle\.0\.", ".mid.block_1."),
    (r"\.middle\.1\.", ".mid.attn_1."),
    (r"\.middle\.2\.", ".mid.block_2."),
    (r"\.blocks\.(\d+)\.", r".block.\1."),
    (r"\.attention\.(\d+)\.", r".attn.\1."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.out\.", ".proj_out."),
    (r"\.(downsample|upsample)\.", r".\1.conv."),
    (r"^encoder\.levels\.", "encoder.down."),
    (r"^vf_head\.", "linear_proj."),
]
_DIFFUSERS = [
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.blocks\.(\d+)\.", r".resnets.\1."),
    (r"\.attention\.(\d+)\.", r".attentions.\1."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"\.norm\.", ".group_norm."),
    (r"\.([qkv])\.", r".to_\1."),
    (r"\.out\.", ".to_out.0."),
    (r"\.(downsample|upsample)\.", r".\1rs.0.conv."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"^encoder\.levels\.", "encoder.down_blocks."),
    (r"^decoder\.levels\.", "decoder.up_blocks."),
]
_DECODER_LEVEL = re.compile(r"^decoder\.levels\.(\d+)\.")
_ATTENTION = re.compile(r"\.(attention\.\d+|middle\.1)\.(q|k|v|out)\.weight$")


def compvis_name(name: str, levels: int) -> str:
    """Our name of a weight of :class:`LDMVAE` -> CompVis' and VA-VAE's, in a model of so many levels."""
    name = _DECODER_LEVEL.sub(lambda match: f"decoder.up.{levels - 1 - int(match[1])}.", name)
    return _replace(name, _COMPVIS)


def diffusers_name(name: str) -> str:
    """Our name of a weight of :class:`LDMVAE` -> that in diffusers' ``AutoencoderKL``."""
    return _replace(name, _DIFFUSERS)


def _replace(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


@dataclass(frozen=True)
class Comparison:
    """A foreign state beside what it should hold.

    Attributes:
        faults: every difference, by foreign key.
        state: the weights under our names, in float32; whole where there are no faults.
    """

    faults: Faults
    state: dict[str, Tensor]


def compare_with(
    state: Mapping[str, Tensor], settings: LDMConfig, foreign_name: Callable[[str], str]
) -> Comparison:
    """Compare a foreign state with a model of these settings, key by key.

    diffusers keeps an attention's weights as matrices, CompVis as 1x1 convolutions: both are taken.
    """
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LDMVAE(settings).state_dict().items()}
    names = {foreign_name(name): name for name in shapes}
    assert len(names) == len(shapes), "no two of our names have the same foreign one"
    shaped = {
        key: value[..., None, None]
        if isinstance(value, Tensor) and value.ndim == 2 and _ATTENTION.search(names.get(key, ""))
        else value
        for key, value in state.items()
    }
    faults = compare(shaped, {key: shapes[name] for key, name in names.items()})
    ours = {name: shaped[key] for key, name in names.items() if key in shaped}
    return Comparison(faults, ours if any(faults.values()) else {n: v.float() for n, v in ours.items()})
