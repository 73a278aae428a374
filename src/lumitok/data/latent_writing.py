"""Writing a latent store: rows at their places in any order, by any number of processes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lumitok.data.latent_store import DTYPES, LABELS, NAMES, Header, map_rows
from lumitok.data.pictures import evenly
from lumitok.errors import LumitokError

MEASURED = 10_000
"""Latents that statistics are measured on at most; LightningDiT takes as many."""
_READ = 256


def allocate(path: Path, header: Header) -> None:
    """Make the views' files at their full size, as far as they are not there.

    Raises:
        LumitokError: the disk has no room for them.
    """
    size = header.count * header.row_bytes
    missing = [path / f"{view}.bin" for view in header.views if not (path / f"{view}.bin").is_file()]
    free = shutil.disk_usage(path).free
    # The files begin as holes, so a disk that is too small would be noticed hours later.
    if len(missing) * size > free:
        raise LumitokError(
            f"the store {path} needs {len(missing) * size / 1e9:.1f} GB, and the disk has "
            f"{free / 1e9:.1f} GB free; make room, name another disk, or take --dtype bfloat16"
        )
    for file in missing:
        with file.open("wb") as opened:
            opened.truncate(size)


def write_rows(path: Path, header: Header, view: str, first: int, rows: Tensor) -> None:
    """Write rows (b, *row) from the place ``first`` on; they are on the disk when it returns.

    Raises:
        LumitokError: a number is not finite, or is too large for the store's type.
    """
    stored = rows.to(DTYPES[header.dtype]).contiguous()
    if not bool(stored.isfinite().all()):
        fits = bool(rows.isfinite().all())
        raise LumitokError(
            f"latents reach {float(rows.abs().max()):.3g}, too much for float16; take --dtype bfloat16"
            if fits
            else "the tokenizer gives latents that are not numbers or not finite; it cannot be used"
        )
    if header.dtype == "bfloat16":
        stored = stored.view(torch.int16)
    # Not through a mapping: on a full disk that would end the process without a word.
    with (path / f"{view}.bin").open("r+b") as file:
        file.seek(first * header.row_bytes)
        file.write(stored.numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())


def close_gaps(path: Path, header: Header, gaps: Sequence[int]) -> list[int]:
    """Take rows that were never written out of the views: the last rows move into their places.

    Killed at any moment and called again it gives the same: a row is copied before it is cut off.

    Args:
        path: the store's folder.
        header: its ``count`` counts the gaps.
        gaps: the rows.

    Returns:
        Which row each row was, in the new order.
    """
    without = set(gaps)
    count = header.count - len(without)
    moved = [row for row in range(count, header.count) if row not in without]
    places = sorted(gap for gap in without if gap < count)
    order = list(range(count))
    for place, row in zip(places, moved, strict=True):
        order[place] = row
    for view in header.views:
        file = path / f"{view}.bin"
        size = file.stat().st_size if file.is_file() else -1
        if size == count * header.row_bytes:
            continue
        if size != header.count * header.row_bytes:
            raise LumitokError(f"{file} is missing or was cut short; delete {path} and encode again")
        if places:
            rows = map_rows(file, header, header.count, write=True)
            rows[places] = rows[moved]
            del rows
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())
            opened.truncate(count * header.row_bytes)
            os.fsync(opened.fileno())
    return order


def write_lists(path: Path, labels: Sequence[int], names: Sequence[str]) -> None:
    """Write the labels and the names of the pictures; no names: they are not known."""
    np.save(path / LABELS, np.asarray(labels, dtype=np.int64))
    if names:
        # Linux knows names that are no text; Python gives them as surrogates, which JSON escapes.
        (path / NAMES).write_text(json.dumps(list(names)) + "\n", encoding="utf-8")


def channel_statistics(path: Path, header: Header) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and unbiased standard deviation of each channel, in float64.

    Over the plain view of at most :data:`MEASURED` latents, spread evenly; of moments, those of what would
    be drawn from them.
    """
    rows = map_rows(path / "plain.bin", header, header.count)
    chosen = torch.tensor(evenly(header.count, MEASURED))
    channels = header.spec.channels
    total, squares = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    for places in chosen.split(_READ):
        values = rows[places].double()
        mean = values[:, :channels]
        total += mean.sum(dim=(0, 2, 3))
        squares += mean.square().sum(dim=(0, 2, 3))
        if header.kind == "moments":
            squares += values[:, channels:].square().sum(dim=(0, 2, 3))
    numbers = len(chosen) * header.spec.height * header.spec.width
    mean = total / numbers
    variance = (squares - numbers * mean.square()) / max(1, numbers - 1)
    return tuple(mean.tolist()), tuple(variance.clamp(min=0).sqrt().tolist())
