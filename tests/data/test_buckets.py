"""Buckets of aspect ratios: which picture goes where, how it is cut, and in what order batches come."""

from __future__ import annotations

import io
import itertools
import math
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from pydantic import ValidationError

from lumitok.config import DataConfig
from lumitok.data import Batch, Buckets, Pictures, TrainingBatches, open_pictures, read_picture
from lumitok.data.buckets import BucketKeys, assign, check_sizes, default_sizes, read_sizes
from lumitok.data.prepare import augmentation_rng, cover, prepare
from lumitok.data.read import read_size
from lumitok.errors import LumitokError

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]
SIZES = [(16, 8), (8, 8), (8, 16)]
SHAPES = [(20, 10)] * 7 + [(12, 12)] * 5 + [(9, 18)] * 3  # Height and width.


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    for number, shape in enumerate(SHAPES):
        values = np.random.default_rng(number).integers(0, 256, (*shape, 3), np.uint8)
        Image.fromarray(values).save(tmp_path / f"{number:02}.png")
    return open_pictures(tmp_path)


@pytest.fixture
def buckets(pictures: Pictures) -> Buckets:
    return assign(read_sizes(pictures), SIZES)


# ------------------------------------------------------------------------------------------------
# Sizes


def test_default_sizes_are_portrait_square_and_landscape_on_the_grid() -> None:
    sizes = default_sizes(256, 16)
    assert sizes[8:] == [(256, side) for side in range(256, 513, 32)]
    assert sizes[:9] == [(side, 256) for side in range(512, 255, -32)]
    # No picture up to twice as long as wide loses more than about a sixteenth.
    ratios = [width / height for height, width in sizes]
    assert max(b / a for a, b in itertools.pairwise(ratios)) <= 1.126
    assert default_sizes(256, 64)[4:] == [(256, side) for side in range(256, 513, 64)]
    assert default_sizes(32, 16) == [(64, 32), (48, 32), (32, 32), (32, 48), (32, 64)]
    assert default_sizes(32, 64) == [(32, 32)]


def test_sizes_off_the_grid_name_those_that_fit() -> None:
    check_sizes([(256, 272), (16, 16)], 16)
    with pytest.raises(LumitokError, match=r"256x264 pixels .* multiples of 16; .* 256x256 and 256x272$"):
        check_sizes([(256, 256), (256, 264)], 16)
    with pytest.raises(LumitokError, match=r"the nearest that fit are 16x16 and 16x32$"):
        check_sizes([(9, 17)], 16)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"preparation": "random-crop", "buckets": [[8, 8]]},
            "of preparation keep-aspect, not of random-crop",
        ),
        ({"preparation": "keep-aspect", "buckets": []}, "empty list"),
        (
            {"preparation": "keep-aspect", "buckets": [[8, 16], [16, 32]]},
            r"\[8, 16\] and \[16, 32\] have one",
        ),
        ({"preparation": "keep-aspect", "buckets": [[8, 8], [8, 8]]}, "have one aspect ratio"),
        ({"preparation": "keep-aspect", "buckets": [[8, 0]]}, "greater than or equal to 8"),
    ],
)
def test_buckets_that_cannot_be_say_why(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataConfig.model_validate(keys)
    assert DataConfig.model_validate({"preparation": "keep-aspect", "buckets": SIZES}).buckets == SIZES


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_header_gives_the_size_of_the_upright_picture(
    encoded: Callable[..., bytes], kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(size=(15, 12), kind=kind, exif=exif)
    size = read_size(io.BytesIO(content))
    assert size == read_picture(io.BytesIO(content)).size
    assert size == ((12, 15) if orientation > 4 else (15, 12))


def test_headers_are_read_without_decoding(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: Any) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decode)
    monkeypatch.setattr("lumitok.data.buckets.CHUNK", 4)
    said: list[int] = []
    assert read_sizes(pictures, threads=3, report=said.append).tolist() == [list(shape) for shape in SHAPES]
    assert said == [4, 8, 12, 15]
    (tmp_path / "03.png").write_bytes(b"no picture")
    assert read_sizes(pictures)[2:5].tolist() == [[20, 10], [0, 0], [20, 10]]


def test_of_a_zip_no_more_than_the_beginnings_are_unpacked(
    tmp_path: Path, encoded: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(size=(500, 400))
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", content)
    pictures = open_pictures(tmp_path / "pictures.zip")
    unpacked = 0
    read = zipfile.ZipExtFile.read

    def counted(file: zipfile.ZipExtFile, count: int | None = -1) -> bytes:
        nonlocal unpacked
        found = read(file, count)
        unpacked += len(found)
        return found

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    assert pictures.size(0) == (500, 400)
    assert 0 < unpacked < len(content) / 10
    assert pictures.open(0).size == (500, 400)


# ------------------------------------------------------------------------------------------------
# Assignment and preparation


def test_each_picture_goes_to_the_nearest_ratio() -> None:
    sizes = default_sizes(256, 16)
    rng = np.random.default_rng(0)
    shapes = rng.integers(1, 2000, (300, 2)).astype(np.int32)
    shuffled = [sizes[place] for place in rng.permutation(len(sizes))]
    found = assign(shapes, shuffled)
    for (height, width), place in zip(shapes.tolist(), found.of.tolist(), strict=True):
        gaps = [abs(math.log(width / height) - math.log(w / h)) for h, w in shuffled]
        assert gaps[place] <= min(gaps) + 1e-9
    assert sum(found.counts) == 300
    assert assign(shapes, [(8, 8)]).of.tolist() == [0] * 300


def test_a_picture_is_counted_and_said(buckets: Buckets) -> None:
    assert buckets.counts == [7, 5, 3]
    said = buckets.describe(5)
    assert "15 pictures in 3 buckets (height x width): 16x8 7, 8x8 5, 8x16 3;" in said
    assert said.endswith("fewer than a batch, so not in every epoch: 8x16")
    assert "fewer than" not in buckets.describe(3)


@pytest.mark.parametrize("shape", [(20, 10), (9, 18), (5, 300), (33, 32), (1, 1), (300, 200)])
@pytest.mark.parametrize("size", [(16, 8), (8, 16), (8, 8)])
def test_a_picture_covers_its_bucket_and_keeps_its_shape(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    image = Image.new("RGB", shape[::-1], (9, 9, 9))
    covering = cover(image, *size)
    assert covering.height >= size[0]
    assert covering.width >= size[1]
    assert covering.height == size[0] or covering.width == size[1]  # No larger than need be.
    scale = max(size[0] / shape[0], size[1] / shape[1])
    assert abs(covering.height - shape[0] * scale) <= 1.5
    assert abs(covering.width - shape[1] * scale) <= 1.5 + 0.03 * covering.width  # Halving rounds.
    options: dict[str, Any] = {"crop_scale": (1, 1), "flip": True, "rng": augmentation_rng(0, 0, 0)}
    pixels = prepare(image, size, "keep-aspect", **options)
    assert pixels.shape == (*size, 3)
    assert (pixels == 9).all()  # Nothing but the picture.


def test_the_crop_is_at_a_random_place_and_all_of_them_occur() -> None:
    columns = np.broadcast_to(np.arange(12, dtype=np.uint8)[None, :, None], (8, 12, 3))
    image = Image.fromarray(np.ascontiguousarray(columns))
    crops = [
        prepare(
            image, (8, 9), "keep-aspect", crop_scale=(1, 1), flip=False, rng=augmentation_rng(0, 0, index)
        )
        for index in range(60)
    ]
    assert {int(crop[0, 0, 0]) for crop in crops} == {0, 1, 2, 3}
    assert all((np.diff(crop[0, :, 0].astype(int)) == 1).all() for crop in crops)


# ------------------------------------------------------------------------------------------------
# Order

PLACE = {"batch_size": 4, "start_step": 0, "rank": 0, "world": 1, "parts": 1}
Keys = list[tuple[int, int]]


def keys(buckets: Buckets, count: int, seed: int = 5, **place: int) -> list[Keys]:
    return list(itertools.islice(BucketKeys(buckets, seed, **{**PLACE, **place}), count))


def test_a_batch_is_of_one_bucket(buckets: Buckets) -> None:
    for batch in keys(buckets, 60):
        assert len(batch) == 4
        assert len({int(buckets.of[index]) for _, index in batch}) == 1


@pytest.mark.parametrize("batch_size", [1, 3, 4, 17])
def test_nothing_is_lost_and_what_is_over_is_carried_to_the_next_epoch(
    buckets: Buckets, batch_size: int
) -> None:
    made = BucketKeys(buckets, 5, **{**PLACE, "batch_size": batch_size})
    steps = 0
    for epoch in range(1, 30):
        steps_now = sum(epoch * count // batch_size for count in buckets.counts)
        assert steps_now >= steps
        steps = steps_now
        used = Counter(index for batch in itertools.islice(made, steps) for _, index in batch)
        over = Counter[int]()
        for index, bucket in enumerate(buckets.of.tolist()):
            over[bucket] += epoch - used[index]
            # Used once an epoch, or still to come; never more often than epochs have passed.
            assert 0 <= epoch - used[index] <= -(-batch_size // buckets.counts[bucket])
        assert all(0 <= count < batch_size for count in over.values())


def test_a_picture_has_each_epoch_once(buckets: Buckets) -> None:
    given = [key for batch in keys(buckets, 200) for key in batch]
    assert len(set(given)) == len(given)
    for bucket in range(3):
        mine = [key for key in given if buckets.of[key[1]] == bucket]
        assert [epoch for epoch, _ in mine] == sorted(epoch for epoch, _ in mine)


def test_buckets_take_turns_at_random_in_proportion() -> None:
    many = Buckets(SIZES, np.repeat([0, 1, 2], [400, 200, 40]))
    drawn = [int(many.of[batch[0][1]]) for batch in keys(many, 160)]  # 640 pictures: one epoch.
    assert Counter(drawn) == {0: 100, 1: 50, 2: 10}
    assert Counter(drawn[:80])[0] < 65  # Not one after the other.
    assert drawn != [int(many.of[batch[0][1]]) for batch in keys(many, 160, seed=6)]
    after = [int(many.of[batch[0][1]]) for batch in keys(many, 320)[160:]]
    assert Counter(after) == Counter(drawn)
    assert after != drawn


def test_each_epoch_and_bucket_has_an_order_of_its_own() -> None:
    one = Buckets(SIZES, np.repeat([0, 1], [40, 40]))
    batches = keys(one, 40)  # Two epochs.
    orders = [
        [index % 40 for batch in batches for epoch, index in batch if (epoch, one.of[index]) == (e, bucket)]
        for e in (0, 1)
        for bucket in (0, 1)
    ]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("batch_size", [1, 4, 17])
def test_going_on_at_any_step_gives_the_tail(buckets: Buckets, batch_size: int) -> None:
    whole = keys(buckets, 80, batch_size=batch_size)
    for start in range(40):
        assert keys(buckets, 40, batch_size=batch_size, start_step=start) == whole[start : start + 40], start


def test_going_on_far_from_the_beginning_is_quick() -> None:
    many = Buckets(SIZES, np.repeat([0, 1, 2], [5000, 2000, 3]))
    far = 300_000
    made = BucketKeys(many, 0, **{**PLACE, "batch_size": 256, "start_step": far})
    (bucket, number), *_ = itertools.islice(made.steps(), 1)
    epoch = made._epoch_of(far)
    assert made._steps_before(epoch) <= far < made._steps_before(epoch + 1)
    assert number in range(made._given(epoch)[bucket], made._given(epoch + 1)[bucket])


def test_ranks_and_parts_share_out_the_same_step(buckets: Buckets) -> None:
    whole = keys(buckets, 30, batch_size=12)
    ranks = [keys(buckets, 60, batch_size=2, parts=2, world=3, rank=rank) for rank in range(3)]
    for step in range(30):
        shares = [ranks[rank][2 * step + part] for part in range(2) for rank in range(3)]
        assert [key for share in shares for key in share] == whole[step]
    late = keys(buckets, 10, batch_size=2, parts=2, world=3, rank=1, start_step=7)
    assert late == ranks[1][14:24]


def test_pictures_that_are_no_ones_bucket_leave_it_empty() -> None:
    square = Buckets(SIZES, np.ones(6, np.int64))
    assert {index for batch in keys(square, 3) for _, index in batch} == set(range(6))
    assert "in 1 buckets" in square.describe(1)


# ------------------------------------------------------------------------------------------------
# Batches


def take(pictures: Pictures, buckets: Buckets, count: int, workers: int = 0, **place: int) -> list[Batch]:
    config = DataConfig(preparation="keep-aspect", workers=workers)
    batches = TrainingBatches(pictures, config, 8, 4, 5, buckets=buckets, **place)
    return list(itertools.islice(batches, count))


def equal(one: list[Batch], other: list[Batch]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a.pixels, b.pixels) and torch.equal(a.indices, b.indices) for a, b in pairs)


def test_batches_have_their_buckets_size(pictures: Pictures, buckets: Buckets) -> None:
    batches = take(pictures, buckets, 12)
    assert {tuple(batch.pixels.shape) for batch in batches} == {(4, 3, *size) for size in SIZES}
    for batch in batches:
        assert {buckets.sizes[buckets.of[index]] for index in batch.indices} == {batch.pixels.shape[2:]}
    assert equal(batches, take(pictures, buckets, 12, workers=2))
    assert equal(batches[5:], take(pictures, buckets, 7, start_step=5))


def test_a_bad_pictures_place_is_taken_by_one_of_its_bucket(
    pictures: Pictures, buckets: Buckets, tmp_path: Path
) -> None:
    before = take(pictures, buckets, 12)
    (tmp_path / "08.png").write_bytes(b"")  # A square.
    after = take(pictures, buckets, 12)
    for old, new in zip(before, after, strict=True):
        place = (old.indices == 8).nonzero().flatten()
        assert {int(buckets.of[index]) for index in new.indices[place]} <= {1}
        assert torch.equal(old.pixels[old.indices != 8], new.pixels[old.indices != 8])
    for number in (7, 9, 10, 11):  # All squares: now others come, cropped to the size.
        (tmp_path / f"{number:02}.png").write_bytes(b"")
    others = [batch for batch in take(pictures, buckets, 12) if batch.pixels.shape[2:] == (8, 8)]
    assert others
    assert all(buckets.of[index] != 1 for batch in others for index in batch.indices)


def test_buckets_and_preparation_go_together(pictures: Pictures, buckets: Buckets) -> None:
    with pytest.raises(LumitokError, match="got keep-aspect without buckets"):
        TrainingBatches(pictures, DataConfig(preparation="keep-aspect"), 8, 4, 5)
    with pytest.raises(LumitokError, match="got center-crop with buckets"):
        TrainingBatches(pictures, DataConfig(preparation="center-crop"), 8, 4, 5, buckets=buckets)
