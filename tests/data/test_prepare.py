from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from lumitok.data import center_crop, prepare, random_square
from lumitok.data.prepare import TRIES, augmentation_rng, replacements


def ramp(width: int, height: int) -> Image.Image:
    """Red is the column and green the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))


def test_center_crop_halves_with_a_box_then_cuts_the_centre() -> None:
    # 40 x 16 to 4: halved to 20 x 8, then (8 is still twice 4) to 10 x 4, and columns 3 to 6 are kept.
    pixels = np.asarray(center_crop(ramp(40, 16), 4))
    halved = np.asarray(ramp(40, 16)).reshape(8, 2, 20, 2, 3).mean((1, 3))
    halved = np.floor(halved + 0.5).reshape(4, 2, 10, 2, 3).mean((1, 3))
    assert np.abs(pixels - halved[:, 3:7]).max() <= 1


def test_center_crop_resizes_bicubically_where_it_cannot_halve() -> None:
    image = ramp(45, 30)
    wanted = image.resize((30, 20), Image.Resampling.BICUBIC).crop((5, 0, 25, 20))
    assert center_crop(image, 20).tobytes() == wanted.tobytes()
    assert center_crop(ramp(5, 7), 16).size == (16, 16)


def test_center_crop_halves_at_twice_the_size_exactly() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    assert center_crop(noise, 8).tobytes() == noise.resize((8, 8), Image.Resampling.BOX).tobytes()


def test_center_crop_of_a_line_does_not_become_a_giant(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Image.fromarray((np.arange(6001)[None] // 24).astype(np.uint8)).convert("RGB")
    resize, sizes = Image.Image.resize, []

    def watched(image: Image.Image, size: tuple[int, int], *arguments: Any) -> Image.Image:
        sizes.extend(size)
        return resize(image, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", watched)
    for image in (line, line.transpose(Image.Transpose.ROTATE_90)):
        cut = center_crop(image, 16)
        assert cut.size == (16, 16)
        assert set(np.asarray(cut).ravel()) == {125}  # The middle pixel, 3000.
    assert max(sizes) <= 65 * 16


def test_a_single_pixel_fills_the_square() -> None:
    pixel = Image.new("RGB", (1, 1), (3, 4, 5))
    for image in (center_crop(pixel, 8), random_square(pixel, 8, (0.5, 1.0), augmentation_rng(0, 0, 0))):
        assert (np.asarray(image) == (3, 4, 5)).all()


def test_random_square_lies_inside_and_covers_the_range() -> None:
    # A square of side s keeps its scale: the ramp's slope in the result is s / 8.
    sides, lefts = [], []
    for index in range(200):
        pixels = np.asarray(
            random_square(ramp(120, 80), 8, (0.5, 1.0), augmentation_rng(0, 0, index))
        ).astype(float)
        sides.append((pixels[4, 6, 0] - pixels[4, 2, 0]) * 2)
        lefts.append(pixels[4, :4, 0].mean() - sides[-1] / 4)
        assert pixels[..., 0].max() <= 119
        assert pixels[..., 1].max() <= 79
    assert 38 <= min(sides) < 43
    assert 76 < max(sides) <= 82
    assert min(lefts) < 6
    assert max(lefts) > 60


def test_random_square_of_scale_one_is_the_short_side() -> None:
    pixels = np.asarray(random_square(ramp(10, 6), 6, (1.0, 1.0), augmentation_rng(0, 0, 1)))
    assert (pixels[:, 0, 1] == np.arange(6)).all()


def test_flip_mirrors_half_and_only_when_asked() -> None:
    mirrored = 0
    for index in range(200):
        options = {"crop_scale": (1.0, 1.0), "rng": augmentation_rng(1, 0, index)}
        pixels = prepare(ramp(8, 8), 8, "center-crop", flip=True, **options)
        assert pixels.dtype == np.uint8
        mirrored += int(pixels[0, 0, 0] == 7)
        options["rng"] = augmentation_rng(1, 0, index)
        assert prepare(ramp(8, 8), 8, "center-crop", flip=False, **options)[0, 0, 0] == 0
    assert 75 <= mirrored <= 125


@pytest.mark.parametrize("other", [(1, 2, 3), (0, 3, 3), (0, 2, 4)])
def test_seed_epoch_and_index_each_change_the_augmentation(other: tuple[int, int, int]) -> None:
    assert augmentation_rng(0, 2, 3).random() == augmentation_rng(0, 2, 3).random()
    assert augmentation_rng(0, 2, 3).random() != augmentation_rng(*other).random()


def test_replacements_are_others_each_once() -> None:
    assert sorted(replacements(0, 1, 2, 7)) == [0, 1, 3, 4, 5, 6]
    assert list(replacements(0, 1, 0, 1)) == []
    many = list(replacements(0, 1, 2, 10_000_000))
    assert len(set(many)) == len(many) == TRIES
    assert max(many) > 9_000_000


@pytest.mark.parametrize("other", [(1, 2, 3), (0, 3, 3), (0, 2, 4)])
def test_seed_epoch_and_index_each_change_the_replacement(other: tuple[int, int, int]) -> None:
    assert list(replacements(0, 2, 3, 1000)) == list(replacements(0, 2, 3, 1000))
    assert next(replacements(0, 2, 3, 1000)) != next(replacements(*other, 1000))
