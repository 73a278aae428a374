"""Batches of latents come in the order of the pictures' batches, whoever reads them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from lumitok.config import DataConfig
from lumitok.data import Pictures, TrainingBatches, UnreadableError, open_pictures
from lumitok.data.latent_batches import LatentBatch, LatentBatches
from lumitok.data.latent_store import LatentStore
from lumitok.data.prepare import center_crop
from lumitok.errors import LumitokError
from tests.training.stores import make_store

COUNT = 14


@pytest.fixture
def folder(tmp_path: Path, encoded: Callable[..., bytes]) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    for number in range(COUNT):
        (path / f"{number:02}.png").write_bytes(encoded(number))
    return path


@pytest.fixture
def pictures(folder: Path) -> Pictures:
    return open_pictures(folder)


@pytest.fixture
def store(tmp_path: Path) -> LatentStore:
    names = [f"{number:02}.png" for number in range(COUNT)]
    return make_store(tmp_path / "store", count=COUNT, names=names, image_size=8)


def first(batches: LatentBatches, count: int) -> list[LatentBatch]:
    return list(islice(batches, count))


def indices(batches: list[LatentBatch]) -> list[int]:
    return [index for batch in batches for index in batch.indices.tolist()]


def flips(store: LatentStore, batch: LatentBatch) -> list[bool]:
    """Which rows came from the mirrored view."""
    plain = store.read(batch.indices)
    mirrored = store.read(batch.indices, [True] * len(batch.indices))
    found = [torch.equal(value, other) for value, other in zip(batch.values, mirrored, strict=True)]
    assert all(
        flipped or torch.equal(value, other)
        for flipped, value, other in zip(found, batch.values, plain, strict=True)
    )
    return found


def test_the_order_is_that_of_the_pictures(store: LatentStore, pictures: Pictures) -> None:
    config = DataConfig(preparation="center-crop", workers=0)
    place = {"start_step": 3, "rank": 1, "world": 2, "parts": 2}
    wanted = list(islice(TrainingBatches(pictures, config, 8, 3, seed=7, **place), 10))
    found = first(LatentBatches(store, 3, 7, **place), 10)
    assert indices(found) == [index for batch in wanted for index in batch.indices.tolist()]
    assert all(torch.equal(batch.labels, store.labels[batch.indices]) for batch in found)


def test_pixels_come_along_as_the_tokenizer_saw_them(store: LatentStore, pictures: Pictures) -> None:
    for batch in first(LatentBatches(store, 4, 7, pictures=pictures), 4):
        assert batch.pixels is not None
        for index, flipped, pixels in zip(
            batch.indices.tolist(), flips(store, batch), batch.pixels, strict=True
        ):
            picture = np.asarray(center_crop(pictures.open(index), 8))
            wanted = picture[:, ::-1] if flipped else picture
            assert np.array_equal(pixels.permute(1, 2, 0), wanted)


@pytest.mark.parametrize(("world", "parts"), [(2, 1), (1, 3), (3, 2)])
def test_ranks_and_parts_divide_the_steps(store: LatentStore, world: int, parts: int) -> None:
    whole = first(LatentBatches(store, 12, 7), 5)
    share = 12 // (world * parts)
    ranks = [
        first(LatentBatches(store, share, 7, rank=rank, world=world, parts=parts), 5 * parts)
        for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        pieces = [ranks[rank][step * parts + part] for part in range(parts) for rank in range(world)]
        assert indices(pieces) == batch.indices.tolist()
        assert torch.equal(torch.cat([piece.values for piece in pieces]), batch.values)


def test_it_goes_on_at_any_step(store: LatentStore) -> None:
    whole = first(LatentBatches(store, 3, 7, parts=2), 12)
    again = first(LatentBatches(store, 3, 7, parts=2, start_step=4), 4)
    assert indices(again) == indices(whole[8:])
    assert all(torch.equal(a.values, b.values) for a, b in zip(again, whole[8:], strict=True))


def test_each_epoch_sees_every_latent_and_flips_anew(store: LatentStore) -> None:
    epochs = [first(LatentBatches(store, COUNT, 7, start_step=epoch), 1)[0] for epoch in range(12)]
    assert all(sorted(indices([batch])) == list(range(COUNT)) for batch in epochs)
    assert indices(epochs[:1]) != indices(epochs[1:2])
    found = torch.zeros(12, COUNT)
    for row, batch in zip(found, epochs, strict=True):
        row[batch.indices] = torch.tensor(flips(store, batch), dtype=torch.float32)
    assert 0.35 < float(found.mean()) < 0.65
    assert len({tuple(row.tolist()) for row in found}) == 12  # Not the same latents each time.
    other = first(LatentBatches(store, COUNT, 8), 1)[0]
    assert indices([other]) != indices(epochs[:1])


def test_a_flip_does_not_depend_on_the_batch(store: LatentStore) -> None:
    large = first(LatentBatches(store, COUNT, 7), 1)[0]
    small = first(LatentBatches(store, 1, 7), COUNT)
    assert [flipped for batch in small for flipped in flips(store, batch)] == flips(store, large)


def test_without_flip_all_are_plain(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", flip=False)
    batch = first(LatentBatches(store, 24, 7, flip=False), 1)[0]
    assert torch.equal(batch.values, store.read(batch.indices))
    with pytest.raises(LumitokError, match="no mirrored view"):
        LatentBatches(store, 4, 7)


def test_workers_change_nothing(store: LatentStore, pictures: Pictures) -> None:
    alone = first(LatentBatches(store, 4, 7, pictures=pictures), 5)
    helped = first(LatentBatches(store, 4, 7, pictures=pictures, workers=2), 5)
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.values, b.values)
        assert a.pixels is not None
        assert b.pixels is not None
        assert torch.equal(a.pixels, b.pixels)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_went_bad_is_named(
    store: LatentStore, pictures: Pictures, folder: Path, workers: int
) -> None:
    (folder / "03.png").write_bytes(b"")
    with pytest.raises(UnreadableError, match=r"03\.png.*empty"):
        first(LatentBatches(store, COUNT, 7, pictures=pictures, workers=workers), 1)
