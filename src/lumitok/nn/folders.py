"""Saved models: a folder of ``config.json`` and safetensors, written by us and read strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lumitok.errors import LumitokError

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SHOWN = 8
"""How many faults of a state the message spells out."""


def find_saved(path: str | Path, part: str) -> Path:
    """Return the folder of a run's or a checkpoint's part, or ``path`` itself where it is that folder.

    Of a run: the final one, or the newest checkpoint's while there is none.

    Args:
        path: a run, a checkpoint, or the folder itself.
        part: name of the folder in a run and in a checkpoint, such as ``network``.

    Raises:
        LumitokError: there is no such folder, or no such part in it.
    """
    folder = Path(path)
    saved = sorted(p for p in (folder / "checkpoints").glob("step-*") if p.suffix != ".partial")
    for candidate in (folder, folder / part, *(checkpoint / part for checkpoint in reversed(saved))):
        if (candidate / CONFIG).is_file():
            return candidate
    if not folder.exists():
        raise LumitokError(f"there is no '{folder}'; give a run, a checkpoint or a {part} folder")
    raise LumitokError(f"'{folder}' holds no {part}: no {CONFIG} in it, in {part}/ or in checkpoints/")


def fetch_folder(name: str, revision: str | None) -> Path:
    """Return the folder ``name``, or the hub's snapshot of the model ``name``.

    Raises:
        LumitokError: there is no such folder, and no such model or no way to the hub.
    """
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise LumitokError(f"there is no folder '{name}', and it is not a hub id such as 'name/model'")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # The hub client has dozens of kinds of failure; all mean the same here.
        raise LumitokError(
            f"there is no folder '{name}', and the hub did not give a model of that name "
            f"({type(error).__name__}); check the name, the network, or download it by hand"
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """Return what a folder's ``config.json`` says.

    Raises:
        LumitokError: the file is damaged, or does not hold names and values.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LumitokError(f"{path} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise LumitokError(f"{path} does not describe a model: it holds a {type(config).__name__}")
    return config


def open_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        LumitokError: it is missing or damaged.
    """
    if not path.is_file():
        raise LumitokError(f"the weights {path} are missing")
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise LumitokError(f"{path} is damaged: {error}") from None
    return state


def check_state(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Raise a LumitokError that names every key which is missing, left over or of another shape."""
    wanted = module.state_dict()
    faults = [f"missing {name}" for name in wanted if name not in state]
    faults += [f"unexpected {name}" for name in state if name not in wanted]
    faults += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise LumitokError(f"{source} does not fit the model: {'; '.join(faults[:SHOWN])}{more}")


def build_filled(build: Callable[[], nn.Module], state: dict[str, Tensor], source: str) -> nn.Module:
    """Build a module around a state, without drawing weights that the state then replaces.

    Args:
        build: makes the module; it is called on the meta device, and what it shall keep from there, such
            as fixed tables, it makes on the CPU by name.
        state: every parameter and persistent buffer; copied, in float32.
        source: where the state is from, for the message.

    Raises:
        LumitokError: the state is not the module's.
    """
    with torch.device("meta"):
        module = build()
    check_state(module, state, source)
    # Copies, for the tensors of an opened file lie in the file, which may be written anew later.
    module.load_state_dict({n: t.to(torch.float32, copy=True) for n, t in state.items()}, assign=True)
    return module


def contiguous(state: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Bring a state's tensors to the CPU, each contiguous: what safetensors writes."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state}
