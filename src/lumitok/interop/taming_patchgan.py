"""VQGAN's PatchGAN (taming-transformers, arXiv 2012.09841), which latent diffusion's checkpoints hold.

Its ``main`` numbers convolutions, norms and slopes in turn; ours numbers layers. Sizes are equal, nothing is
transposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

SIZES = {"scales": 1, "padding": 1, "norm": "batch", "loss": "hinge"}
"""What it always is, as ``patch_discriminator`` has it."""
UNREAD = (".running_mean", ".running_var", ".num_batches_tracked")
"""Ends of keys of batch norms in eval mode, in which it never judges."""
_CONVOLUTION = re.compile(r"main\.(\d+)\.weight")


def official_key(name: str) -> str:
    """Official key of a name in ``PatchDiscriminator``, such as ``networks.0.1.conv.weight``."""
    _, _, layer, part, leaf = name.split(".")
    place = max(0, 3 * int(layer) - 1) + ("conv", "norm").index(part)
    return f"main.{place}.{leaf}"


def official_keys(names: Iterable[str]) -> dict[str, str]:
    """Official key of each name in the state of a run's discriminators, of which it is the only one."""
    return {name: official_key(name.removeprefix("patch.")) for name in names}


def strided_layers(state: Mapping[str, object]) -> int:
    """Layers that halve the picture, counted in an official state; 1 at least."""
    places = [int(match[1]) for key in state if (match := _CONVOLUTION.fullmatch(key))]
    return max(1, (max(places, default=0) - 2) // 3)


def first_channels(state: Mapping[str, object]) -> int:
    """Channels of the first layer; VQGAN's where the state does not say."""
    first = state.get("main.0.weight")
    return first.shape[0] if isinstance(first, Tensor) and first.numel() else 64
