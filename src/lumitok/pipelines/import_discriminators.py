"""The released VFM-VAE's discriminators, put beside the tokenizer where ``init=`` finds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from lumitok.config import DiscriminatorConfig, EncoderConfig, PatchDiscriminatorConfig
from lumitok.foundation import trained_state
from lumitok.interop.faults import compare
from lumitok.interop.vfm_vae_discriminator import (
    BACKBONE,
    HEADS,
    UNREAD,
    official_keys,
    patch_sizes,
)
from lumitok.losses.discriminators.foundation import FoundationDiscriminator
from lumitok.losses.discriminators.patch import PatchDiscriminator
from lumitok.nn.folders import build_filled
from lumitok.pipelines.import_folder import Row, check_faults
from lumitok.training.adversaries import Discriminators
from lumitok.training.checkpoint import DISCRIMINATOR, save_identity, save_tensors


def read_discriminators(
    state: Mapping[str, Any], encoder: EncoderConfig, source: str, listed: Path | None
) -> Discriminators:
    """Build the discriminators of an official state, those that it has.

    Args:
        state: under official keys.
        encoder: what the heads read.
        source: the file, for the message.
        listed: file to list every wrong key in, one a line.

    Raises:
        WrongFileError: keys are missing, left over, of another shape or hold no numbers.
    """
    heads = any(key.startswith((HEADS, BACKBONE)) for key in state)
    sizes = patch_sizes(state)

    def build() -> Discriminators:
        return Discriminators(
            FoundationDiscriminator(DiscriminatorConfig(encoder=encoder), load_weights=False)
            if heads
            else None,
            PatchDiscriminator(PatchDiscriminatorConfig(**sizes)) if sizes else None,
        )

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
    keys = official_keys(shapes, sizes.get("scales", 0))
    wanted: dict[str, torch.Size | None] = {key: shapes[name] for name, key in keys.items()}
    wanted |= dict.fromkeys(UNREAD if heads else ())
    said = (
        f"{source} holds discriminators that lumitok does not know; --without-discriminators leaves them out"
    )
    check_faults(said, compare(state, wanted), listed)
    return cast(
        "Discriminators", build_filled(build, {name: state[key] for name, key in keys.items()}, source)
    )


def save_discriminators(judges: Discriminators, folder: Path) -> None:
    """Write discriminators into a tokenizer's folder, in the form that a checkpoint has them in."""
    training = folder / "training"
    training.mkdir()
    save_tensors(training / DISCRIMINATOR, trained_state(judges))
    save_identity(training, judges.encoders())


def discriminator_rows(judges: Discriminators | None, held: int) -> list[Row]:
    """Say what was done with the file's discriminators, which had so many tensors."""
    if judges is None:
        return [Row("discriminators", 0, "left out" if held else "none in the file")]
    named = []
    if judges.foundation is not None:
        encoder = judges.foundation.encoder
        named.append(f"foundation, on layers {encoder.config.layers} of {encoder.name}")
    if judges.patch is not None:
        named.append(f"patch, on {len(judges.patch.networks)} scales")
    count = len(trained_state(judges))
    rows = [Row("discriminators", count, f"{'; '.join(named)}; init= takes them up")]
    if judges.foundation is not None:
        (known,) = judges.encoders().values()
        rows.append(Row("discriminators, dropped", held - count, f"the frozen encoder's, of hash {known}"))
    return rows
