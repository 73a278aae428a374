"""Which networks ``lumitok evaluate representation`` opens, and what it measures of which of their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from lumitok.config import EncoderConfig
from lumitok.errors import LumitokError, nearest
from lumitok.evaluation.perturbations import Scaled
from lumitok.evaluation.picture_sets import PictureSource
from lumitok.evaluation.protocol import Latent
from lumitok.evaluation.representations import (
    LATENT,
    LATENT_MEAN,
    EncoderLayers,
    RawPixels,
    Representation,
    TokenizerLatent,
    check_names,
    open_encoder,
)
from lumitok.foundation import FoundationEncoder, encoder_names
from lumitok.tokenizers import Tokenizer

PIXELS = RawPixels.name
PAPERS_COUNT = 10_000
"""Pictures that the papers' CKNNA is measured on."""

Subject = str | EncoderConfig | Representation


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
        fingerprint: sha256 of the subject's weights; None where it has none.
        compared: blocks of the subject, and of its encoder, that are held against the references.
        followed: those of them that are measured on changed pictures too.
        references: names of the blocks they are held against.
        probed: blocks that get a linear probe.
        tokenizer: the subject, where it is one.
        networks: the network of each block; each reads the pictures once.
    """

    subject: str
    fingerprint: str | None = None
    compared: list[str] = field(default_factory=list)
    followed: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    probed: list[str] = field(default_factory=list)
    tokenizer: Tokenizer | None = None
    networks: dict[str, Representation] = field(default_factory=dict)

    def add(self, network: Representation, blocks: Sequence[str]) -> None:
        """Add a network; a LumitokError where one of its blocks has the name of another."""
        check_names([*self.networks, *blocks])
        self.networks |= dict.fromkeys(blocks, network)

    def network_of(self, block: str) -> Representation:
        """Return the network that a block belongs to."""
        return self.networks[block]

    def without_noise(self, block: str) -> str:
        """Return the block whose invariance is measured: the posterior's mean in place of its samples.

        Each view has its own sample, and two samples differ where the pictures do not.
        """
        return LATENT_MEAN if block == LATENT and LATENT_MEAN in self.networks else block


def kind(subject: Subject) -> Literal["tokenizer", "encoder", "pixels", "network"]:
    """Say what the user means: ``tokenizer``, ``encoder``, ``pixels`` or a ``network`` already open."""
    if isinstance(subject, EncoderConfig):
        return "encoder"
    if not isinstance(subject, str | Path):
        return "network"
    subject = str(subject)
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
    subject: Subject,
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
    plan = Plan(str(subject))
    own: EncoderLayers | None = None
    if tokenizer is not None:
        plan.tokenizer = tokenizer
        beside = choices.changes and choices.latent == "sample"
        latent = TokenizerLatent(tokenizer, choices.latent, choices.seed, with_mean=beside)
        plan.add(latent, latent.block_names)
        plan.fingerprint = latent.weights
        plan.compared, plan.followed, plan.probed = [LATENT], [LATENT], [LATENT]
        encoder = _own_encoder(tokenizer)
        own = EncoderLayers(encoder.to(device), size) if encoder is not None else None
        main = [_end(own)] if own else []
    elif subject == PIXELS:
        plan.compared = main = [PIXELS]
    elif isinstance(subject, str | EncoderConfig):
        wanted = list(dict.fromkeys([*(layers or []), -1]))
        found = open_encoder(subject, size, side=choices.encoder_side, layers=wanted)
        own = EncoderLayers(found.to(device), size)
        plan.subject, plan.fingerprint = own.name, own.weights
        main = own.block_names
    else:
        plan.subject, plan.fingerprint = subject.name, subject.weights
        plan.compared = main = _blocks_of(subject, size, device)
        plan.add(subject, main)
    if own is not None:
        plan.add(own, own.block_names)
        plan.compared += own.block_names
    pixels = RawPixels()
    plan.add(pixels, [pixels.name])
    plan.followed += main
    plan.probed += list(dict.fromkeys([*main, pixels.name]))
    _add_references(plan, own, references, size, choices, device)
    return plan


def warnings(source: PictureSource, train: PictureSource | None, compared: int | None) -> list[str]:
    """Say what the numbers cannot be taken for.

    Args:
        source: the pictures that are measured.
        train: those that probes are trained on; None: no probe.
        compared: pictures that CKNNA is of; None: no CKNNA.
    """
    found = []
    if compared is not None and compared < PAPERS_COUNT:
        found.append(
            f"CKNNA falls with the number of pictures, and this is of {compared:,}: compare equal counts "
            f"alone; papers take {PAPERS_COUNT:,}"
        )
    if train is not None and train.protocol_set().files == source.protocol_set().files:
        found.append(
            f"the linear probe is trained and measured on the same {len(source):,} files ('{train.name}' and "
            f"'{source.name}'), so its accuracy is not a validation's: train on others"
        )
    return found


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
            block = _end(network)
            if block not in plan.references:
                plan.add(network, network.block_names)
        if block in plan.references:
            raise LumitokError(f"the reference '{block}' is named twice")
        plan.references.append(block)
    if own is not None and not references:
        plan.references.append(_end(own))


def _blocks_of(network: Representation, size: int, device: torch.device) -> list[str]:
    """Return the names of a network's blocks, from a blank picture."""
    if isinstance(network, nn.Module):
        network.to(device)
    with torch.no_grad():
        return [name for name, _ in network.blocks(torch.zeros(1, 3, size, size, device=device), [0])]


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
