"""The Inception score against torch-fidelity, ADM's formula in numpy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.inception_score import ADM, TORCH_FIDELITY, class_order, inception_score, method


def predicted(classes: Tensor, count: int, sureness: float = 4.0, seed: int = 0) -> Tensor:
    """Noisy float32 logits (n, count) that favour the given classes (n,)."""
    noise = torch.randn(len(classes), count, generator=torch.Generator().manual_seed(seed))
    return noise + sureness * torch.nn.functional.one_hot(classes, count)


def random_classes(n: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(count, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [103, 200])
def test_torch_fidelitys_convention_is_torch_fidelitys_number(count: int) -> None:
    metric = pytest.importorskip("torch_fidelity.metric_isc")
    logits = predicted(random_classes(count, 8).sort().values, 8)
    expected = metric.isc_features_to_metric(logits)
    ours = inception_score(logits, **TORCH_FIDELITY)
    assert ours.mean == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert ours.std == pytest.approx(expected["inception_score_std"], rel=1e-10)
    assert ours.std > 0.1


def adm(logits: Tensor, split_size: int) -> float:
    """The evaluator's formula on probabilities, in float64."""
    p = logits.double().softmax(dim=1).numpy()
    scores = []
    for start in range(0, len(p), split_size):
        part = p[start : start + split_size]
        divergence = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(divergence.sum(1).mean()))
    return float(np.mean(scores))


@pytest.mark.parametrize("count", [100, 110])
def test_adms_convention_takes_the_splits_as_they_come_the_short_one_too(count: int) -> None:
    logits = predicted(random_classes(count, 8), 8)
    assert inception_score(logits, split_size=25).mean == pytest.approx(adm(logits, 25), rel=1e-12)
    assert ADM["split_size"] == 5000


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_balanced_certain_classes_score_their_number(classes: int) -> None:
    logits = 1e4 * torch.nn.functional.one_hot(torch.arange(60) % classes, 12).float()
    found = inception_score(logits, splits=2)
    assert found.mean == pytest.approx(classes, rel=1e-12)
    assert found.std == pytest.approx(0.0, abs=1e-12)


def test_images_that_are_all_alike_score_one() -> None:
    assert inception_score(torch.randn(1, 12).expand(40, 12), split_size=20).mean == pytest.approx(1.0)


def test_logarithms_of_probabilities_serve_as_logits() -> None:
    logits = predicted(random_classes(40, 6), 6)
    shifted = logits.double().log_softmax(dim=1)
    assert inception_score(shifted, splits=4).mean == pytest.approx(inception_score(logits, splits=4).mean)


def test_a_sorted_set_scores_low_in_order_and_is_found_out() -> None:
    classes = torch.arange(20).repeat_interleave(25)
    logits = predicted(classes, 20)
    in_order = inception_score(logits, split_size=100).mean
    shuffled = inception_score(logits, split_size=100, shuffle_seed=0).mean
    assert in_order < 0.7 * shuffled
    order = class_order(logits)
    assert order.is_sorted
    assert order.agreement > 0.5 > 0.1 > order.expected
    assert "sorted by class" in (order.warning() or "")


def test_the_share_of_a_random_order_is_what_shuffling_gives() -> None:
    logits = predicted(random_classes(3000, 5), 5)
    order = class_order(logits)
    shares = [class_order(logits[torch.randperm(3000)]).agreement for _ in range(20)]
    assert order.expected == pytest.approx(np.mean(shares), abs=0.01)
    assert not order.is_sorted
    assert order.warning() is None


@pytest.mark.parametrize(
    "classes",
    [
        torch.arange(500) % 20,  # In turn.
        torch.zeros(500, dtype=torch.long),  # One class alone has no order.
        torch.tensor([0, 0, 1]),  # Too few to tell.
        *(random_classes(60, 3, seed) for seed in range(30)),
    ],
)
def test_orders_that_do_no_harm_are_left_alone(classes: Tensor) -> None:
    assert not class_order(torch.nn.functional.one_hot(classes, 20).float()).is_sorted


def test_unsure_predictions_of_a_sorted_set_are_found_out_too() -> None:
    classes = torch.arange(100).repeat_interleave(50)
    order = class_order(predicted(classes, 100, sureness=3.0))
    assert order.agreement < 0.5
    assert order.is_sorted


def test_fewer_images_than_a_split_are_refused() -> None:
    logits = predicted(random_classes(30, 4), 4)
    with pytest.raises(LumitokError, match="30 images cannot make splits of 5000 images"):
        inception_score(logits, **ADM)
    with pytest.raises(LumitokError, match="9 images cannot make 10 splits"):
        inception_score(logits[:9], **TORCH_FIDELITY)
    with pytest.raises(LumitokError, match="at least 2 images, got 1"):
        inception_score(logits[:1], splits=1)
    with pytest.raises(LumitokError, match="at least 2 images, got 1"):
        class_order(logits[:1])


def test_wrong_input_is_refused() -> None:
    logits = predicted(random_classes(30, 4), 4)
    for both in ({}, {"splits": 2, "split_size": 3}):
        with pytest.raises(LumitokError, match="wanted one of them"):
            inception_score(logits, **both)
    with pytest.raises(LumitokError, match="cannot make 0 splits"):
        inception_score(logits, splits=0)
    for wrong in (math.nan, -math.inf):
        bad = logits.clone()
        bad[7, 0] = wrong
        for function in (lambda x: inception_score(x, splits=2), class_order):
            with pytest.raises(LumitokError, match="the first at index 7"):
                function(bad)
    with pytest.raises(LumitokError, match=r"torch\.int64 of shape \(30,\)"):
        class_order(random_classes(30, 4))


def test_the_method_names_the_convention() -> None:
    assert method(**ADM) == "exp of mean KL, splits of 5,000 in the given order"
    assert method(**TORCH_FIDELITY) == "exp of mean KL, 10 splits shuffled with seed 2020"
