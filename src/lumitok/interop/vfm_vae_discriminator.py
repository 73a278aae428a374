"""Weights of the official VFM-VAE discriminators, renamed for lumitok's."""

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
PATCH_KEY = re.compile(r"scale(\d+)_layer(\d+)\.([01])\.(\w+)")


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


def convert_patch(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename an official PatchGAN.

    Args:
        state: the official state dict, keys such as ``scale2_layer0.0.weight``. Scale 0 is the smallest
            there, and the full picture here.

    Returns:
        The state of ``PatchDiscriminator``, and the keys that are none of a PatchGAN's.
    """
    matches = {key: PATCH_KEY.fullmatch(key) for key in state}
    last = max((int(match[1]) for match in matches.values() if match), default=0)
    patch: dict[str, Tensor] = {}
    left_out: list[str] = []
    for key, match in matches.items():
        if match is None:
            left_out.append(key)
            continue
        scale, layer, part, name = match.groups()
        patch[f"networks.{last - int(scale)}.{layer}.{('conv', 'norm')[int(part)]}.{name}"] = state[key]
    return patch, left_out
