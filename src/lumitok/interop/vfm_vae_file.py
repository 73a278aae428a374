"""The official VFM-VAE files: what a checkpoint holds, and the latent's statistics beside it.

Nothing in a file is executed: it is read as tensors and plain values or not at all.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lumitok.errors import LumitokError, nearest
from lumitok.foundation.weights import read_weights
from lumitok.interop.vfm_vae_settings import FAMILIES

GENERATORS = {"G_ema": "G_ema", "G": "G, the weights without averaging (there is no G_ema)"}
"""Parts of a checkpoint that hold a generator, the better one first, and what to call them."""
DISCRIMINATORS = "D"
"""The part of a checkpoint that holds the discriminators."""


@dataclass(frozen=True)
class Generator:
    """A generator's state, the part of the file it is, and the names of the parts beside it."""

    part: str
    state: dict[str, Any]
    others: list[str]


def read_file(file: Path, part: str = "G_ema") -> dict[str, Any]:
    """Read a file of tensors and plain values.

    Args:
        file: a torch file or safetensors.
        part: what a user who trusts a file with code in it should save of it, for the message.

    Raises:
        LumitokError: there is none, it is damaged, or reading it would mean to run a pickle's code.
    """
    if not file.is_file():
        beside = [str(p) for p in file.parent.glob("*")] if file.parent.is_dir() else []
        raise LumitokError(f"there is no file '{file}'{nearest(str(file), beside)}")
    try:
        return read_weights(file)
    except LumitokError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        raise LumitokError(
            f"'{file}' is damaged, or holds more than tensors and plain values; reading that would run code "
            "out of it, which lumitok never does. Where you trust the file, save the weights alone, with the "
            "code it was written by, and import NEW: "
            f'torch.save({{"{part}": torch.load(FILE, weights_only=False)["{part}"]}}, NEW), with '
            "`.state_dict()` after it if that is a module"
        ) from error


def find_generator(content: Mapping[str, Any], source: str) -> Generator:
    """Find the generator: G_ema, else G, else the file itself; each bare or under ``state_dict``.

    Raises:
        LumitokError: the file has parts, and none of them is a generator.
    """
    if isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    for part, said in GENERATORS.items():
        if isinstance(content.get(part), Mapping):
            others = [str(name) for name in content if name != part]
            return Generator(said, _named(content[part], source), others)
    known = any(str(key).startswith(FAMILIES) for key in content)
    if not known and any(isinstance(value, Mapping) for value in content.values()):
        some = ", ".join(map(str, list(content)[:5]))
        raise LumitokError(
            f"{source} has no generator: neither G_ema nor G, but {some}; is it the tokenizer's checkpoint?"
        )
    return Generator("the state dict", _named(content, source), [])


def find_discriminators(content: Mapping[str, Any]) -> dict[str, Any]:
    """Find the discriminators' state, bare or under ``state_dict``; empty where the file has none."""
    if isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    state = content.get(DISCRIMINATORS)
    # They never stand in a generator's way: a key that is no name is one that nothing has.
    return {str(key): value for key, value in state.items()} if isinstance(state, Mapping) else {}


def _named(state: Mapping[Any, Any], source: str) -> dict[str, Any]:
    strange = [key for key in state if not isinstance(key, str)]
    if strange:
        raise LumitokError(f"{source} is no state dict: it has the key {strange[0]!r}, which is no name")
    return dict(state)


def read_latent_statistics(file: Path, channels: int) -> tuple[Tensor, Tensor]:
    """Read ``latents_stats.pt``: mean and standard deviation of each latent channel, (channels,) each.

    Raises:
        LumitokError: they are not there, are for another number of channels, or cannot be divided by.
    """
    content = read_file(file)
    found = []
    for name in ("mean", "std"):
        value = content.get(name)
        if not isinstance(value, Tensor) or value.shape not in ((1, channels, 1, 1), (channels,)):
            got = list(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise LumitokError(
                f"'{file}' does not hold this latent's statistics: {name} is {got}, "
                f"wanted a tensor of [1, {channels}, 1, 1]"
            )
        found.append(value.flatten().float())
    mean, std = found
    if not bool(mean.isfinite().all()) or not bool((std.isfinite() & (std > 0)).all()):
        raise LumitokError(
            f"'{file}' holds statistics that are not finite, or a deviation that is not above 0"
        )
    return mean, std
