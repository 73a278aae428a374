from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.losses.discriminators.augment import AugmentDraws, augment, color, cutout, draw, translation


def fixed(**values: list[float] | list[int]) -> AugmentDraws:
    """Draws that change nothing visible (the cutout apart), but for those that are given."""
    count = len(next(iter(values.values())))
    zeros, ones = [0] * count, [1.0] * count
    neutral = {
        "brightness": [0.0] * count,
        "saturation": ones,
        "contrast": ones,
        "shift_rows": zeros,
        "shift_columns": zeros,
        "cut_rows": zeros,
        "cut_columns": zeros,
    }
    return AugmentDraws(**{key: torch.tensor(value) for key, value in (neutral | values).items()})


def pictures(batch: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_translation_against_a_loop() -> None:
    x = pictures(3, 6, 5)
    shifts = [(-1, 2), (0, 0), (2, -1)]
    out = translation(x, fixed(shift_rows=[s[0] for s in shifts], shift_columns=[s[1] for s in shifts]))
    for b, (dy, dx) in enumerate(shifts):
        for i in range(6):
            for j in range(5):
                inside = 0 <= i + dy < 6 and 0 <= j + dx < 5
                expected = x[b, :, i + dy, j + dx] if inside else torch.zeros(3)
                assert torch.equal(out[b, :, i, j], expected)


@pytest.mark.parametrize(("height", "width"), [(10, 15), (13, 8)])  # Cut sides 2 and 3; 3 and 2.
def test_cutout_against_a_loop(height: int, width: int) -> None:
    x = pictures(4, height, width)
    centres = [(0, 0), (height - 1, width - 1), (4, 5), (height - 2, 0)]
    out = cutout(x, fixed(cut_rows=[c[0] for c in centres], cut_columns=[c[1] for c in centres]))
    side_y, side_x = int(height * 0.2 + 0.5), int(width * 0.2 + 0.5)
    for b, (cy, cx) in enumerate(centres):
        expected = x[b].clone()
        for i in range(cy - side_y // 2, cy - side_y // 2 + side_y):
            for j in range(cx - side_x // 2, cx - side_x // 2 + side_x):
                if 0 <= i < height and 0 <= j < width:
                    expected[:, i, j] = 0
        assert torch.equal(out[b], expected)


def test_color_takes_brightness_then_saturation_then_contrast() -> None:
    x = pictures(2, 3, 4)
    out = color(x, fixed(brightness=[0.3, -0.4], saturation=[1.7, 0.2], contrast=[0.6, 1.4]))
    for b, (add, saturate, contrast) in enumerate([(0.3, 1.7, 0.6), (-0.4, 0.2, 1.4)]):
        y = x[b].double() + add
        grey = y.mean(dim=0, keepdim=True)
        y = grey + saturate * (y - grey)
        y = y.mean() + contrast * (y - y.mean())
        torch.testing.assert_close(out[b].double(), y, rtol=1e-5, atol=1e-6)


def test_augment_is_color_then_translation_then_cutout() -> None:
    # Brightness lifts the picture, but neither the zeros that come in nor the hole.
    x = torch.zeros(1, 3, 10, 10)
    out = augment(x, fixed(brightness=[0.4], shift_rows=[1], cut_rows=[5], cut_columns=[5]))
    assert torch.equal(out[0, :, 9], torch.zeros(3, 10))
    assert torch.equal(out[0, :, 4:6, 4:6], torch.zeros(3, 2, 2))
    assert out[0, 0, 0, 0].item() == pytest.approx(0.4)
    assert int((out[0, 0] == 0).sum()) == 10 + 4


def test_augment_gradient() -> None:
    x = pictures(2, 5, 5).double().requires_grad_()
    draws = draw(2, 5, 5, generators(3, 4))
    assert torch.autograd.gradcheck(lambda p: augment(p, draws), x)


def test_draws_fill_their_ranges() -> None:
    torch.manual_seed(0)
    draws = draw(4000, 32, 40)
    ranges = {"brightness": (-0.5, 0.5), "saturation": (0.0, 2.0), "contrast": (0.5, 1.5)}
    for name, (low, high) in ranges.items():
        values = getattr(draws, name)
        width = high - low
        assert low <= values.min() < low + 0.01 * width
        assert high - 0.01 * width < values.max() < high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.03 * width)
    whole = {
        "shift_rows": range(-4, 5),
        "shift_columns": range(-5, 6),
        "cut_rows": range(33),  # The hole is 6 high: its centre lies between pixels, 33 places.
        "cut_columns": range(41),  # And 8 wide.
    }
    for name, places in whole.items():
        values = getattr(draws, name)
        assert sorted(set(values.tolist())) == list(places)
        counts = torch.bincount(values - min(places))
        assert counts.min() > 0.5 * 4000 / len(places)
    odd = draw(4000, 25, 14)  # Holes 5 high and 3 wide.
    assert odd.cut_rows.max() == 24
    assert odd.cut_columns.max() == 13


def test_pictures_have_draws_of_their_own_that_the_seed_decides() -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(draw(8, 64, 64))
    one, same, other = drawn
    for field in dataclasses.fields(AugmentDraws):
        value = getattr(one, field.name)
        assert len(set(value.tolist())) > 1
        assert torch.equal(value, getattr(same, field.name))
        assert not torch.equal(value, getattr(other, field.name))


@pytest.mark.parametrize("parts", [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[3, 1], [0, 2]]])
def test_with_its_own_generator_a_picture_is_changed_alike_in_any_batch(parts: list[list[int]]) -> None:
    x = pictures(4, 32, 24)
    seeds = [5, 6, 7, 8]
    whole = augment(x, draw(4, 32, 24, generators(*seeds)))
    for part in parts:
        alone = augment(x[part], draw(len(part), 32, 24, generators(*(seeds[i] for i in part))))
        torch.testing.assert_close(alone, whole[part], rtol=1e-5, atol=1e-6)


def test_generators_leave_the_global_one_alone_and_follow_their_seed() -> None:
    before = torch.get_rng_state()
    drawn = draw(2, 64, 64, generators(1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for field in dataclasses.fields(AugmentDraws):
        first, second = getattr(drawn, field.name).tolist()
        assert first != second
    swapped = draw(2, 64, 64, generators(2, 1))
    assert torch.equal(swapped.brightness, drawn.brightness.flip(0))


def test_one_generator_a_picture() -> None:
    with pytest.raises(LumitokError, match="3 generators were given for 2 pictures"):
        draw(2, 8, 8, generators(1, 2, 3))
