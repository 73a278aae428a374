from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lumitok.config import DataConfig
from lumitok.data import Pictures, TrainingBatches, open_pictures, validation_batches
from lumitok.errors import LumitokError

# Of Python and of torch, about the machine and not about this package.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    for number in range(7):
        values = np.random.default_rng(number).integers(0, 256, (12, 15, 3), np.uint8)
        path = tmp_path / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(values).save(path)
    return open_pictures(tmp_path)


def take(
    pictures: Pictures, count: int, *, workers: int = 0, batch_size: int = 4, seed: int = 5, **place: int
):  # type: ignore[no-untyped-def]
    batches = TrainingBatches(pictures, DataConfig(workers=workers), 8, batch_size, seed, **place)
    return list(itertools.islice(batches, count))


def indices(batches: list[tuple[torch.Tensor, ...]]) -> list[int]:
    return torch.cat([batch[2] for batch in batches]).tolist()


def equal(one: list[tuple[torch.Tensor, ...]], other: list[tuple[torch.Tensor, ...]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def test_shapes_and_labels(pictures: Pictures) -> None:
    pixels, labels, chosen = take(pictures, 1)[0]
    assert (pixels.shape, pixels.dtype) == ((4, 3, 8, 8), torch.uint8)
    assert labels.tolist() == [pictures.labels[i] for i in chosen]
    assert labels.dtype == chosen.dtype == torch.int64


def test_workers_change_nothing(pictures: Pictures) -> None:
    assert equal(take(pictures, 6), take(pictures, 6, workers=2))


def test_workers_read_one_zip(tmp_path: Path, pictures: Pictures) -> None:
    import shutil

    folder = tmp_path.parent / f"{tmp_path.name}-zip"
    archive = open_pictures(shutil.make_archive(str(folder), "zip", tmp_path))
    archive.open(0)  # An open handle must not be shared with the workers.
    assert equal(take(pictures, 12), take(archive, 12, workers=2))


def test_each_epoch_holds_every_picture_once_in_a_new_order(pictures: Pictures) -> None:
    order = indices(take(pictures, 7))  # 28 pictures: four epochs of 7, cut into batches of 4.
    epochs = [order[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order != indices(take(pictures, 7, seed=6))


def test_a_set_smaller_than_a_batch(pictures: Pictures) -> None:
    order = indices(take(pictures, 1, batch_size=17))
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))


def test_a_picture_is_cropped_anew_in_each_epoch_and_alike_in_any_batch(pictures: Pictures) -> None:
    one = take(pictures, 14, batch_size=1)
    by_epoch = {epoch: {int(b[2]): b[0] for b in one[7 * epoch : 7 * epoch + 7]} for epoch in (0, 1)}
    assert not any(torch.equal(by_epoch[0][i], by_epoch[1][i]) for i in range(7))
    large = take(pictures, 1, batch_size=14)[0]
    assert torch.equal(large[0], torch.cat([b[0] for b in one]))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_tail(pictures: Pictures, workers: int) -> None:
    whole = take(pictures, 10, parts=2)
    assert equal(take(pictures, 4, parts=2, start_step=3, workers=workers), whole[6:])


def test_iterating_twice_begins_again(pictures: Pictures) -> None:
    batches = TrainingBatches(pictures, DataConfig(workers=0), 8, 4, 5, start_step=2)
    assert equal(list(itertools.islice(batches, 2)), list(itertools.islice(batches, 2)))


def test_ranks_and_parts_share_out_the_same_global_batch(pictures: Pictures) -> None:
    whole = take(pictures, 3, batch_size=12)
    ranks = [take(pictures, 6, batch_size=2, parts=2, world=3, rank=rank) for rank in range(3)]
    for step in range(3):
        slices = [ranks[rank][2 * step + part] for part in range(2) for rank in range(3)]
        assert torch.equal(torch.cat([s[0] for s in slices]), whole[step][0])


def test_torchs_global_random_state_is_left_alone(pictures: Pictures) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(pictures, 2)
    list(validation_batches(pictures, 8, 4))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_one_sentence(pictures: Pictures, tmp_path: Path, workers: int) -> None:
    (tmp_path / "class0" / "0.png").write_bytes(b"no picture")
    with pytest.raises(LumitokError, match=r"class0/0\.png") as error:
        take(pictures, 7, workers=workers)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("place", [{"rank": 2, "world": 2}, {"seed": -1}, {"start_step": -1}, {"parts": 0}])
def test_wrong_places_are_named(pictures: Pictures, place: dict[str, int]) -> None:
    with pytest.raises(LumitokError, match="rank < world"):
        take(pictures, 1, **place)
    with pytest.raises(LumitokError, match="no picture"):
        take(pictures.subset([]), 1)
    with pytest.raises(LumitokError, match="batch size"):
        take(pictures, 1, batch_size=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_goes_by_name_and_never_mirrors(pictures: Pictures, workers: int) -> None:
    shuffled = pictures.subset([3, 0, 6, 1, 5, 2, 4])
    batches = list(validation_batches(shuffled, 12, 3, workers=workers))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    wanted = [np.asarray(pictures.open(i))[:, 1:13] for i in range(7)]  # (15 - 12) // 2 columns are cut off.
    assert torch.equal(torch.cat(batches), torch.from_numpy(np.stack(wanted)).permute(0, 3, 1, 2))
