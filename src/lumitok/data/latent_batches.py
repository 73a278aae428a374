"""Batches of latents in a seeded order that workers, ranks and restarts do not change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lumitok.data.bad_pictures import UnreadableError
from lumitok.data.batches import Key, Keys, loader, raising
from lumitok.data.latent_store import LatentStore
from lumitok.data.pictures import Pictures
from lumitok.data.prepare import center_crop
from lumitok.errors import LumitokError


class LatentBatch(NamedTuple):
    """Rows of a store."""

    values: Tensor
    """Float32 (b, C, h, w), or (b, 2 C, h, w) with moments; :meth:`LatentStore.draw` makes latents."""
    labels: Tensor
    """int64 (b,)."""
    indices: Tensor
    """int64 (b,)."""
    pixels: Tensor | None
    """uint8 (b, 3, H, W): the pictures, mirrored alike; where they were asked for."""


class LatentBatches:
    """An endless sequence of batches of latents, in the order of :class:`lumitok.data.TrainingBatches`.

    Whether a latent is read mirrored comes from ``(seed, epoch, index)`` alone.

    Args:
        store: where they lie.
        batch_size: this process's share of one part.
        seed: 0 or more.
        start_step: the first global step to yield, to resume a run.
        rank: number of this process.
        world: number of processes.
        parts: batches a step (gradient accumulation); iterating yields ``parts`` batches a step.
        flip: read half of them from the mirrored view.
        pictures: the store's pictures, in its order, to come along as the encoder saw them; None: none.
        workers: processes that open pictures.

    Raises:
        LumitokError: ``flip``, and the store has no mirrored view.
    """

    def __init__(
        self,
        store: LatentStore,
        batch_size: int,
        seed: int,
        *,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
        flip: bool = True,
        pictures: Pictures | None = None,
        workers: int = 0,
    ) -> None:
        if flip and "mirrored" not in store.header.views:
            raise LumitokError(
                f"{store.path} has no mirrored view; encode with --flip, or set data.flip to false"
            )
        self._rows = _Rows(store, seed, flip, pictures)
        self._keys = Keys(store.count, seed, batch_size, start_step, rank, world, parts)
        self._workers = workers if pictures is not None else 0

    def __iter__(self) -> Iterator[LatentBatch]:
        if self._workers == 0:  # A read from memory is quicker than a word from another process.
            return (_given(self._rows.__getitems__(keys)) for keys in self._keys)
        return raising(loader(self._rows, self._keys, self._workers))


class _Rows(Dataset[LatentBatch]):
    """Reads whole batches, in a worker process or in this one."""

    def __init__(self, store: LatentStore, seed: int, flip: bool, pictures: Pictures | None) -> None:
        self.store, self.seed, self.flip, self.pictures = store, seed, flip, pictures
        self._drawn: dict[int, NDArray[np.bool_]] = {}

    def __getitems__(self, keys: Sequence[Key]) -> LatentBatch | LumitokError:
        indices = torch.tensor([index for _, index in keys], dtype=torch.int64)
        mirrored = torch.zeros(len(keys), dtype=torch.bool)
        if self.flip:
            mirrored = torch.tensor([bool(self._flips(epoch)[index]) for epoch, index in keys])
        try:
            pixels = None if self.pictures is None else self._pixels(self.pictures, indices, mirrored)
        except UnreadableError as error:  # It was read when the store was made.
            return error
        return LatentBatch(self.store.read(indices, mirrored), self.store.labels[indices], indices, pixels)

    def _flips(self, epoch: int) -> NDArray[np.bool_]:
        """Which latents are read mirrored in an epoch."""
        if epoch not in self._drawn:
            # All at once, for a generator of its own for each latent would take longer than reading it.
            flips = flips_rng(self.seed, epoch).random(self.store.count, dtype=np.float32) < 0.5
            last = list(self._drawn.items())[-1:]  # A batch may span two epochs.
            self._drawn = dict([*last, (epoch, flips)])
        return self._drawn[epoch]

    def _pixels(self, pictures: Pictures, indices: Tensor, mirrored: Tensor) -> Tensor:
        size = self.store.header.image_size
        pixels = torch.empty(len(indices), 3, size, size, dtype=torch.uint8)
        for place, index in enumerate(indices.tolist()):
            picture = cropped(pictures, index, size)
            pixels[place] = picture.flip(2) if mirrored[place] else picture
        return pixels


def flips_rng(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator of one epoch's mirroring; its i-th number decides on latent i."""
    # Longer than any key that pictures are ordered and prepared with.
    key = (epoch, 0, 0, 0, 0)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def cropped(pictures: Pictures, index: int, size: int) -> Tensor:
    """Open a picture as a store's tokenizer sees it: uint8 (3, size, size), ADM's centre crop.

    Raises:
        UnreadableError: it cannot be read.
    """
    image = center_crop(pictures.open(index), size)
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def _given(batch: LatentBatch | LumitokError) -> LatentBatch:
    if isinstance(batch, LumitokError):
        raise batch
    return batch
