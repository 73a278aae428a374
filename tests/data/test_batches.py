from __future__ import annotations

import itertools
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lumitok.config import DataConfig
from lumitok.data import (
    BadPicture,
    Batch,
    Pictures,
    TrainingBatches,
    UnreadableError,
    open_pictures,
    validation_batches,
)
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


def indices(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.indices for batch in batches]).tolist()


def equal(one: list[Batch], other: list[Batch], *, with_reasons: bool = True) -> bool:
    return len(one) == len(other) and all(
        torch.equal(left.pixels, right.pixels)
        and torch.equal(left.labels, right.labels)
        and torch.equal(left.indices, right.indices)
        and (not with_reasons or left.bad == right.bad)
        for left, right in zip(one, other, strict=True)
    )


def test_shapes_and_labels(pictures: Pictures) -> None:
    pixels, labels, chosen, bad = take(pictures, 1)[0]
    assert bad == []
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


# ------------------------------------------------------------------------------------------------
# Bad pictures

Bad = tuple[Path, dict[str, str]]


def names_of(pictures: Pictures, batches: list[Batch]) -> list[str]:
    return [pictures.names[index] for index in indices(batches)]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_pictures_are_replaced_and_reported(bad_set: Bad, workers: int) -> None:
    path, reasons = bad_set
    pictures = open_pictures(path)
    batches = take(pictures, 10, workers=workers)  # 40 pictures: two epochs of 20.
    assert not set(names_of(pictures, batches)) & set(reasons)
    assert set(names_of(pictures, batches[:5])) | set(reasons) == set(pictures.names)
    met = [bad for batch in batches[:5] for bad in batch.bad]
    assert {bad.name for bad in met} == set(reasons)
    assert all(reasons[bad.name] in bad.reason for bad in met)
    for batch in batches:
        assert len(batch.pixels) == 4
        assert batch.labels.tolist() == [pictures.labels[index] for index in batch.indices]
        assert len({bad.name for bad in batch.bad}) == len(batch.bad)


def test_neither_workers_nor_batches_nor_ranks_change_a_replacement(bad_set: Bad) -> None:
    pictures = open_pictures(bad_set[0])
    whole = take(pictures, 4, batch_size=12)
    assert equal(whole, take(pictures, 4, batch_size=12, workers=2))
    assert equal(whole[2:], take(pictures, 2, batch_size=12, start_step=2))
    single = take(pictures, 48, batch_size=1)
    assert torch.equal(torch.cat([b.pixels for b in single]), torch.cat([b.pixels for b in whole]))
    ranks = [take(pictures, 8, batch_size=2, parts=2, world=3, rank=rank) for rank in range(3)]
    for step in range(4):
        slices = [ranks[rank][2 * step + part] for part in range(2) for rank in range(3)]
        assert torch.equal(torch.cat([s.pixels for s in slices]), whole[step].pixels)
        assert indices(slices) == indices(whole[step : step + 1])


def test_a_folder_and_a_zip_with_the_same_bad_pictures_train_alike(bad_folder: Bad, bad_zip: Bad) -> None:
    one, other = (take(open_pictures(path), 10) for path, _ in (bad_folder, bad_zip))
    assert equal(one, other, with_reasons=False)


def test_a_good_pictures_pixels_do_not_depend_on_the_bad_ones(pictures: Pictures, tmp_path: Path) -> None:
    before = take(pictures, 7)
    (tmp_path / "class0" / "0.png").write_bytes(b"")
    after = take(pictures, 7)
    same = torch.cat([b.indices for b in before]) != 0
    assert torch.equal(*(torch.cat([b.pixels for b in batches])[same] for batches in (before, after)))
    assert 0 not in indices(after)
    assert len({indices(after)[place] for place in range(28) if not same[place]}) > 1  # Not always the same.


def test_a_replacement_that_is_there_already_is_cropped_otherwise(pictures: Pictures, tmp_path: Path) -> None:
    for number in range(1, 7):
        (tmp_path / f"class{number % 2}" / f"{number}.png").write_bytes(b"")
    batch = take(pictures, 1, batch_size=7)[0]
    assert batch.indices.tolist() == [0] * 7
    assert len({pixels.numpy().tobytes() for pixels in batch.pixels}) == 7
    assert len(batch.bad) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_vanishes_during_the_run_is_replaced(
    pictures: Pictures, tmp_path: Path, workers: int
) -> None:
    batches = iter(TrainingBatches(pictures, DataConfig(workers=workers), 8, 7, 5))
    assert next(batches).bad == []
    (tmp_path / "class1" / "3.png").unlink()
    met = [next(batches) for _ in range(8)][-1]  # Past those that were prepared ahead.
    assert met.bad == [BadPicture("class1/3.png", "No such file or directory")]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_closed_by_permissions_is_replaced(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    opened = Path.open

    def closed(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "2.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", closed)
    batches = take(pictures, 2, workers=workers, batch_size=7)
    assert batches[0].bad == batches[1].bad == [BadPicture("class0/2.png", "Permission denied")]
    assert "class0/2.png" not in names_of(pictures, batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_when_all_are_bad_it_ends_with_the_list(pictures: Pictures, tmp_path: Path, workers: int) -> None:
    for path in tmp_path.glob("class*/*.png"):
        path.write_bytes(b"")
    before = set(multiprocessing.active_children())
    with pytest.raises(LumitokError, match="7 of 7 pictures were tried") as error:
        take(pictures, 1, workers=workers)
    assert (
        set(multiprocessing.active_children()) <= before
    )  # The error's traceback holds the loader, and yet.
    assert all(f"{name!r}: the file is empty" in str(error.value) for name in pictures.names)
    assert "Traceback" not in str(error.value)
    with pytest.raises(LumitokError, match="1 of 1 pictures"):
        take(pictures.subset([0]), 1, workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_leaves_bad_pictures_out_and_reports_them(bad_set: Bad, workers: int) -> None:
    path, reasons = bad_set
    pictures = open_pictures(path)
    met: list[BadPicture] = []
    batches = list(validation_batches(pictures, 8, 3, workers=workers, report=met.append))
    assert sorted(bad.name for bad in met) == sorted(reasons)
    assert all(len(batch) for batch in batches)
    good = pictures.subset(i for i, name in enumerate(pictures.names) if name not in reasons)
    assert torch.equal(torch.cat(batches), torch.cat(list(validation_batches(good, 8, 3))))


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_without_a_report_stops_at_a_bad_picture(bad_set: Bad, workers: int) -> None:
    path, reasons = bad_set
    pictures = open_pictures(path)
    before = set(multiprocessing.active_children())
    with pytest.raises(UnreadableError, match=r"ant/cut\.png.*truncated") as error:
        list(validation_batches(pictures, 8, 3, workers=workers))
    assert set(multiprocessing.active_children()) <= before
    assert str(path) in str(error.value)
    only = pictures.subset(pictures.names.index(name) for name in reasons)
    with pytest.raises(LumitokError, match=r"all pictures of .* are bad"):
        list(validation_batches(only, 8, 2, workers=workers, report=lambda _: None))


# ------------------------------------------------------------------------------------------------
# Signals

SCRIPT = """
import os, signal, sys
from lumitok.config import DataConfig
from lumitok.data import TrainingBatches, open_pictures
from torch.utils import data

data._utils.worker.MP_STATUS_CHECK_INTERVAL = 0.1  # How often an idle worker looks for its parent.
for end in sys.argv[2:]:
    child = os.fork()
    if not child:
        break
    print(end, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.setsid()
signal.alarm(60)  # A hang ends here.
batches = iter(TrainingBatches(open_pictures(sys.argv[1]), DataConfig(workers=2), 8, 4, 5))
next(batches), next(batches)  # One of each worker: both have begun, and inherit no handler.
received = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: received.append(number))
    os.killpg(0, number)
for _ in range(50):
    next(batches)
print(sorted(set(received)), flush=True)
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "dropped":
    del batches
# Otherwise Python ends with its workers alive.
"""


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")
def test_signals_to_all_processes_leave_the_workers_to_the_main_one(
    pictures: Pictures, tmp_path: Path
) -> None:
    # The workers share its output, which ends when the last of them has ended.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "killed", "left", "dropped"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    wanted = ["[2, 15]", "killed -9", "[2, 15]", "left 0", "[2, 15]", "dropped 0"]
    assert done.stdout.splitlines() == wanted, done.stderr
    assert done.stderr == ""
