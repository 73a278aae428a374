"""Batches of pictures in a seeded order that workers, ranks and restarts do not change."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lumitok.config import DataConfig
from lumitok.data.bad_pictures import BadPicture, UnreadableError, listing
from lumitok.data.buckets import BucketKeys, Buckets
from lumitok.data.pictures import Pictures
from lumitok.data.prepare import augmentation_rng, order_rng, prepare, replacements
from lumitok.errors import LumitokError

Key = tuple[int, int]
"""Epoch, and index of a picture."""


class Batch(NamedTuple):
    """Pictures as they are stored, ready to be scaled."""

    pixels: Tensor
    """uint8 (b, 3, size, size), or (b, 3, height, width) of the step's bucket."""
    labels: Tensor
    """int64 (b,)."""
    indices: Tensor
    """int64 (b,): the pictures that were used, after replacement."""
    bad: list[BadPicture]
    """The bad pictures that were met while this batch was made, each once."""


class TrainingBatches:
    """An endless sequence of training batches.

    With buckets each step has one size; :class:`lumitok.data.buckets.BucketKeys` says in what order.
    Otherwise epoch e runs through all pictures in an order drawn from ``(seed, e)``; the epochs follow
    one another without a gap, so no picture is dropped and a batch may span two epochs. Global step s
    takes positions ``[s B, (s + 1) B)`` of that sequence, with B = batch_size * parts * world. Part p
    of the step holds the positions from ``p * batch_size * world`` on, and rank r its r-th slice.

    Iterating yields a :class:`Batch`; every call of ``iter`` begins again at ``start_step``. A picture's
    crop and mirroring come from ``(seed, epoch, index)`` alone, and so does the picture that takes the
    place of a bad one, from the same bucket where one is found. It is an error if
    :data:`lumitok.data.prepare.TRIES` replacements, or all pictures there are, are bad too.

    Args:
        pictures: what to train on.
        config: preparation and number of worker processes.
        size: side in pixels, without buckets.
        batch_size: this process's share of one part.
        seed: 0 or more.
        start_step: the first global step to yield, to resume a run.
        rank: number of this process.
        world: number of processes.
        parts: batches a step (gradient accumulation); iterating yields ``parts`` batches a step.
        buckets: the sizes that preparation ``keep-aspect`` brings ``pictures`` to; None for the others.
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
        buckets: Buckets | None = None,
    ) -> None:
        _check(pictures, size, batch_size)
        if (buckets is not None) != (config.preparation == "keep-aspect"):
            raise LumitokError(
                f"the preparation keep-aspect goes with buckets, and no other does; got {config.preparation} "
                f"{'without' if buckets is None else 'with'} buckets (lumitok.data.buckets makes them)"
            )
        if seed < 0 or start_step < 0 or parts < 1 or not 0 <= rank < world:
            raise LumitokError(
                f"training batches need seed >= 0, start_step >= 0, parts >= 1 and 0 <= rank < world; got "
                f"seed {seed}, start_step {start_step}, parts {parts}, rank {rank}, world {world}"
            )
        dataset = _Prepared(pictures, config, size, seed, replace=True, buckets=buckets)
        place = batch_size, start_step, rank, world, parts
        keys: Keys | BucketKeys = Keys(len(pictures), seed, *place)
        if buckets is not None:
            keys = BucketKeys(buckets, seed, *place)
        self._loader = loader(dataset, keys, config.workers)

    def __iter__(self) -> Iterator[Batch]:
        return raising(self._loader)


def validation_batches(
    pictures: Pictures,
    size: int,
    batch_size: int,
    *,
    workers: int = 0,
    report: Callable[[BadPicture], None] | None = None,
) -> Iterator[Tensor]:
    """Yield all pictures once, in order of name: uint8 (b, 3, size, size), ADM's centre crop, no mirror.

    The last batch may be smaller, and so is one with bad pictures: they are left out.

    Args:
        pictures: what to prepare.
        size: side in pixels.
        batch_size: pictures a batch.
        workers: processes that open pictures.
        report: called with each bad picture; None: a bad picture is an error.

    Raises:
        LumitokError: a picture is bad and ``report`` is None, or all are bad.
    """
    _check(pictures, size, batch_size)
    order = sorted(range(len(pictures)), key=pictures.names.__getitem__)
    keys = [[(0, i) for i in order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    config = DataConfig(preparation="center-crop", flip=False)
    dataset = _Prepared(pictures, config, size, seed=0, replace=False)
    return _reported(raising(loader(dataset, keys, workers)), report, str(pictures.source))


def _reported(
    batches: Generator[Batch], report: Callable[[BadPicture], None] | None, source: str
) -> Iterator[Tensor]:
    bad: list[BadPicture] = []
    good = False
    with closing(batches):  # An error's traceback would keep the workers.
        for batch in batches:
            for picture in batch.bad:
                if report is None:
                    raise UnreadableError(picture, source)
                report(picture)
            bad += batch.bad
            if len(batch.pixels):
                good = True
                yield batch.pixels
    if not good:
        raise LumitokError(f"all pictures of '{source}' are bad; mend them:\n{listing(bad)}")


class Keys:
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

    def __init__(
        self,
        pictures: Pictures,
        config: DataConfig,
        size: int,
        seed: int,
        *,
        replace: bool,
        buckets: Buckets | None = None,
    ) -> None:
        self.pictures, self.config, self.size, self.seed = pictures, config, size, seed
        self.buckets = buckets
        self.replace = replace
        """Whether another picture takes a bad one's place; otherwise the place is left out."""

    def __getitems__(self, keys: Sequence[Key]) -> Batch | LumitokError:
        # The loader would dress an exception with the worker's traceback; users want the sentence.
        try:
            return self._batch(keys)
        except LumitokError as error:
            return error

    def _batch(self, keys: Sequence[Key]) -> Batch:
        bad: dict[str, BadPicture] = {}
        indices: list[int] = []
        # All keys of a batch are of one bucket.
        size = (self.size, self.size)
        if self.buckets is not None:
            size = self.buckets.sizes[self.buckets.of[keys[0][1]]]
        pixels = torch.empty(len(keys), 3, *size, dtype=torch.uint8)
        for epoch, index in keys:
            found = self._open(epoch, index, bad)
            if found is None:
                continue
            image, used = found
            # The place's own chance, so that a picture that stands in twice is not cropped alike.
            rng = augmentation_rng(self.seed, epoch, index)
            scale, flip = self.config.crop_scale, self.config.flip
            array = prepare(image, size, self.config.preparation, crop_scale=scale, flip=flip, rng=rng)
            pixels[len(indices)] = torch.from_numpy(array).permute(2, 0, 1)
            indices.append(used)
        labels = torch.tensor([self.pictures.labels[index] for index in indices], dtype=torch.int64)
        chosen = torch.tensor(indices, dtype=torch.int64)
        return Batch(pixels[: len(indices)], labels, chosen, list(bad.values()))

    def _open(self, epoch: int, index: int, bad: dict[str, BadPicture]) -> tuple[Image.Image, int] | None:
        """Open a picture, or the first of its replacements that is good; enter the bad ones."""
        met: list[BadPicture] = []
        for candidate in self._candidates(epoch, index):
            try:
                return self.pictures.open(candidate), candidate
            except UnreadableError as error:
                met.append(error.bad)
                bad[error.bad.name] = error.bad
        if not self.replace:
            return None
        raise LumitokError(
            f"{len(met)} of {len(self.pictures)} pictures were tried one after another, and all are bad; is "
            f"'{self.pictures.source}' still in its place?\n{listing(met)}"
        )

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        yield index
        if not self.replace:
            return
        others = replacements(self.seed, epoch, index, len(self.pictures))
        if self.buckets is None:
            yield from others
        else:
            of = self.buckets.of
            yield from sorted(others, key=lambda other: bool(of[other] != of[index]))


def loader(dataset: Dataset[Any], keys: Keys | BucketKeys | list[list[Key]], workers: int) -> DataLoader[Any]:
    """Load batches of keys in worker processes, which only the main process ends."""
    ending = torch.zeros((), dtype=torch.bool)
    if workers:
        ending.share_memory_()
    loader = DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=partial(_outlive_signals, ending),
        pin_memory=torch.cuda.is_available(),
        # Its own generator: the loader draws a number for its workers and must not move torch's global state.
        generator=torch.Generator().manual_seed(0),
    )
    # Runs when the loader is dropped, or before Python, on its way out, ends its children and waits for them.
    Finalize(loader, ending.fill_, args=(True,), exitpriority=0)
    return loader


def _outlive_signals(ending: Tensor, worker: int) -> None:  # noqa: ARG001
    """Let only the main process end a worker: schedulers and terminals signal all processes at once.

    The main process may still need batches to come to a good end. A worker stops when its loader is
    dropped, when the main process ends, or, since torch's workers watch it, when that is killed.
    """

    def terminate(*_: Any) -> None:
        if ending.item():
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)


def _as_it_is(batch: Any) -> Any:
    return batch


def raising(loader: DataLoader[Any]) -> Generator[Any]:
    """Yield a loader's batches; an error that came in the place of one is raised."""
    for batch in loader:
        if isinstance(batch, LumitokError):
            raise batch
        yield batch


def _check(pictures: Pictures, size: int, batch_size: int) -> None:
    if not len(pictures):
        raise LumitokError("there is no picture to make batches of")
    if size < 1 or batch_size < 1:
        raise LumitokError(f"batches need a size and a batch size of at least 1; got {size} and {batch_size}")
