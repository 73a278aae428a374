"""Saved models: a folder of ``config.json`` and safetensors, written by us and read strictly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lumitok.config.saved import read_config
from lumitok.errors import LumitokError, nearest

WEIGHTS = "diffusion_pytorch_model.safetensors"
SHOWN = 8
"""How many faults of a state the message spells out."""
Kind = TypeVar("Kind", bound=nn.Module)


def fetch_folder(name: str, revision: str | None) -> Path:
    """Return the folder ``name``, or the hub's snapshot of the model ``name``.

    Raises:
        LumitokError: there is no such folder, and no such model or no way to the hub.
    """
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise LumitokError(
            f"there is no folder '{name}', and it is not a hub id such as 'name/model'{_nearest_folder(name)}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # The hub client has dozens of kinds of failure; all mean the same here.
        raise LumitokError(
            f"there is no folder '{name}', and the hub did not give a model of that name "
            f"({type(error).__name__}); check the name, the network, or download it by hand"
            f"{_nearest_folder(name)}"
        ) from None


def _nearest_folder(name: str) -> str:
    path = Path(name)
    # The last steps alone are compared: a long way in common would make any two paths alike.
    return nearest(path.name, [beside.name for beside in path.parent.glob("*") if beside.is_dir()])


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


def saved_kind(
    folder: Path, part: str, wanted: type[Kind], kinds: Mapping[str, type[Kind]], base: str
) -> tuple[type[Kind], dict[str, Any]]:
    """Return the class of what a folder holds, and its settings as ``config.json`` has them.

    Args:
        folder: the model's own.
        part: what it should be, in a word.
        wanted: the class that was asked to open it.
        kinds: the classes by their names.
        base: name of the class that opens all of them.

    Raises:
        LumitokError: the file is damaged, or names no class, or one that is no ``wanted``.
    """
    config = read_config(folder)
    kind = str(config.pop("_class_name", ""))
    if kind not in kinds:
        raise LumitokError(f"{folder} holds a '{kind}', not a {part}{nearest(kind, kinds)}")
    if not issubclass(kinds[kind], wanted):
        raise LumitokError(f"{folder} holds a {kind}, not a {wanted.__name__}; open it with {base}")
    return kinds[kind], {key: value for key, value in config.items() if not key.startswith("_")}


def check_state(module: nn.Module, state: dict[str, Tensor], source: str, but: tuple[str, ...] = ()) -> None:
    """Raise a LumitokError that names every key which is missing, left over or of another shape.

    Args:
        module: what the state is for.
        state: names and tensors.
        source: where the state is from, for the message.
        but: prefixes of the module's names that the state must not have.
    """
    wanted = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(but)}
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


def load_strictly(module: nn.Module, file: Path, but: tuple[str, ...] = ()) -> None:
    """Fill a module with a safetensors file, all of it but the names that begin with ``but``.

    Raises:
        LumitokError: the file is missing or damaged, or its state is not the module's.
    """
    state = open_weights(file)
    check_state(module, state, str(file), but)
    module.load_state_dict(state, strict=False)


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
