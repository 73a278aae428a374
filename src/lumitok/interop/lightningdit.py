"""LightningDiT's checkpoints: the config that the shapes of their tensors say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from lumitok.config import first_fault
from lumitok.config.networks import LightningDiTConfig
from lumitok.errors import LumitokError
from lumitok.interop.networks import common_sizes, witnesses


def read_settings(state: Mapping[str, Any], heads: int | None = None) -> LightningDiTConfig:
    """Work out the config from the shapes of the state's tensors.

    Args:
        state: by the official keys.
        heads: attention heads, which no shape says where there is neither ``qk_norm`` nor a rotary table;
            None: those of the named size.

    Raises:
        LumitokError: no network of ours has such sizes.
    """
    seen = witnesses(state)
    sizes = common_sizes(seen, heads)
    rows = seen.most(r"blocks\.\d+\.adaLN_modulation\.1\.(weight|bias)", 0)
    try:
        return LightningDiTConfig(
            **sizes,
            qk_norm=seen.count(r"blocks\.(\d+)\.attn\.[qk]_norm\.") > 0,
            norm="rms" if seen.count(r"blocks\.(\d+)\.norm[12]\.weight") else "layer",
            mlp="swiglu" if seen.count(r"blocks\.(\d+)\.mlp\.w(12|3)\.") else "gelu",
            rotary=any(key.startswith("feat_rope.") for key in state),
            modulation_shift=rows != 4 * sizes["width"],
        )
    except ValidationError as error:
        raise LumitokError(
            f"lumitok has no LightningDiT of this file's sizes: {first_fault(error, LightningDiTConfig)}"
        ) from None
