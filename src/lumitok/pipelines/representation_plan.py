"""Which networks ``lumitok evaluate representation`` opens, and what it measures of which of their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lumitok.config import EncoderConfig
from lumitok.errors import LumitokError, nearest
from lumitok.evaluation.perturbations import Scaled
from lumitok.evaluation.representations import (
    EncoderLayers,
    Latent,
    RawPixels,
    Representation,
    TokenizerLatent,
    open_encoder,
)
from lumitok.foundation import FoundationEncoder, encoder_names
from lumitok.tokenizers import Tokenizer

PIXELS = RawPixels.name
LATENT = "latent"


@dataclass(frozen=True)
class Choices:
    """What is measured, and how; the pipeline's arguments that more than one of its parts reads."""

    k: int
    latent: Latent
    encoder_side: int | None
    scaled: Scaled
    changes: bool
    batch_size: int
    seed: int


@dataclass
class Plan:
    """The networks, and what is made of their blocks.

    Attributes:
        subject: as the user named it.
        networks: each reads the pictures once; their blocks' names differ.
        compared: blocks of the subject, and of its encoder, that are held against the references.
        followed: those of them that are measured on changed pictures too.
        references: names of the blocks they are held against.
        probed: blocks that get a linear probe.
        tokenizer: the subject, where it is one.
    """

    subject: str
    networks: list[Representation]
    compared: list[str]
    followed: list[str]
    references: list[str]
    probed: list[str]
    tokenizer: Tokenizer | None = None

    def network_of(self, block: str) -> Representation:
        """Return the network that a block belongs to."""
        for network in self.networks:
            names = network.block_names if isinstance(network, EncoderLayers) else [network.name]
            if block in names:
                return network
        raise AssertionError(block)


def kind(subject: str | EncoderConfig) -> Literal["tokenizer", "encoder", "pixels"]:
    """Say what the user means: ``tokenizer``, ``encoder`` or ``pixels``."""
    if isinstance(subject, EncoderConfig):
        return "encoder"
    if Path(subject).is_dir():
        return "tokenizer"
    if subject == PIXELS:
        return "pixels"
    name = subject.partition("=")[0]
    if name in encoder_names() or name.startswith("timm:"):
        return "encoder"
    if subject.count("/") == 1 and not subject.startswith((".", "/", "~")):
        return "tokenizer"
    raise LumitokError(
        f"'{subject}' is neither a folder with a tokenizer, nor a hub id, nor an encoder, nor "
        f"'{PIXELS}'{nearest(name, [*encoder_names(), PIXELS])}"
    )


def make_plan(
    subject: str | EncoderConfig,
    tokenizer: Tokenizer | None,
    references: Sequence[str | EncoderConfig],
    layers: Sequence[int] | None,
    size: int,
    choices: Choices,
    device: torch.device,
) -> Plan:
    """Open the networks and decide which of their blocks are measured how."""
    if layers is not None and kind(subject) != "encoder":
        raise LumitokError("layers are chosen of an encoder alone; a tokenizer's encoder has its own")
    plan = Plan(str(subject), [], [], [], [], [])
    own: EncoderLayers | None = None
    if tokenizer is not None:
        plan.tokenizer = tokenizer
        plan.networks.append(TokenizerLatent(tokenizer, choices.latent, choices.seed))
        plan.compared, plan.followed, plan.probed = [LATENT], [LATENT], [LATENT]
        encoder = _own_encoder(tokenizer)
        own = EncoderLayers(encoder.to(device), size) if encoder is not None else None
        main = [_end(own)] if own else []
    elif kind(subject) == "encoder":
        wanted = list(dict.fromkeys([*(layers or []), -1]))
        found = open_encoder(subject, size, side=choices.encoder_side, layers=wanted)
        own = EncoderLayers(found.to(device), size)
        plan.subject = found.name
        main = own.block_names
    else:
        main = []
    if own is not None:
        plan.networks.append(own)
        plan.compared += own.block_names
    pixels = RawPixels()
    plan.networks.append(pixels)
    if tokenizer is None and own is None:
        plan.compared, main = [pixels.name], [pixels.name]
    plan.followed += main
    plan.probed += list(dict.fromkeys([*main, pixels.name]))
    _add_references(plan, own, references, size, choices, device)
    return plan


def _add_references(
    plan: Plan,
    own: EncoderLayers | None,
    references: Sequence[str | EncoderConfig],
    size: int,
    choices: Choices,
    device: torch.device,
) -> None:
    for spec in references:
        if own is not None and spec == own.name:
            block = _end(own)
        else:
            encoder = open_encoder(spec, size, side=choices.encoder_side).to(device)
            network = EncoderLayers(encoder, size)
            plan.networks.append(network)
            block = _end(network)
        if block in plan.references:
            raise LumitokError(f"the reference '{block}' is named twice")
        plan.references.append(block)
    if own is not None and not references:
        plan.references.append(_end(own))


def _own_encoder(tokenizer: Tokenizer) -> FoundationEncoder | None:
    """Return a tokenizer's foundation encoder as it was before any training; None where it has none."""
    if tokenizer.frozen is not None:
        return tokenizer.frozen
    if tokenizer.foundation is None or tokenizer.settings.encoder.weights == "random":
        return None
    return FoundationEncoder(tokenizer.settings.encoder.model_copy(update={"sha256": None}))


def _end(encoder: EncoderLayers) -> str:
    """Return the block that stands for an encoder: its end, or the last layer that it is read at."""
    return encoder.name if encoder.name in encoder.block_names else encoder.block_names[-1]
