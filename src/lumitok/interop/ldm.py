"""Weights of a latent diffusion decoder (CompVis, VA-VAE): its keys under our names."""

from __future__ import annotations

import re

from torch import Tensor

_RULES = [
    (r"\.mid\.block_1\.", ".middle.0."),
    (r"\.mid\.attn_1\.", ".middle.1."),
    (r"\.mid\.block_2\.", ".middle.2."),
    (r"\.block\.(\d+)\.", r".blocks.\1."),
    (r"\.attn\.(\d+)\.", r".attention.\1."),
    (r"\.nin_shortcut\.", ".shortcut."),
    (r"\.proj_out\.", ".out."),
    (r"\.upsample\.conv\.", ".upsample."),
]
_LEVEL = re.compile(r"^decoder\.up\.(\d+)\.")


def decoder_to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a decoder, ``decoder.up.0.block.1.conv1.weight`` and so on.

    Their levels are numbered from the picture's size, ours from the latent's. Keys that no rule knows keep
    their names, so that a strict load reports them.
    """
    numbers = [int(match[1]) for key in state if (match := _LEVEL.match(key))]
    last = max(numbers, default=0)
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _LEVEL.sub(lambda match: f"decoder.levels.{last - int(match[1])}.", key)
        if name.startswith("decoder."):
            for pattern, replacement in _RULES:
                name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed
