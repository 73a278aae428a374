"""Official checkpoints of diffusion networks: what lies in them, and which of their weights are taken.

LightningDiT, SiT, REPA and REG write ``model``, ``ema`` and ``opt``, and their settings beside them.
Nothing in a file is executed: it is read as tensors and plain values or not at all.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lumitok.errors import LumitokError, some
from lumitok.interop.vfm_vae_file import read_file

WRAPPER = "module."
"""What DistributedDataParallel puts before every key."""


@dataclass(frozen=True)
class NetworkFile:
    """A network's state and what lay around it.

    Attributes:
        part: the part of the file that it is, in words.
        state: the weights by their official keys, without a wrapper's prefix.
        others: names of the parts beside it.
        arguments: the settings of its training, as far as the file has them.
    """

    part: str
    state: dict[str, Any]
    others: list[str]
    arguments: dict[str, Any]


def open_network(file: Path, *, raw: bool = False) -> NetworkFile:
    """Read a checkpoint: a state dict bare, or under ``ema`` and ``model``.

    Args:
        file: a torch file or safetensors.
        raw: take ``model``, the weights as trained, in place of ``ema``, their average.

    Raises:
        LumitokError: the file cannot be read, or holds no network or not the part asked for.
    """
    part = "model" if raw else "ema"
    # SiT, REPA and REG save their parsed command line, which is nothing but names and values.
    with torch.serialization.safe_globals([Namespace]):
        content = read_file(file, part)
    found = content.get(part)
    if not isinstance(found, Mapping):
        if any(isinstance(content.get(name), Mapping) for name in ("model", "ema")):
            other = "leave --raw out to take ema" if raw else "take model, the weights as trained, with --raw"
            raise LumitokError(f"'{file}' has no {part}; {other}")
        part, found, content = "the state dict", content, {}
    state = _without_wrapper({str(key): value for key, value in found.items()})
    if "x_embedder.proj.weight" not in state and "t_embedder.mlp.0.weight" not in state:
        raise LumitokError(
            f"'{file}' is no diffusion network that lumitok knows: in {part} there is neither "
            "x_embedder.proj.weight nor t_embedder.mlp.0.weight; the first keys are "
            f"{some(list(state), 5) or 'none'}"
        )
    arguments = content.get("args")
    named = vars(arguments) if isinstance(arguments, Namespace) else {}
    return NetworkFile(part, state, [str(name) for name in content if name != part], named)


def _without_wrapper(state: dict[str, Any]) -> dict[str, Any]:
    if state and all(key.startswith(WRAPPER) for key in state):
        return {key.removeprefix(WRAPPER): value for key, value in state.items()}
    return state
