"""VA-VAE's checkpoints (LightningDiT), and what else latent diffusion's training code wrote.

Their sizes are worked out from the shapes of their tensors; nothing but those says them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from lumitok.config import LDMConfig, first_fault
from lumitok.errors import LumitokError, some
from lumitok.interop.vfm_vae_file import read_file
from lumitok.interop.witnesses import Witnesses

DROPPED = {
    "foundation_model": "the foundation encoder of the VF loss, which losses.vf_encoder names here",
    "loss": "the perceptual network of its training, and the likelihood's variance",
    "linear_proj": "the projection of a foundation encoder's features to z; the VF head is of z to them",
}
"""First steps of the keys that are left out, and what they are."""
_JUDGE = "loss.discriminator."


@dataclass(frozen=True)
class VAVAE:
    """A checkpoint, taken apart."""

    state: dict[str, Any]
    """The autoencoder's own."""
    discriminator: dict[str, Any]
    """Its PatchGAN's, under taming-transformers' keys; empty where there is none."""
    dropped: dict[str, int]
    """How many keys were left out, by their first step."""
    others: list[str] = field(default_factory=list)
    """What lay beside the state."""


def open_va_vae(file: Path) -> VAVAE:
    """Read a checkpoint: a state dict, bare or under ``state_dict``.

    Nothing in the file is executed.

    Raises:
        LumitokError: the file cannot be read, or holds no such autoencoder.
    """
    content = read_file(file, "state_dict")
    wrapped = isinstance(content.get("state_dict"), Mapping)
    others = [str(key) for key in content if key != "state_dict"] if wrapped else []
    state: dict[str, Any] = {
        str(key): value for key, value in (content["state_dict"] if wrapped else content).items()
    }
    _check(state, f"'{file}'")
    # A bias is on the projection the other way round alone, that of reverse_proj: false.
    away = {"foundation_model", "loss"} | ({"linear_proj"} if "linear_proj.bias" in state else set())
    judge = {key.removeprefix(_JUDGE): value for key, value in state.items() if key.startswith(_JUDGE)}
    left = [key.split(".")[0] for key in state if not key.startswith(_JUDGE)]
    counts = Counter(step for step in left if step in away)
    kept = {key: value for key, value in state.items() if key.split(".")[0] not in away}
    return VAVAE(kept, judge, dict(sorted(counts.items())), others)


def _check(state: Mapping[str, Any], source: str) -> None:
    if any(key.startswith(("encoder.down.", "decoder.up.")) for key in state):
        return
    if any(key.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for key in state):
        raise LumitokError(f"{source} has diffusers' names; import its folder: `import-weights diffusers`")
    if "G_ema" in state or "G" in state:
        raise LumitokError(f"{source} is laid out as a VFM-VAE; import it so: `import-weights vfm-vae`")
    raise LumitokError(
        f"{source} is no VA-VAE: none of its {len(state)} keys begins with encoder.down. or decoder.up.; the "
        f"first are {some(list(state), 5) or 'none'}"
    )


def read_settings(state: Mapping[str, Any], image_size: int | None = None) -> LDMConfig:
    """Work out the config from the shapes of the state's tensors.

    Args:
        state: by VA-VAE's keys.
        image_size: side of the pictures in pixels, which no shape says; None: 256.

    Raises:
        LumitokError: no tokenizer of ours has such sizes.
    """
    seen = Witnesses({key: value.shape for key, value in state.items() if isinstance(value, Tensor)})
    defaults = LDMConfig()
    levels = max(seen.count(r"encoder\.down\.(\d+)\."), seen.count(r"decoder\.up\.(\d+)\."))
    block = r"\.block\.\d+\.(conv1|norm2|conv2)\.(weight|bias)"
    widths = [seen.most(rf"(encoder\.down|decoder\.up)\.{level}{block}", 0) or 0 for level in range(levels)]
    channels = seen.most(r"encoder\.conv_in\.(weight|bias)", 0) or widths[0]
    attention = [
        seen.count(rf"(?:encoder\.down|decoder\.up)\.{level}\.attn\.(\d+)\.") > 0 for level in range(levels)
    ]
    if channels < 1 or any(width % channels or not width for width in widths):
        raise LumitokError(
            f"lumitok has no autoencoder of this file's sizes: its levels have {widths} channels, which are "
            f"not multiples of {channels}, those of its first convolution"
        )
    try:
        return LDMConfig(
            image_size=image_size or defaults.image_size,
            downsampling=2 ** (levels - 1),
            latent_channels=seen.most(r"(decoder\.conv_in|post_quant_conv)\.weight", 1)
            or defaults.latent_channels,
            vf_head="linear_proj.weight" in state,
            vf_channels=seen.most(r"linear_proj\.weight", 0) or defaults.vf_channels,
            channels=channels,
            multipliers=[width // channels for width in widths],
            encoder_blocks=seen.count(r"encoder\.down\.\d+\.block\.(\d+)\.") or defaults.encoder_blocks,
            decoder_blocks=seen.count(r"decoder\.up\.\d+\.block\.(\d+)\.") or defaults.decoder_blocks,
            level_attention=attention,
            middle_attention=seen.count(r"(?:encoder|decoder)\.mid\.attn_(\d+)\.") > 0,
            latent_convolutions=any(key.startswith(("quant_conv.", "post_quant_conv.")) for key in state),
        )
    except ValidationError as error:
        raise LumitokError(
            f"lumitok has no autoencoder of this file's sizes: {first_fault(error, LDMConfig)}"
        ) from None
