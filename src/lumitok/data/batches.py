"""Batches of pictures in a seeded order that workers, ranks and restarts do not change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lumitok.config import DataConfig
from lumitok.data.pictures import Pictures
from lumitok.data.prepare import augmentation_rng, order_rng, prepare
from lumitok.errors import LumitokError

Key = tuple[int, int]
"""Epoch, and index of a picture."""
Batch = tuple[Tensor, Tensor, Tensor]


class TrainingBatches:
    """An endless sequence of training batches.

    Epoch e runs through all pictures in an order drawn from ``(seed, e)``; the epochs follow one
    another without a gap, so no picture is dropped and a batch may span two epochs. Global step s
    takes positions ``[s B, (s + 1) B)`` of that sequence, with B = batch_size * parts * world. Part p
    of the step holds the positions from ``p * batch_size * world`` on, and rank r its r-th slice.

    Iterating yields ``(pixels, labels, indices)``: uint8 (b, 3, size, size), int64 (b,), int64 (b,).
    Every call of ``iter`` begins again at ``start_step``. A picture's crop and mirroring come from
    ``(seed, epoch, index)`` alone.

    Args:
        pictures: what to train on.
        config: preparation and number of worker processes.
        size: side in pixels.
        batch_size: this process's share of one part.
        seed: 0 or more.
        start_step: the first global step to yield, to resume a run.
        rank: number of this process.
        world: number of processes.
        parts: batches a step (gradient accumulation); iterating yields ``parts`` batches a step.
    """

    def __init__(
        self,
        pictures: Pictures,
        config: DataConfig,
        size: int,
        batch_size: int,
        seed: int,
        *,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ) -> None:
        _check(pictures, size, batch_size)
        if seed < 0 or start_step < 0 or parts < 1 or not 0 <= rank < world:
            raise LumitokError(
                f"training batches need seed >= 0, start_step >= 0, parts >= 1 and 0 <= rank < world; got "
                f"seed {seed}, start_step {start_step}, parts {parts}, rank {rank}, world {world}"
            )
        dataset = _Prepared(pictures, config, size, seed)
        keys = _Keys(len(pictures), seed, batch_size, start_step, rank, world, parts)
        self._loader = _loader(dataset, keys, config.workers)

    def __iter__(self) -> Iterator[Batch]:
        return _raising(self._loader)


def validation_batches(
    pictures: Pictures, size: int, batch_size: int, *, workers: int = 0
) -> Iterator[Tensor]:
    """Yield all pictures once, in order of name: uint8 (b, 3, size, size), ADM's centre crop, no mirror.

    The last batch may be smaller.
    """
    _check(pictures, size, batch_size)
    order = sorted(range(len(pictures)), key=pictures.names.__getitem__)
    keys = [[(0, i) for i in order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    dataset = _Prepared(pictures, DataConfig(preparation="center-crop", flip=False), size, seed=0)
    return (pixels for pixels, _, _ in _raising(_loader(dataset, keys, workers)))


class _Keys:
    """The batches of one rank, as an endless iterable of lists of keys."""

    def __init__(
        self, count: int, seed: int, batch_size: int, start_step: int, rank: int, world: int, parts: int
    ) -> None:
        self.count, self.seed, self.batch_size = count, seed, batch_size
        self.start, self.rank, self.world = start_step * parts, rank, world

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, np.empty(0, np.int64)
        # A step's parts lie one after another in the sequence, so they count as batches of their own.
        part = self.start
        while True:
            first = (part * self.world + self.rank) * self.batch_size
            keys = []
            for position in range(first, first + self.batch_size):
                if position // self.count != epoch:
                    epoch = position // self.count
                    order = order_rng(self.seed, epoch).permutation(self.count)
                keys.append((epoch, int(order[position % self.count])))
            yield keys
            part += 1


class _Prepared(Dataset[Batch]):
    """Opens and prepares whole batches, in a worker process or in this one."""

    def __init__(self, pictures: Pictures, config: DataConfig, size: int, seed: int) -> None:
        self.pictures, self.config, self.size, self.seed = pictures, config, size, seed

    def __getitems__(self, keys: Sequence[Key]) -> Batch | LumitokError:
        # The loader would dress an exception with the worker's traceback; users want the sentence.
        try:
            pixels = np.stack([self._pixels(epoch, index) for epoch, index in keys])
        except LumitokError as error:
            return error
        indices = [index for _, index in keys]
        labels = [self.pictures.labels[index] for index in indices]
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(labels), torch.tensor(indices)

    def _pixels(self, epoch: int, index: int) -> NDArray[np.uint8]:
        return prepare(
            self.pictures.open(index),
            self.size,
            self.config.preparation,
            crop_scale=self.config.crop_scale,
            flip=self.config.flip,
            rng=augmentation_rng(self.seed, epoch, index),
        )


def _loader(dataset: _Prepared, keys: _Keys | list[list[Key]], workers: int) -> DataLoader[Batch]:
    return DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_as_it_is,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: the loader draws a number for its workers and must not move torch's global state.
        generator=torch.Generator().manual_seed(0),
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _raising(loader: DataLoader[Batch]) -> Iterator[Batch]:
    for batch in loader:
        if isinstance(batch, LumitokError):
            raise batch
        yield batch


def _check(pictures: Pictures, size: int, batch_size: int) -> None:
    if not len(pictures):
        raise LumitokError("there is no picture to make batches of")
    if size < 1 or batch_size < 1:
        raise LumitokError(f"batches need a size and a batch size of at least 1; got {size} and {batch_size}")
