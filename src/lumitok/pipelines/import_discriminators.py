"""Released discriminators, put beside the tokenizer where ``init=`` finds them.

They never stand in a tokenizer's way: those that lumitok does not know are left out, and a row says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from lumitok.config import DiscriminatorConfig, EncoderConfig, PatchDiscriminatorConfig
from lumitok.foundation import trained_state
from lumitok.interop import taming_patchgan, vfm_vae_discriminator
from lumitok.interop.faults import compare, told
from lumitok.losses.discriminators.foundation import FoundationDiscriminator
from lumitok.losses.discriminators.patch import PatchDiscriminator
from lumitok.nn.folders import build_filled
from lumitok.pipelines.import_folder import Row, list_faults
from lumitok.training.adversaries import Discriminators
from lumitok.training.checkpoint import DISCRIMINATOR, save_identity, save_tensors

DINO = EncoderConfig(name="dino-small-patch16", layers=[3, 6, 9, 12, 0])
"""What the heads of VFM-VAE's released discriminator read, in their order."""
Read = tuple[Discriminators | None, list[Row]]
"""The discriminators, None where there are none or unknown ones; and what was done, line by line."""


def read_official(state: Mapping[str, Any], listed: Path | None) -> Read:
    """Build the discriminators of an official VFM-VAE, those that it has.

    Args:
        state: under official keys; empty: none.
        listed: file to list every wrong key in, one a line.
    """
    backbone = (vfm_vae_discriminator.HEADS, vfm_vae_discriminator.BACKBONE)
    heads = any(key.startswith(backbone) for key in state)
    sizes = vfm_vae_discriminator.patch_sizes(state)

    def build() -> Discriminators:
        return Discriminators(
            FoundationDiscriminator(DiscriminatorConfig(encoder=DINO), load_weights=False) if heads else None,
            PatchDiscriminator(PatchDiscriminatorConfig(**sizes)) if sizes else None,
        )

    def keys(names: Mapping[str, Any]) -> dict[str, str]:
        return vfm_vae_discriminator.official_keys(names, sizes.get("scales", 0))

    return _read(state, build, keys, vfm_vae_discriminator.UNREAD if heads else (), listed)


def read_taming(state: Mapping[str, Any], listed: Path | None) -> Read:
    """Build the PatchGAN of latent diffusion's training code.

    Args:
        state: under official keys; empty: none.
        listed: file to list every wrong key in, one a line.
    """
    sizes: dict[str, Any] = {
        **taming_patchgan.SIZES,
        "channels": taming_patchgan.first_channels(state),
        "strided_layers": taming_patchgan.strided_layers(state),
    }

    def build() -> Discriminators:
        return Discriminators(patch=PatchDiscriminator(PatchDiscriminatorConfig(**sizes)))

    unread = [key for key in state if key.endswith(taming_patchgan.UNREAD)]
    kept = {key: value for key, value in state.items() if key not in unread}
    judges, rows = _read(kept, build, taming_patchgan.official_keys, (), listed)
    if judges is not None and unread:
        rows.append(Row("discriminators, dropped", len(unread), "statistics of an eval mode, never read"))
    return judges, rows


def save_discriminators(judges: Discriminators, folder: Path) -> None:
    """Write discriminators into a tokenizer's folder, in the form that a checkpoint has them in."""
    training = folder / "training"
    training.mkdir()
    save_tensors(training / DISCRIMINATOR, trained_state(judges))
    save_identity(training, judges.identity())


def _read(
    state: Mapping[str, Any],
    build: Callable[[], Discriminators],
    official_keys: Callable[[Mapping[str, Any]], dict[str, str]],
    unread: tuple[str, ...],
    listed: Path | None,
) -> Read:
    if not state:
        return None, [Row("discriminators", 0, "none in the file")]
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
    keys = official_keys(shapes)
    wanted: dict[str, torch.Size | None] = {key: shapes[name] for name, key in keys.items()}
    wanted |= dict.fromkeys(unread)
    faults = compare(state, wanted)
    if any(faults.values()):
        list_faults(faults, listed)
        about = f"left out, for lumitok does not know them: {told(faults)}"
        return None, [Row("discriminators", len(state), about)]
    ours = {name: state[key] for name, key in keys.items()}
    judges = cast("Discriminators", build_filled(build, ours, "the discriminators' state"))
    return judges, _rows(judges, len(state))


def _rows(judges: Discriminators, held: int) -> list[Row]:
    """Say what was taken over of so many tensors."""
    named = []
    if judges.foundation is not None:
        encoder = judges.foundation.encoder
        named.append(f"foundation, on layers {encoder.config.layers} of {encoder.name}")
    if judges.patch is not None:
        count = len(judges.patch.networks)
        named.append(f"patch, on {count} scale{'s' * (count > 1)}")
    count = len(trained_state(judges))
    rows = [Row("discriminators", count, f"{'; '.join(named)}; init= takes them up")]
    if judges.foundation is not None:
        known = judges.foundation.encoder.weights_hash()[:12]
        rows.append(Row("discriminators, dropped", held - count, f"the frozen encoder's, of hash {known}"))
    return rows
