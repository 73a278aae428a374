"""The Fréchet distance against torch-fidelity, torchmetrics, SciPy's matrix root and closed forms."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation import frechet
from lumitok.evaluation.frechet import Statistics, StatisticsGatherer, frechet_distance

DIM = 12


def features(count: int, seed: int, dim: int = DIM, shift: float = 0.0) -> Tensor:
    """Correlated features whose variances span three powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) * torch.logspace(0, -1.5, dim)
    return torch.randn(count, dim, generator=generator) @ mixing + shift


def point(variances: list[float], mean: list[float]) -> Statistics:
    return Statistics.from_arrays(np.array(mean), np.diag(variances))


def by_torch_fidelity(a: Tensor, b: Tensor) -> float:
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    found = [metric.fid_features_to_statistics(x.double()) for x in (a, b)]
    return float(metric.fid_statistics_to_metric(*found, verbose=False)["frechet_inception_distance"])


def gathered(parts: list[Tensor], dim: int = DIM) -> StatisticsGatherer:
    gatherer = StatisticsGatherer(dim)
    for part in parts:
        gatherer.update(part)
    return gatherer


@pytest.mark.parametrize(("n", "m"), [(200, 300), (7, 300), (200, 5), (7, 9), (12, 13), (2, 2)])
def test_is_torch_fidelitys_distance_for_many_and_for_few_images(n: int, m: int) -> None:
    a, b = features(n, 0), features(m, 1, shift=0.3)
    expected = by_torch_fidelity(a, b)
    ours = frechet_distance(Statistics.from_features(a), Statistics.from_features(b))
    # Its eigenvalues of a singular product carry a rounding of 1e-8 each, after the root.
    assert ours == pytest.approx(expected, rel=1e-10 if min(n, m) > DIM else 1e-6)
    assert ours > 0.5


def test_is_torchmetrics_distance() -> None:
    image = pytest.importorskip("torchmetrics.image.fid")
    a, b = features(100, 0).double(), features(90, 1, shift=0.3).double()
    expected = image._compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    ours = frechet_distance(Statistics.from_features(a), Statistics.from_features(b))
    assert ours == pytest.approx(float(expected), rel=1e-10)


def test_is_the_distance_by_the_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = (Statistics.from_features(features(80, seed)) for seed in (0, 1))
    assert a.covariance is not None
    assert b.covariance is not None
    root = linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    expected = float((a.mean - b.mean).square().sum()) + a.variance() + b.variance() - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)


def test_equal_covariances_leave_the_means() -> None:
    x = features(50, 0).double()
    offset = torch.linspace(-1, 2, DIM, dtype=torch.float64)
    ours = frechet_distance(Statistics.from_features(x), Statistics.from_features(x + offset))
    assert ours == pytest.approx(float(offset.square().sum()), rel=1e-12)


def test_commuting_covariances_leave_the_deviations() -> None:
    a, b = point([4.0, 9.0, 0.25], [0, 0, 1]), point([1.0, 16.0, 0.25], [0, 2, 1])
    assert frechet_distance(a, b) == pytest.approx(4.0 + 1.0 + 1.0, rel=1e-14)


def test_dead_dimensions_count_by_their_deviation() -> None:
    a, b = point([4.0, 0.0, 0.0], [0, 0, 0]), point([1.0, 0.0, 9.0], [0, 0, 0])
    assert frechet_distance(a, b) == pytest.approx(1.0 + 9.0, rel=1e-14)
    assert frechet_distance(point([0.0, 0.0, 0.0], [1, 1, 1]), b) == pytest.approx(3.0 + 10.0, rel=1e-14)


def test_a_set_is_at_no_distance_from_itself_and_the_distance_is_symmetric() -> None:
    a, b = Statistics.from_features(features(40, 0)), Statistics.from_features(features(9, 1))
    assert 0.0 <= frechet_distance(a, a) < 1e-10 * a.variance()
    assert 0.0 <= frechet_distance(b, b) < 1e-10 * b.variance()
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_small_singular_values_are_not_taken_from_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales 1 to 1e-12: their squares are beneath rounding, so the exact way must be chosen."""
    rows = torch.linspace(-1, 1, 40, dtype=torch.float64).view(20, 2)
    q = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[
        0
    ]
    values = torch.cat([torch.ones(1), torch.full((19,), 1e-9)]).double()
    matrix = q * values @ q.T.roll(3, 0)
    expected = float(torch.linalg.svdvals(q * values).sum())
    assert frechet._nuclear_norm(matrix) == pytest.approx(expected, rel=1e-13)
    monkeypatch.setattr(frechet, "ACCURACY", 1.0)
    assert frechet._nuclear_norm(matrix) != pytest.approx(expected, rel=1e-10)
    assert frechet._nuclear_norm(rows) == pytest.approx(float(torch.linalg.svdvals(rows).sum()), rel=1e-12)


def test_low_rank_and_full_statistics_of_the_same_images_are_one() -> None:
    x, other = features(8, 0).double(), Statistics.from_features(features(50, 1))
    low = Statistics.from_features(x)
    full = Statistics.from_arrays(x.mean(0), x.T.cov(), count=8)
    assert low.covariance is None
    assert low.variance() == pytest.approx(full.variance(), rel=1e-12)
    assert frechet_distance(low, other) == pytest.approx(frechet_distance(full, other), rel=1e-10)
    assert frechet_distance(low, full) < 1e-10 * full.variance()


def test_statistics_are_numpys() -> None:
    x = features(60, 0).double()
    found = Statistics.from_features(x)
    assert found.covariance is not None
    assert (found.count, found.dim, found.factor) == (60, DIM, None)
    np.testing.assert_allclose(found.mean, x.numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("count", [9, 40])
@pytest.mark.parametrize("folded", [1, 16])
def test_the_split_into_batches_changes_no_digit(
    count: int, folded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frechet, "FOLDED_ROWS", folded)
    x = features(count, 0)
    whole = gathered([x]).result()
    for size in (1, 7, 13):
        split = gathered(list(x.split(size))).result()
        for one, other in ((whole.covariance, split.covariance), (whole.factor, split.factor)):
            assert (one is None) == (other is None)
            assert one is None or other is None or torch.equal(one, other)
        assert torch.equal(whole.mean, split.mean)
    expected = Statistics.from_arrays(x.double().mean(0), x.double().T.cov())
    assert frechet_distance(whole, expected) < 1e-10 * expected.variance()


@pytest.mark.parametrize("shares", [[40, 0, 25], [5, 4, 2], [13, 1, 51], [0, 0, 20]])
def test_merging_processes_changes_rounding_only(shares: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "FOLDED_ROWS", 1)
    x = features(sum(shares), 0, shift=50.0)
    gatherers = [pickle.loads(pickle.dumps(gathered([part]))) for part in x.split(shares)]
    first, *rest = gatherers
    for other in rest:
        before = other.count
        first.merge(other)
        assert other.count == before
    merged, whole = first.result(), Statistics.from_features(x)
    assert merged.count == sum(shares)
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-14, atol=0)
    assert (merged.factor is None) == (whole.factor is None) == (sum(shares) > DIM)
    if merged.covariance is not None:
        torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-10, atol=1e-13)


def test_a_large_offset_costs_no_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "FOLDED_ROWS", 1)
    x = (features(100, 0) * 1024).round().double() / 1024  # Exact after the shift, too.
    plain = gathered(list(x.split(10))).result()
    moved = gathered(list((x + 2.0**22).split(10))).result()
    assert plain.covariance is not None
    assert moved.covariance is not None
    torch.testing.assert_close(moved.covariance, plain.covariance, rtol=1e-6, atol=1e-8)


def test_results_may_be_taken_before_the_end_and_features_changed_after() -> None:
    x = features(30, 0).double()
    batch = x[:20].clone()
    gatherer = gathered([batch])
    batch.zero_()
    gatherer.result()
    gatherer.update(x[20:])
    found, whole = gatherer.result(), Statistics.from_features(x)
    assert found.covariance is not None
    assert whole.covariance is not None
    assert torch.equal(found.covariance, whole.covariance)


def test_rows_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "FOLDED_ROWS", 16)
    gatherer = gathered(list(features(500, 0).split(9)))
    assert sum(map(len, gatherer._rows)) <= 16
    assert gatherer.count == 500


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused_and_not_added(wrong: float) -> None:
    x = features(20, 0)
    gatherer = gathered([x])
    bad = x.clone()
    bad[3, 2] = wrong
    with pytest.raises(LumitokError, match="1 of 20 images are NaN or infinite, the first at index 3"):
        gatherer.update(bad)
    assert gatherer.count == 20
    assert torch.isfinite(gatherer.result().mean).all()


def test_features_that_do_not_vary_are_refused_but_not_dead_dimensions() -> None:
    with pytest.raises(LumitokError, match="of all 6 images are equal"):
        gathered([torch.full((2, DIM), 0.1)] * 3).result()
    x = features(30, 0)
    x[:, 4] = 0.1
    assert Statistics.from_features(x).count == 30


@pytest.mark.parametrize(("mine", "theirs"), [(0.0, 1.0), (1.0, 0.0)])
def test_merged_constants_that_differ_do_vary(mine: float, theirs: float) -> None:
    first, second = (gathered([torch.full((3, DIM), value)]) for value in (mine, theirs))
    first.merge(second)
    assert first.result().variance() == pytest.approx(DIM * 0.3)


def test_too_few_images_and_other_widths_are_refused() -> None:
    with pytest.raises(LumitokError, match="at least 2 images, got 1"):
        gathered([features(1, 0)]).result()
    with pytest.raises(LumitokError, match="have 5 dimensions, wanted 12"):
        StatisticsGatherer(DIM).update(torch.zeros(3, 5))
    with pytest.raises(LumitokError, match="of 5 dimensions into those of 12"):
        StatisticsGatherer(DIM).merge(StatisticsGatherer(5))
    with pytest.raises(LumitokError, match="of 12 and of 5 dimensions"):
        frechet_distance(*(Statistics.from_features(features(20, 0, dim)) for dim in (12, 5)))
    with pytest.raises(LumitokError, match=r"shape \(3, 12, 1\)"):
        StatisticsGatherer(DIM).update(torch.zeros(3, DIM, 1))
    with pytest.raises(LumitokError, match=r"torch\.int64"):
        StatisticsGatherer(DIM).update(torch.zeros(3, DIM, dtype=torch.int64))


def test_stored_statistics_that_are_none_are_refused() -> None:
    mean, good = np.zeros(3), np.diag([1.0, 2.0, 3.0])
    with pytest.raises(LumitokError, match=r"shape \(3,\) and a covariance of shape \(2, 2\)"):
        Statistics.from_arrays(mean, np.eye(2))
    skewed = good.copy()
    skewed[0, 1] = 0.5
    with pytest.raises(LumitokError, match=r"not symmetric, its halves differ by up to 0\.5"):
        Statistics.from_arrays(mean, skewed)
    negative = good.copy()
    negative[0, 1] = negative[1, 0] = 2.0
    with pytest.raises(LumitokError, match=r"negative eigenvalue, -0\.56"):
        Statistics.from_arrays(mean, negative)
    for wrong in (np.nan, np.inf):
        bad = good.copy()
        bad[1, 1] = wrong
        with pytest.raises(LumitokError, match="NaN or infinity"):
            Statistics.from_arrays(mean, bad)


def test_statistics_stored_in_float32_are_taken() -> None:
    x = features(9, 0, dim=40).double()  # Singular: rounding makes half its eigenvalues negative.
    sigma = x.T.cov().float()
    assert float(torch.linalg.eigvalsh(sigma.double()).min()) < 0
    stored = Statistics.from_arrays(x.mean(0).float().numpy(), sigma.numpy())
    exact = Statistics.from_features(x)
    assert frechet_distance(stored, exact) < 1e-3 * exact.variance()
    assert stored.count is None
