"""What ``lumitok sample`` leaves: single pictures, a sheet, a listing, and the npz of ADM's evaluator."""

from __future__ import annotations

import csv
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.picture_sets import LABELS, PIXELS, open_picture_set
from lumitok.evaluation.pictures import grid, to_pil
from lumitok.evaluation.progress import show_progress
from lumitok.training.seeds import derive_seed

SHOWN = 100
"""Pictures on a sheet at most."""
PER_ROW = 10
READ_BATCH = 64
_SHUFFLE = 2
"""What a seed of the order is derived with; 0 and 1 are the samples' and the labels'."""


def picture_path(folder: Path, index: int) -> Path:
    """Where a sample lies: names in the order of the samples."""
    return folder / f"{index:06d}.png"


def write_picture(picture: Tensor, path: Path) -> None:
    """Write a sample, uint8 (3, H, W), under its name only when it is whole."""
    partial = path.with_suffix(".partial")
    to_pil(picture).save(partial, format="PNG")
    partial.replace(path)


def write_listing(
    path: Path, folder: Path, labels: Sequence[int] | None, seeds: Sequence[int], names: Sequence[str]
) -> None:
    """Write a CSV of the samples: file, label, class and seed."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "class", "seed"])
        for index, seed in enumerate(seeds):
            label: int | str = "" if labels is None else labels[index]
            name = names[label] if isinstance(label, int) and label < len(names) else ""
            writer.writerow([picture_path(folder, index).name, label, name, seed])
    partial.replace(path)


def write_sheet(
    path: Path, folder: Path, labels: Sequence[int] | None, count: int, names: Sequence[str]
) -> None:
    """Write a sheet of the first samples: a row a class, where classes have several."""
    rows, said = _rows(list(range(min(SHOWN, count))), labels, names)
    pictures = [[_open(picture_path(folder, index)) for index in row] for row in rows]
    partial = path.with_suffix(".partial")
    grid(pictures, labels=said).save(partial, format="PNG")
    partial.replace(path)


def _rows(
    shown: list[int], labels: Sequence[int] | None, names: Sequence[str]
) -> tuple[list[list[int]], list[str]]:
    """Samples row by row, and what stands beside each row."""
    width = min(PER_ROW, math.ceil(math.sqrt(len(shown))))
    square = [shown[first : first + width] for first in range(0, len(shown), width)]
    if labels is None:
        return square, []

    def said(label: int) -> str:
        return names[label] if label < len(names) else str(label)

    classes: dict[int, list[int]] = {}
    for index in shown:
        classes.setdefault(labels[index], []).append(index)
    if 2 * len(classes) > len(shown) > 1:
        return square, [", ".join(dict.fromkeys(said(labels[i]) for i in row)) for row in square]
    ordered = sorted(classes)
    rows = [classes[label][:PER_ROW] for label in ordered]
    return rows, [said(label) for label in ordered]


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise LumitokError(f"'{path}' is damaged ({error}); remove it, and it is drawn again") from None


def write_npz(path: Path, folder: Path, labels: Sequence[int] | None, count: int, seed: int) -> None:
    """Write the first ``count`` samples as ``arr_0``, uint8 (N, H, W, 3), and their labels as ``arr_1``.

    In an order drawn with the seed: ADM's evaluator takes the Inception score of parts in order. Pictures go
    through one by one, so a set of any size fits.

    Raises:
        LumitokError: a picture cannot be read, or the disk is full.
    """
    source = open_picture_set(folder)
    order = np.random.default_rng(derive_seed(seed, count, _SHUFFLE)).permutation(count)
    partial = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as arrays:
            shape = (count, source.size, source.size, 3)
            with (
                arrays.open(f"{PIXELS}.npy", "w", force_zip64=True) as member,
                show_progress(f"writing {path.name}", count) as tell,
            ):
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                done = 0
                for pixels, _ in source.batches(order.tolist(), READ_BATCH):
                    member.write(np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()).data)
                    done += len(pixels)
                    tell(done)
            if labels is not None:
                with arrays.open(f"{LABELS}.npy", "w") as member:
                    np.lib.format.write_array(member, np.asarray(labels, dtype=np.int64)[order])
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise LumitokError(f"'{path}' cannot be written: {error}; make room and call again") from error
