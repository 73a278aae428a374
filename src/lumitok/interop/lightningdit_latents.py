"""Latents as LightningDiT keeps them: safetensors shards, and a file of their statistics.

``latents_rankXX_shardYYY.safetensors`` of about 10,000 pictures each, with ``latents`` and ``latents_flip``
(n, C, h, w), one draw each of the picture's and the mirrored picture's posterior, and ``labels`` (n,);
``latents_stats.pt`` with ``mean`` and ``std`` (1, C, 1, 1). Its loader takes the shards in order of name.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lumitok.errors import LumitokError

LATENTS, MIRRORED, LABELS = "latents", "latents_flip", "labels"
STATISTICS = "latents_stats.pt"
SHARD = 10_000
"""Pictures of a shard."""
_ROWS = 512
"""Rows that are read at one time."""
_FLOATS = ("F32", "F16", "BF16")
_INTEGERS = ("I64", "I32")

ChannelStatistics = tuple[tuple[float, ...], tuple[float, ...]]


class Rows(NamedTuple):
    """Some rows of the shards, in order."""

    plain: Tensor
    """(b, C, h, w), raw."""
    mirrored: Tensor | None
    labels: Tensor
    """int64 (b,)."""


@dataclass(frozen=True)
class Shards:
    """A folder of shards that was looked through.

    Attributes:
        files: in the order in which LightningDiT's loader counts them.
        counts: pictures in each.
        shape: (C, h, w) of a latent.
        mirrored: whether they have mirrored views.
        statistics: mean and standard deviation of each channel; None where the folder has none.
    """

    files: list[Path]
    counts: list[int]
    shape: tuple[int, int, int]
    mirrored: bool
    statistics: ChannelStatistics | None

    @property
    def count(self) -> int:
        """Pictures in all of them."""
        return sum(self.counts)

    def rows(self) -> Iterator[Rows]:
        """Read all rows in order, a few at a time.

        Raises:
            LumitokError: a file is damaged.
        """
        for path, count in zip(self.files, self.counts, strict=True):
            try:
                with safe_open(path, framework="pt", device="cpu") as file:
                    plain, labels = file.get_slice(LATENTS), file.get_slice(LABELS)
                    mirrored = file.get_slice(MIRRORED) if self.mirrored else None
                    for start in range(0, count, _ROWS):
                        end = min(start + _ROWS, count)
                        flipped = None if mirrored is None else mirrored[start:end]
                        yield Rows(plain[start:end], flipped, labels[start:end].long())
            except SafetensorError as error:
                raise LumitokError(f"{path} is damaged: {error}; copy it again") from None


def open_shards(folder: Path) -> Shards:
    """Look through a folder of shards; only their headers are read.

    Raises:
        LumitokError: there are none, one is damaged or lacks an array, or they do not fit together.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise LumitokError(
            f"'{folder}' holds neither a latent store nor LightningDiT's shards (*.safetensors); check the "
            "path"
        )
    counts, shapes, views = [], [], []
    for path in files:
        shape, mirrored = _look(path)
        counts.append(shape[0])
        shapes.append(shape[1:])
        views.append(mirrored)
    for path, shape, mirrored in zip(files, shapes, views, strict=True):
        if shape != shapes[0] or mirrored != views[0]:
            raise LumitokError(
                f"the shards do not fit together: {files[0].name} has latents {shapes[0]} "
                f"{'with' if views[0] else 'without'} {MIRRORED}, {path.name} {shape} "
                f"{'with' if mirrored else 'without'}; keep those of one tokenizer in a folder"
            )
    channels, height, width = shapes[0]
    statistics = _read_statistics(folder / STATISTICS, channels)
    return Shards(files, counts, (channels, height, width), views[0], statistics)


def _look(path: Path) -> tuple[tuple[int, ...], bool]:
    """Return the shape of a shard's latents, and whether it has mirrored ones."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = set(file.keys())
            known = {key: file.get_slice(key) for key in (LATENTS, MIRRORED, LABELS) if key in keys}
            shapes = {key: tuple(found.get_shape()) for key, found in known.items()}
            types = {key: str(found.get_dtype()) for key, found in known.items()}
    except SafetensorError as error:
        raise LumitokError(f"{path} is damaged: {error}; copy it again") from None
    lacking = [key for key in (LATENTS, LABELS) if key not in keys]
    if lacking:
        raise LumitokError(
            f"{path} lacks {' and '.join(lacking)} and holds {', '.join(sorted(keys)) or 'nothing'}: it is "
            "no shard of LightningDiT's latents"
        )
    shape = shapes[LATENTS]
    right = len(shape) == 4 and all(shape) and shapes[LABELS] == shape[:1]
    right = right and shapes.get(MIRRORED, shape) == shape and types[LABELS] in _INTEGERS
    if not right or not all(types[key] in _FLOATS for key in known if key != LABELS):
        found = ", ".join(f"{key} {types[key]} {list(shapes[key])}" for key in known)
        raise LumitokError(
            f"{path} holds {found}; wanted floating-point latents (n, C, h, w), {MIRRORED} alike, and whole "
            "labels (n,)"
        )
    return shape, MIRRORED in keys


def _read_statistics(path: Path, channels: int) -> ChannelStatistics | None:
    if not path.is_file():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        mean, std = (found[key].double().flatten() for key in ("mean", "std"))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, AttributeError):
        raise LumitokError(
            f"{path} is damaged, or holds no mean and std; delete it to have them measured"
        ) from None
    fits = len(mean) == len(std) == channels and bool(torch.cat([mean, std]).isfinite().all())
    if not fits or not bool((std > 0).all()):
        raise LumitokError(
            f"{path} has statistics of {len(mean)} and {len(std)} channels, wanted finite ones of "
            f"{channels}, the deviations over 0; delete it to have them measured"
        )
    return tuple(mean.tolist()), tuple(std.tolist())


def write_shards(
    folder: Path, count: int, rows: Callable[[range], Rows], statistics: ChannelStatistics | None
) -> int:
    """Write rows as shards of :data:`SHARD` pictures, float32; returns how many shards.

    Args:
        folder: to write to; it is there.
        count: rows.
        rows: gives those at some places, each with mirrored latents.
        statistics: for ``latents_stats.pt``; None: LightningDiT measures them when it first reads.
    """
    starts = range(0, count, SHARD)
    for number, start in enumerate(starts):
        part = rows(range(start, min(start + SHARD, count)))
        assert part.mirrored is not None
        tensors = {LATENTS: part.plain.float(), MIRRORED: part.mirrored.float(), LABELS: part.labels}
        metadata = {"total_size": str(len(part.labels)), "dtype": "torch.float32", "device": "cpu"}
        save_file(tensors, folder / f"latents_rank00_shard{number:03d}.safetensors", metadata=metadata)
    if statistics is not None:
        mean, std = (torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) for values in statistics)
        torch.save({"mean": mean, "std": std}, folder / STATISTICS)
    return len(starts)
