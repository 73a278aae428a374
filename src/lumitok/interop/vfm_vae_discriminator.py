"""Weights of the official VFM-VAE discriminator, renamed for lumitok's."""

from __future__ import annotations

import re

from torch import Tensor

# Official place in a head -> lumitok's name. Sizes are equal, nothing is transposed.
LAYERS = {
    "main.0.0": "conv_in",
    "main.0.1": "norm_in",
    "main.1.fn.0": "conv_mid",
    "main.1.fn.1": "norm_mid",
    "cls": "conv_out",
}
HEAD_KEY = re.compile(r"heads\.(\d+)\.(" + "|".join(map(re.escape, LAYERS)) + r")\.(\w+)")


def convert_heads(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the heads of an official discriminator.

    Args:
        state: the official state dict, keys such as ``heads.0.main.0.0.weight_orig``.

    Returns:
        The state of ``FoundationDiscriminator.heads``, and the keys that are no head's: the frozen
        backbone, which lumitok reads from its own source.
    """
    heads: dict[str, Tensor] = {}
    left_out: list[str] = []
    for key, value in state.items():
        match = HEAD_KEY.fullmatch(key)
        if match is None:
            left_out.append(key)
            continue
        index, layer, name = match.groups()
        heads[f"{index}.{LAYERS[layer]}.{'weight' if name == 'weight_orig' else name}"] = value
    return heads, left_out
