"""Setting up a run on pictures of mixed aspect ratios: the buckets' sizes, and which picture is in which."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from lumitok.config import PictureRecipe
from lumitok.data import BadPicture, Pictures, UnreadableError
from lumitok.data.bad_pictures import listing
from lumitok.data.buckets import Buckets, Size, assign, check_sizes, default_sizes, read_sizes
from lumitok.errors import LumitokError
from lumitok.evaluation.progress import show_progress
from lumitok.tokenizers import Tokenizer
from lumitok.training.objective import GeneratorObjective

SIZES = "picture-sizes.safetensors"
"""What was read of the headers, in the run's folder, so that a run that is taken up need not read them."""


def training_sizes(
    recipe: PictureRecipe, tokenizer: Tokenizer, objectives: Sequence[GeneratorObjective]
) -> list[Size]:
    """Sizes, height and width, of the pictures that a recipe trains on.

    Raises:
        LumitokError: a bucket that the tokenizer's grids, or those of a loss's encoder, do not fit.
    """
    side = recipe.model.image_size
    if recipe.data.preparation != "keep-aspect":
        return [(side, side)]
    encoders = [o.vf_encoder for o in objectives]
    encoders += [o.feature_distance.encoder for o in objectives if o.feature_distance is not None]
    multiple = math.lcm(tokenizer.encoded_multiple, *(e.multiple for e in encoders if e is not None))
    sizes = recipe.data.buckets or default_sizes(side, multiple)
    check_sizes(sizes, multiple)
    return sizes


def fill_buckets(
    pictures: Pictures,
    sizes: Sequence[Size],
    accelerator: Accelerator,
    folder: Path,
    *,
    workers: int,
    resume: bool,
) -> tuple[Pictures, Buckets]:
    """Read the pictures' sizes from their headers, and give each picture its bucket.

    The processes share the reading. Pictures whose headers cannot be read are left out, counted and listed
    as :func:`lumitok.data.open_pictures` does.

    Raises:
        LumitokError: no header can be read.
    """
    found = _known(folder / SIZES, pictures, accelerator) if resume else None
    if found is None:
        found = _read(pictures, accelerator, workers)
        if accelerator.is_main_process:
            _keep(folder / SIZES, pictures, found)
    good, bad = [], list[BadPicture]()
    for index in range(len(pictures)):
        if found[index, 0] == 0:
            try:  # For the reason, or because it has come back.
                found[index] = pictures.size(index)[::-1]
            except UnreadableError as error:
                bad.append(error.bad)
                continue
        good.append(index)
    if not good:
        raise LumitokError(f"all pictures of '{pictures.source}' are bad; mend them:\n{listing(bad)}")
    if bad:
        pictures.left_out["unreadable"] = pictures.left_out.get("unreadable", 0) + len(bad)
        pictures.unreadable += bad
        pictures = pictures.subset(good)
    return pictures, assign(found[good], sizes)


def buckets_hash(buckets: Buckets) -> str:
    """Hash of every picture's bucket, which the order of training follows from."""
    return hashlib.sha256(buckets.of.astype("<i8").tobytes()).hexdigest()


def _read(pictures: Pictures, accelerator: Accelerator, threads: int) -> NDArray[np.int32]:
    rank, world = accelerator.process_index, accelerator.num_processes
    share = pictures.subset(range(rank, len(pictures), world))
    with show_progress("reading the pictures' sizes", len(share)) as report:
        sizes = read_sizes(share, threads=threads, report=report)
    if world == 1:
        return sizes
    found = np.zeros((len(pictures), 2), np.int32)
    for other, part in enumerate(gather_object([sizes])):
        found[other::world] = part
    return found


def _keep(path: Path, pictures: Pictures, sizes: NDArray[np.int32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"sizes": torch.from_numpy(sizes)}, partial, metadata={"names": _names_hash(pictures)})
    partial.replace(path)


def _known(path: Path, pictures: Pictures, accelerator: Accelerator) -> NDArray[np.int32] | None:
    """The sizes in a file of these very pictures, as the main process finds it."""
    known: list[NDArray[np.int32] | None] = [None]
    if accelerator.is_main_process and path.is_file():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("names") == _names_hash(pictures):
                known = [file.get_tensor("sizes").numpy()]
    return broadcast_object_list(known)[0]  # type: ignore[no-any-return]


def _names_hash(pictures: Pictures) -> str:
    return hashlib.sha256("\n".join(pictures.names).encode("utf-8", "surrogateescape")).hexdigest()
