"""Weights of the official VFM-VAE discriminators, under lumitok's names.

The official ``ProjectedDiscriminator`` has ``heads`` on a frozen DINO (``dino``), and in the last stage a
PatchGAN (``patchgan_discriminator``). Sizes are equal, nothing is transposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

HEADS, BACKBONE, PATCH = "heads.", "dino.model.model.", "patchgan_discriminator."
UNREAD = (f"{BACKBONE}norm.weight", f"{BACKBONE}norm.bias")
"""The backbone's last norm, which no head reads."""
# lumitok's layer of a head -> the official one.
LAYERS = {
    "conv_in": "main.0.0",
    "norm_in": "main.0.1",
    "conv_mid": "main.1.fn.0",
    "norm_mid": "main.1.fn.1",
    "conv_out": "cls",
}
_PATCH_KEY = re.compile(r"scale(\d+)_layer(\d+)\..*")


def head_key(name: str) -> str:
    """Official key of a name in ``FoundationDiscriminator.heads``, such as ``0.conv_in.weight``."""
    index, layer, leaf = name.split(".")
    normalised = leaf == "weight" and layer.startswith("conv")  # Torch's spectral norm keeps the original.
    return f"{HEADS}{index}.{LAYERS[layer]}.{'weight_orig' if normalised else leaf}"


def patch_key(name: str, scales: int) -> str:
    """Official key of a name in ``PatchDiscriminator``, without the PatchGAN's prefix.

    Scale 0 is the smallest there, and the full picture here.
    """
    _, scale, layer, part, leaf = name.split(".")
    return f"scale{scales - 1 - int(scale)}_layer{layer}.{('conv', 'norm').index(part)}.{leaf}"


def official_keys(names: Iterable[str], scales: int) -> dict[str, str]:
    """Official key of each name in the state of a run's discriminators, frozen encoder included."""
    keys = {}
    for name in names:
        part, inner = name.split(".", 1)
        if part == "patch":
            keys[name] = PATCH + patch_key(inner, scales)
        elif inner.startswith("heads."):
            keys[name] = head_key(inner.removeprefix("heads."))
        else:
            keys[name] = BACKBONE + inner.removeprefix("encoder.model.")
    return keys


def patch_sizes(state: Mapping[str, object]) -> dict[str, int]:
    """Read the sizes of an official PatchGAN, as ``patch_discriminator`` has them; empty where none is."""
    found = {key: _PATCH_KEY.fullmatch(key.removeprefix(PATCH)) for key in state if key.startswith(PATCH)}
    places = [(int(match[1]), int(match[2])) for match in found.values() if match]
    if not places:
        return {}
    first = state.get(f"{PATCH}scale0_layer0.0.weight")
    sizes = {"scales": 1 + max(scale for scale, _ in places)}
    sizes["strided_layers"] = max(1, max(layer for _, layer in places) - 1)
    return sizes | ({"channels": first.shape[0]} if isinstance(first, Tensor) and first.numel() else {})
