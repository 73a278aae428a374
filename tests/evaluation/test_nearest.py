"""Nearest neighbours against every distance by itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.nearest import nearest_neighbours


def features(count: int, seed: int, dim: int = 6, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("block", [1, 4, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_brute_force_whatever_the_blocks(block: int, dtype: torch.dtype) -> None:
    here, there = features(11, 0).to(dtype), features(17, 1, shift=0.5).to(dtype)
    found = nearest_neighbours(here, there, k=3, block=block)
    for row, point in enumerate(here.tolist()):
        ranked = sorted((math.dist(point, other), index) for index, other in enumerate(there.tolist()))[:3]
        assert found.indices[row].tolist() == [index for _, index in ranked]
        assert found.distances[row].tolist() == pytest.approx([distance for distance, _ in ranked], rel=1e-12)


def test_a_copy_lies_at_nothing_even_far_from_the_origin() -> None:
    there = features(9, 2, shift=1e4)
    found = nearest_neighbours(there[[4, 7]], there)
    assert found.indices.flatten().tolist() == [4, 7]
    assert found.distances.flatten().tolist() == [0.0, 0.0]


def test_one_image_is_enough_to_look_from() -> None:
    there = features(5, 3)
    found = nearest_neighbours(there[:1], there, k=5)
    assert sorted(found.indices[0].tolist()) == [0, 1, 2, 3, 4]
    assert bool((found.distances[0].diff() >= 0).all())


@pytest.mark.parametrize(
    ("here", "k", "said"),
    [
        (features(4, 0), 0, "got k=0"),
        (features(4, 0), 6, "at least 6 are needed for 6 neighbours"),
        (features(4, 0, dim=5), 1, "have 5 dimensions, wanted 6"),
        (features(4, 0).long(), 1, "torch.int64"),
        (torch.full((2, 6), math.nan), 1, "NaN or infinite"),
    ],
)
def test_what_cannot_be_looked_up_is_refused(here: Tensor, k: int, said: str) -> None:
    with pytest.raises(LumitokError, match=said):
        nearest_neighbours(here, features(5, 1), k=k)
