"""Pictures of mixed aspect ratios: buckets, each one size, and the order of their batches.

A picture belongs to the bucket nearest to its aspect ratio. All pictures of a step are of one bucket, so
that a batch is one tensor; which bucket changes from step to step.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lumitok.data.bad_pictures import UnreadableError
from lumitok.data.pictures import Pictures
from lumitok.data.prepare import order_rng
from lumitok.errors import LumitokError

Size = tuple[int, int]
"""Height and width in pixels."""
LONGEST = 2
"""Longest side of a default bucket, divided by its short side."""
STEPS = 8
"""Default buckets lie about an eighth of the short side apart."""
CHUNK = 500
"""Headers that a thread reads before it says how far it is."""


@dataclass(frozen=True)
class Buckets:
    """Sizes, and the one that each picture is brought to."""

    sizes: list[Size]
    of: NDArray[np.int64]
    """(n,): place of each picture's size in ``sizes``."""

    @property
    def counts(self) -> list[int]:
        """Number of pictures of each size."""
        return [int(count) for count in np.bincount(self.of, minlength=len(self.sizes))]

    def describe(self, batch: int) -> str:
        """Say what is in the buckets, and what becomes of pictures that do not fill a batch of ``batch``."""
        filled = [(named(size), count) for size, count in zip(self.sizes, self.counts, strict=True) if count]
        listed = ", ".join(f"{name} {count}" for name, count in filled)
        small = ", ".join(name for name, count in filled if count < batch)
        waits = f"; fewer than a batch, so not in every epoch: {small}" if small else ""
        return (
            f"{len(self.of)} pictures in {len(filled)} buckets (height x width): {listed}; what does not "
            f"fill a batch of {batch} in one epoch is carried over to the next{waits}"
        )


def default_sizes(short: int, multiple: int) -> list[Size]:
    """Square, landscape and portrait sizes whose short side is ``short``, up to twice as long as wide.

    Long sides are multiples of ``multiple`` about an eighth of the short side apart: 256 with 16 gives
    256, 288, ... 512.
    """
    step = multiple * max(1, round(short / STEPS / multiple))
    longer = range(short + step, LONGEST * short + 1, step)
    portrait = [(side, short) for side in reversed(longer)]
    return [*portrait, (short, short), *((short, side) for side in longer)]


def check_sizes(sizes: Sequence[Size], multiple: int) -> None:
    """Check that every side is a multiple of ``multiple``.

    Raises:
        LumitokError: one is not; it names the nearest sizes that fit.
    """
    for size in sizes:
        if not any(side % multiple for side in size):
            continue
        lower, upper = (
            tuple(max(1, -(-side // multiple) if up else side // multiple) * multiple for side in size)
            for up in (False, True)
        )
        near = " and ".join(named(fit) for fit in dict.fromkeys((lower, upper)))
        raise LumitokError(
            f"data.buckets: {named(size)} pixels (height x width) do not fit this recipe's networks, whose "
            f"grids need sides that are multiples of {multiple}; the nearest that fit are {near}"
        )


def named(size: Sequence[int]) -> str:
    """``256x384``: height before width."""
    return "x".join(str(side) for side in size)


def read_sizes(
    pictures: Pictures, *, threads: int = 1, report: Callable[[int], None] | None = None
) -> NDArray[np.int32]:
    """Read the height and width of all pictures, (n, 2); no picture is decoded.

    A header that cannot be read gives 0 and 0. ``report`` is called with the number of pictures done.
    """

    def read(start: int) -> NDArray[np.int32]:
        found = np.zeros((min(CHUNK, len(pictures) - start), 2), np.int32)
        for place in range(len(found)):
            try:
                width, height = pictures.size(start + place)
            except UnreadableError:
                continue
            found[place] = height, width
        return found

    done: list[NDArray[np.int32]] = [np.zeros((0, 2), np.int32)]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for chunk in pool.map(read, range(0, len(pictures), CHUNK)):
            done.append(chunk)
            if report is not None:
                report(sum(map(len, done)))
    return np.concatenate(done)


def assign(picture_sizes: NDArray[np.int32], sizes: Sequence[Size]) -> Buckets:
    """Give each picture the size whose aspect ratio is nearest to its own, by the ratios' logarithms.

    Args:
        picture_sizes: (n, 2), height and width, all above 0.
        sizes: of the buckets, no two of one aspect ratio.
    """
    ratios = np.array([np.log(width / height) for height, width in sizes])
    order = np.argsort(ratios)
    # Between two neighbours the middle decides; comparing all with all would take gigabytes.
    middles = (ratios[order][1:] + ratios[order][:-1]) / 2
    wanted = np.log(picture_sizes[:, 1] / picture_sizes[:, 0])
    return Buckets(list(sizes), order[np.searchsorted(middles, wanted)].astype(np.int64))


class BucketKeys:
    """The batches of one rank, as an endless iterable of lists of keys (epoch, index of a picture).

    Each bucket has an endless sequence of its own: its pictures in an order drawn from ``(seed, epoch,
    bucket)``, epoch after epoch without a gap; its k-th step takes the positions ``[k B, (k + 1) B)``.
    After epoch e a bucket of c pictures has given ``floor(e c / B)`` steps, so that what does not fill a
    batch is carried over and nothing is left out. The steps of an epoch come in an order drawn from
    ``(seed, epoch)``. All of it follows from the step's number, so a run goes on anywhere.
    """

    def __init__(
        self,
        buckets: Buckets,
        seed: int,
        batch_size: int,
        start_step: int,
        rank: int,
        world: int,
        parts: int,
    ) -> None:
        self.seed, self.batch_size, self.start = seed, batch_size, start_step
        self.rank, self.world, self.parts = rank, world, parts
        self.step_size = batch_size * world * parts
        self.members = [np.flatnonzero(buckets.of == bucket) for bucket in range(len(buckets.sizes))]
        self.counts = [len(members) for members in self.members]
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for bucket, number in self.steps():
            for part in range(self.parts):
                share = part * self.world + self.rank
                first = number * self.step_size + share * self.batch_size
                yield [self._key(bucket, place) for place in range(first, first + self.batch_size)]

    def steps(self) -> Iterator[tuple[int, int]]:
        """Yield each step's bucket, and how many steps that bucket gave before it."""
        epoch = self._epoch_of(self.start)
        skipped = self.start - self._steps_before(epoch)
        while True:
            given = self._given(epoch)
            numbers = np.array(self._given(epoch + 1), dtype=np.int64) - np.array(given, dtype=np.int64)
            plan = np.repeat(np.arange(len(given)), numbers)
            for place, bucket in enumerate(order_rng(self.seed, epoch).permutation(plan).tolist()):
                if place >= skipped:
                    yield bucket, given[bucket]
                given[bucket] += 1
            epoch, skipped = epoch + 1, 0

    def _given(self, epochs: int) -> list[int]:
        """Steps that each bucket has given after a number of epochs."""
        return [epochs * count // self.step_size for count in self.counts]

    def _steps_before(self, epoch: int) -> int:
        return sum(self._given(epoch))

    def _epoch_of(self, step: int) -> int:
        """The epoch that a step is in: the last one with no more steps before it."""
        # Of each bucket less than a step's pictures are carried over.
        most = (step + 1 + len(self.counts)) * self.step_size // sum(self.counts) + 1
        return bisect.bisect_right(range(most + 1), step, key=self._steps_before) - 1

    def _key(self, bucket: int, place: int) -> tuple[int, int]:
        epoch, offset = divmod(place, self.counts[bucket])
        known, order = self._orders.get(bucket, (-1, self.members[bucket]))
        if known != epoch:
            order = order_rng(self.seed, epoch, bucket).permutation(self.members[bucket])
            self._orders[bucket] = epoch, order
        return epoch, int(order[offset])
