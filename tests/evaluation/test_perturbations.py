"""SE-CKNNA's changes of a picture; tests/parity holds them against the official numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation import perturbations
from lumitok.evaluation.perturbations import TURNED, Turn, add_noise, draw_turn, noise_name, perturb, turn

FIVE = ["noise 0.05", "noise 0.10", "noise 0.15", "noise 0.20", "rotation and scale"]


def pictures(count: int = 6, side: int = 16) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=draw, dtype=torch.uint8)


def one_group(groups: list[perturbations.Group]) -> Tensor:
    (group,) = groups
    assert group.places.tolist() == list(range(len(group.pixels)))
    return group.pixels


def test_there_are_four_strengths_of_noise_and_one_turn() -> None:
    changed = perturb(pictures(), range(6))
    assert list(changed) == perturbations.names() == FIVE
    for groups in changed.values():
        assert one_group(groups).shape == (6, 3, 16, 16)
        assert one_group(groups).dtype == torch.uint8


def test_a_picture_is_changed_by_its_index_alone() -> None:
    x = pictures()
    whole = perturb(x, range(10, 16))
    part = perturb(x[[4, 1]], [14, 11])
    for name in FIVE:
        assert torch.equal(one_group(whole[name])[[4, 1]], one_group(part[name])), name
    other = perturb(x, range(20, 26))
    assert not torch.equal(one_group(other["noise 0.05"]), one_group(whole["noise 0.05"]))
    reseeded = perturb(x, range(10, 16), seed=52)
    assert torch.equal(one_group(reseeded["noise 0.05"]), one_group(other["noise 0.05"]))


@pytest.mark.parametrize("sigma", perturbations.NOISE)
def test_noise_is_as_strong_as_its_name(sigma: float) -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    (noisy,) = add_noise(grey, [sigma], index=0)
    # Truncation takes half a level off the mean.
    assert noisy.astype(float).std() / 255 == pytest.approx(sigma, rel=0.05)
    assert noisy.astype(float).mean() == pytest.approx(127.5, abs=1)
    assert noise_name(sigma) in FIVE


def test_noise_is_clipped_not_wrapped() -> None:
    (noisy,) = add_noise(np.full((32, 32, 3), 255, np.uint8), [0.2], index=0)
    assert noisy.min() > 40
    assert (noisy == 255).mean() > 0.4


def test_every_rotation_and_scale_is_drawn_evenly() -> None:
    draws = [draw_turn(index) for index in range(800)]
    assert draws[:9] == [draw_turn(index) for index in range(9)]
    for degrees in (0, 90, 180, 270):
        assert 0.2 < np.mean([draw.degrees == degrees for draw in draws]) < 0.3
    for scale in (1.0, 0.75, 0.5, 0.25):
        assert 0.2 < np.mean([draw.scale == scale for draw in draws]) < 0.3


def test_a_turn_is_counter_clockwise() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[0, 3] = 255  # Upper right goes to upper left.
    assert turn(picture, Turn(90, 1.0))[0, 0].tolist() == [255, 255, 255]


def test_a_scaled_picture_is_brought_back_or_left_small() -> None:
    ramp = np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[None, :, None], 16, axis=0).repeat(3, axis=2)
    back, small = turn(ramp, Turn(0, 0.25)), turn(ramp, Turn(0, 0.25), "smaller")
    assert back.shape == (16, 16, 3)
    assert small.shape == (4, 4, 3)
    inner = slice(4, 12)
    assert np.abs(back[:, inner].astype(int) - ramp[:, inner]).max() <= 8
    checker = np.indices((16, 16)).sum(axis=0)[:, :, None].repeat(3, axis=2) % 2 * 255
    flat = turn(
        checker.astype(np.uint8), Turn(0, 0.25)
    )  # Antialiased: grey, where every fourth pixel is black.
    assert np.abs(flat[4:12, 4:12].astype(int) - 128).max() < 20


def test_smaller_pictures_come_in_groups_that_know_their_places() -> None:
    x = pictures(12)
    groups = perturb(x, range(12), scaled="smaller")[TURNED]
    sides = [group.pixels.shape[-1] for group in groups]
    assert sides == [16, 12, 8, 4]
    assert sorted(place for group in groups for place in group.places.tolist()) == list(range(12))
    for group in groups:
        for pixels, place in zip(group.pixels, group.places.tolist(), strict=True):
            wanted = turn(x[place].permute(1, 2, 0).numpy(), draw_turn(place), "smaller")
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), wanted)


def test_what_is_no_square_picture() -> None:
    with pytest.raises(LumitokError, match=r"square 8-bit pictures .* not torch.float32"):
        perturb(pictures().float(), range(6))
    with pytest.raises(LumitokError, match=r"shape \(6, 3, 16, 8\)"):
        perturb(pictures()[..., :8], range(6))
    with pytest.raises(LumitokError, match="5 indices for 6 pictures"):
        perturb(pictures(), range(5))
