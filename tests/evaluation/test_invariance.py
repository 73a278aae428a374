"""Invariance: how alike features of a changed and the unchanged picture are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.invariance import invariance


def features(count: int = 500, width: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_features_that_stay_where_they_are() -> None:
    found = invariance(features(), features() * 3)
    assert found.cosine == pytest.approx(1)
    assert invariance(features(), features()).centered == pytest.approx(1)


def test_the_cosine_by_hand() -> None:
    still = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    moved = torch.tensor([[1.0, 1.0], [0.0, -1.0]])
    assert invariance(still, moved).cosine == pytest.approx((math.sqrt(0.5) - 1) / 2)


def test_a_common_mean_hides_in_the_cosine_and_not_in_the_centred_one() -> None:
    still, other = features() + 10, features(seed=1) + 10
    found = invariance(still, other)
    assert found.cosine > 0.95
    assert abs(found.centered) < 0.05


def test_the_mean_is_that_of_the_unchanged_pictures() -> None:
    # All changed features are shifted alike: what moved must show.
    assert invariance(features(), features() + 5).centered < 0.5


def test_what_cannot_be_compared() -> None:
    with pytest.raises(LumitokError, match=r"\(500, 32\) and \(499, 32\)"):
        invariance(features(), features()[:-1])
    with pytest.raises(LumitokError, match="at least 2 pictures"):
        invariance(features(1), features(1))
    with pytest.raises(LumitokError, match="NaN or infinite"):
        invariance(features(), features() / 0)
    with pytest.raises(LumitokError, match="alike for all pictures"):
        invariance(torch.full((20, 8), 0.1), features(20, 8))
