from __future__ import annotations

import pytest
import torch

from lumitok.errors import LumitokError
from lumitok.losses.velocity import velocity_angle, velocity_error


def test_each_sample_has_its_mean_square() -> None:
    predicted, target = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    target[1] *= 3
    assert velocity_error(predicted, target).tolist() == [1, 9]
    assert velocity_error(torch.zeros(2, 5), torch.full((2, 5), 2.0)).tolist() == [4, 4]  # A class token.


def test_the_angle_is_taken_along_the_channels() -> None:
    predicted, target = torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 3)
    predicted[:, 0] = torch.tensor([5.0, 1.0, 1.0])
    target[0, :, 0] = torch.tensor([[1.0, 0.0, -2.0], [0.0, 1.0, 0.0]])  # The same, a right angle, opposite.
    torch.testing.assert_close(velocity_angle(predicted, target), torch.tensor([(0 + 1 + 2) / 3]))


@pytest.mark.parametrize("loss", [velocity_error, velocity_angle])
def test_half_precision_is_measured_in_single(loss: object) -> None:
    predicted, target = torch.randn(2, 1, 8, 4, 4).unbind()
    expected = loss(predicted.bfloat16().float(), target)  # type: ignore[operator]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(predicted.bfloat16(), target)  # type: ignore[operator]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", [velocity_error, velocity_angle])
def test_two_shapes(loss: object) -> None:
    with pytest.raises(LumitokError, match=r"\(2, 3, 4, 4\) and the right one \(2, 3, 1, 1\)"):
        loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 1, 1))  # type: ignore[operator]
