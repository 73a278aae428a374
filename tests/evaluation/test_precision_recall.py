"""Precision and recall against torch-fidelity, a brute force in float64 and what is known of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation import precision_recall as module
from lumitok.evaluation.precision_recall import _Distances, method, precision_recall


def features(count: int, seed: int, dim: int = 8, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * scale + shift


def brute_force(reference: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Every distance by itself, in float64; an image is left out of its own neighbours by its index."""

    def inside(points: Tensor, centres: Tensor) -> float:
        x, c = points.double().tolist(), centres.double().tolist()
        radii = [sorted(math.dist(a, b) for j, b in enumerate(c) if j != i)[k - 1] for i, a in enumerate(c)]
        hits = [any(math.dist(p, a) <= r for a, r in zip(c, radii, strict=True)) for p in x]
        return sum(hits) / len(hits)

    return inside(generated, reference), inside(reference, generated)


@pytest.mark.parametrize(("k", "block"), [(1, 7), (3, 1), (3, 7), (3, 32), (3, 1000), (4, 7)])
def test_is_the_brute_force_whatever_the_blocks(k: int, block: int) -> None:
    reference, generated = features(40, 0), features(32, 1, scale=0.8, shift=0.3)
    found = precision_recall(reference, generated, k=k, block=block)
    assert found == pytest.approx(brute_force(reference, generated, k), rel=1e-12)
    assert found.precision != found.recall
    assert max(found) < 1.0


def test_is_torch_fidelitys() -> None:
    metric = pytest.importorskip("torch_fidelity.metric_prc")
    reference, generated = features(300, 0, 32), features(200, 1, 32, scale=0.95)
    expected = metric.prc_features_to_metric(generated, reference, verbose=False)
    found = precision_recall(reference, generated)
    assert found == pytest.approx((expected["precision"], expected["recall"]), rel=1e-6)
    assert 0.1 < found.recall < found.precision < 1.0


def test_equal_sets_cover_each_other() -> None:
    x = features(50, 0)
    for half in (False, True):
        assert precision_recall(x, x[torch.randperm(50)], block=16, half=half) == (1.0, 1.0)


def test_mode_collapse_is_precise_and_recalls_little() -> None:
    reference = features(200, 0, dim=4)
    found = precision_recall(reference, reference[:1] + features(200, 1, dim=4, scale=0.01))
    assert found.precision > 0.95
    assert found.recall < 0.05


def test_sets_far_apart_share_nothing() -> None:
    assert precision_recall(features(30, 0), features(30, 1, shift=100.0)) == (0.0, 0.0)


@pytest.mark.parametrize("shift", [0.0, 300.0])
@pytest.mark.parametrize("block", [5, 64])
def test_duplicates_have_no_distance_and_are_neighbours(shift: float, block: int) -> None:
    """Each image four times: radii are 0, and only exact zeros reach into them."""
    once = features(12, 0, dim=64, scale=0.7, shift=shift)
    reference = once.repeat(4, 1)
    generated = torch.cat([once[:6], once[6:] + 1e-3, features(4, 1, dim=64, shift=shift)])
    expected = brute_force(reference, generated)
    assert expected[0] == 6 / 16
    assert precision_recall(reference, generated, block=block) == pytest.approx(expected)


def test_equal_images_are_at_exactly_no_distance_and_others_are_not() -> None:
    x = features(60, 0, dim=500, scale=30.0)
    distances = _Distances(torch.zeros(500), half=False)
    assert (distances(x, x).diagonal() == 0.0).all()
    beside = x.clone()
    beside[:, 0] += 0.01
    expected = (beside - x).square().sum(dim=1)
    torch.testing.assert_close(distances(x, beside).diagonal(), expected, rtol=1e-4, atol=0.0)


def test_an_image_is_left_out_by_its_index_not_by_its_distance() -> None:
    """Two equal images and one apart: each of the two has a neighbour at no distance, so a radius of 0."""
    reference = torch.tensor([[0.0], [0.0], [5.0]])
    generated = torch.tensor([[0.0], [0.1], [5.1], [10.5]])
    found = precision_recall(reference, generated, k=1)
    assert found.precision == 3 / 4  # 0.1 and 5.1 by the radius of 5 about the third.
    near = precision_recall(reference, generated[:2] - 0.2, k=1)
    assert near.precision == 0.0  # Left out by distance, the two would reach to the third.


def test_near_distances_keep_their_digits_beside_long_vectors() -> None:
    a = features(40, 0, dim=64, scale=100.0)
    b = torch.cat([a[:20] + features(20, 1, dim=64, scale=1e-3), features(10, 2, dim=64, scale=100.0)])
    distances = _Distances(torch.zeros(64), half=False)
    expected = torch.cdist(a.double(), b.double()).square()
    torch.testing.assert_close(distances(a, b).double(), expected, rtol=3e-4, atol=0.0)
    within = distances(a, a, same=True)
    assert torch.isinf(within.diagonal()).all()
    assert torch.isfinite(within).sum() == 40 * 39


def test_a_common_offset_changes_nothing() -> None:
    x, y = (features(60, seed).double() for seed in (0, 1))
    assert precision_recall(x + 1e5, y + 1e5) == precision_recall(x, y)


def half_by_hand(x: Tensor, y: Tensor) -> Tensor:
    """One pair at a time: everything rounded to float16, the sums of products in float32."""
    x, y = x.half(), y.half()
    rows = []
    for a in x:
        for b in y:
            lengths = [(v * v).float().sum().half() for v in (a, b)]
            product = (a.float() * b.float()).sum().half()
            rows.append((lengths[0] - 2 * product + lengths[1]).clamp_min(0))
    return torch.stack(rows).view(len(x), len(y)).float()


def test_half_rounds_distances_to_float16() -> None:
    x, y = features(9, 0, dim=64, shift=0.5), features(7, 1, dim=64, shift=0.5)
    found = _Distances(x.mean(0), half=True)(x, y)
    torch.testing.assert_close(found, half_by_hand(x, y), rtol=2e-3, atol=0.15)  # One step: order of sums.
    assert torch.equal(found, found.half().float())
    exact = _Distances(x.mean(0), half=False)(x, y)
    assert not torch.equal(exact, exact.half().float())


def test_half_falls_back_where_it_overflows() -> None:
    x, y = features(60, 0, scale=200.0), features(60, 1, scale=190.0)
    assert precision_recall(x, y, half=True) == precision_recall(x, y)


def test_a_lower_precision_chosen_for_training_is_put_aside_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    count = module._count

    def spy(*args: object) -> object:
        seen.append(torch.get_float32_matmul_precision())
        return count(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_count", spy)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        precision_recall(features(9, 0), features(9, 1))
        assert (seen, torch.get_float32_matmul_precision()) == (["highest"], "medium")
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_more_than_a_block_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    measure = _Distances.__call__

    def spy(self: _Distances, a: Tensor, b: Tensor, *, same: bool = False) -> Tensor:
        sizes.append((len(a), len(b)))
        return measure(self, a, b, same=same)

    monkeypatch.setattr(_Distances, "__call__", spy)
    precision_recall(features(50, 0), features(41, 1), block=16)
    assert max(max(size) for size in sizes) == 16
    # Within a set one block of each pair across the diagonal: 10 of 16, and 6 of 9.
    assert len(sizes) == 10 + 6 + 4 * 3


def test_wrong_input_is_refused() -> None:
    good = features(10, 0)
    bad = good.clone()
    bad[4, 0] = math.inf
    with pytest.raises(LumitokError, match="generated features of 1 of 10 images are NaN or infinite"):
        precision_recall(good, bad)
    with pytest.raises(LumitokError, match=r"of 3 image\(s\), at least 4 are needed for k=3 neighbours"):
        precision_recall(good[:3], good)
    with pytest.raises(LumitokError, match=r"generated features are of 5 image\(s\), at least 6"):
        precision_recall(good, good[:5], k=5)
    with pytest.raises(LumitokError, match="generated features of all 5 images are equal"):
        precision_recall(good, torch.ones(5, 8))
    with pytest.raises(LumitokError, match="have 7 dimensions, wanted 8"):
        precision_recall(good, good[:, 1:])
    with pytest.raises(LumitokError, match="got k=0"):
        precision_recall(good, good, k=0)


def test_the_method_names_the_convention() -> None:
    assert method() == "k = 3 without the image itself, <=, distances in float32"
    assert "float16" in method(half=True)
