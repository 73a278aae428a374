"""Inception score: ``exp(mean KL(p(y|x) || p(y)))`` over splits of the images (Salimans et al. 2016).

Two conventions are in use and both are here by name: :data:`ADM` and :data:`TORCH_FIDELITY`. Both take
Inception's 1008 logits without the bias of its last layer. They differ in the size of a split and in the
order of the images, and so in the number.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.feature_checks import check_matrix, extremes


class Convention(TypedDict, total=False):
    """How images are split: arguments of :func:`inception_score`."""

    splits: int
    split_size: int
    shuffle_seed: int


ADM: Convention = {"split_size": 5000}
"""ADM's evaluator: splits of 5000 in the given order, a shorter last one counted like the others; it
reports the mean only."""

TORCH_FIDELITY: Convention = {"splits": 10, "shuffle_seed": 2020}
"""torch-fidelity: 10 splits after a shuffle with its seed; it reports mean and standard deviation."""

NOTABLE_AGREEMENT = 0.1
"""Share of neighbours predicted as one class, above what chance gives, from which an order is sorted."""


class InceptionScore(NamedTuple):
    """Mean over the splits, 1 to the number of classes, and their standard deviation (population)."""

    mean: float
    std: float


class ClassOrder(NamedTuple):
    """In what order the predicted classes of a list of images come, see :func:`class_order`.

    Attributes:
        agreement: share of neighbours in the list that are predicted as one class.
        expected: the same share in a random order of these images.
        is_sorted: whether the classes come in runs that chance does not give.
    """

    agreement: float
    expected: float
    is_sorted: bool

    def warning(self) -> str | None:
        """Return the sentence to print where the order spoils contiguous splits; None where it does not."""
        if not self.is_sorted:
            return None
        return (
            f"neighbouring images are predicted as one class {self.agreement:.1%} of the time, a random "
            f"order gives {self.expected:.1%}: the images are sorted by class, so each contiguous "
            "split sees only some classes and the Inception score comes out far too low; "
            "shuffle the images and score again"
        )


def method(
    *, splits: int | None = None, split_size: int | None = None, shuffle_seed: int | None = None
) -> str:
    """Return the convention in one line; takes what :func:`inception_score` takes."""
    how = f"{splits} splits" if splits is not None else f"splits of {split_size:,}"
    order = "in the given order" if shuffle_seed is None else f"shuffled with seed {shuffle_seed}"
    return f"exp of mean KL, {how} {order}"


def inception_score(
    logits: Tensor,
    *,
    splits: int | None = None,
    split_size: int | None = None,
    shuffle_seed: int | None = None,
) -> InceptionScore:
    """Inception score of images from their logits: ``inception_score(logits, **ADM)``.

    Args:
        logits: (n, classes), finite; probabilities are given as their logarithms.
        splits: number of contiguous splits, which may differ by one in size.
        split_size: images in a split, instead; the last may hold fewer.
        shuffle_seed: permutes the images first, as torch-fidelity does with this seed; None keeps the
            given order.

    Raises:
        LumitokError: both or neither of ``splits`` and ``split_size``, fewer images than that asks for,
            fewer than 2, or logits that are not finite.
    """
    check_matrix(logits, "class")
    if len(logits) < 2:
        raise LumitokError(
            f"the Inception score needs at least 2 images, got {len(logits)}; give more images"
        )
    bounds = list(_bounds(len(logits), splits, split_size))
    extremes(logits, "class")
    order = torch.arange(len(logits))
    if shuffle_seed is not None:
        order = torch.from_numpy(np.random.RandomState(shuffle_seed).permutation(len(logits)))
    order = order.to(logits.device)
    scores = [_score(logits[order[start:end]]) for start, end in bounds]
    return InceptionScore(statistics.fmean(scores), statistics.pstdev(scores))


def class_order(logits: Tensor) -> ClassOrder:
    """Find out whether images are sorted by class: whether their predicted classes come in long runs.

    Sorted samples wreck a score over contiguous splits (36 for 144 in one simulation). The test holds the
    share of neighbours predicted alike against that of a random order, ``sum n_c (n_c - 1) / n (n - 1)``.
    It is passed by images that go through the classes in turn, which does no harm.

    Args:
        logits: (n, classes) in the order the images are scored, n at least 2.
    """
    check_matrix(logits, "class")
    if len(logits) < 2:
        raise LumitokError(f"an order needs at least 2 images, got {len(logits)}; give more images")
    extremes(logits, "class")
    predicted = logits.argmax(dim=1)
    n = len(predicted)
    counts = predicted.bincount().double()
    expected = float((counts * (counts - 1)).sum()) / (n * (n - 1))
    agreement = float((predicted[1:] == predicted[:-1]).double().mean())
    noise = math.sqrt(expected * (1 - expected) / (n - 1))
    beyond = max(NOTABLE_AGREEMENT * (1 - expected), 5 * noise)
    return ClassOrder(agreement, expected, agreement - expected > beyond)


def _bounds(count: int, splits: int | None, split_size: int | None) -> Iterator[tuple[int, int]]:
    """Yield the first image and the one after the last of each split."""
    if (splits is None) == (split_size is None):
        raise LumitokError(
            f"got splits={splits} and split_size={split_size}, wanted one of them; give ADM or TORCH_FIDELITY"
        )
    wanted = splits if splits is not None else split_size
    assert wanted is not None
    if wanted < 1 or count < wanted:
        what = f"{wanted} splits" if splits is not None else f"splits of {wanted} images"
        raise LumitokError(
            f"{count} images cannot make {what}; give more images, or use another convention and report it"
        )
    if splits is not None:
        yield from ((i * count // splits, (i + 1) * count // splits) for i in range(splits))
    else:
        yield from ((start, min(start + wanted, count)) for start in range(0, count, wanted))


def _score(logits: Tensor) -> float:
    """Exp of the mean divergence from the marginal, for one split (n, classes)."""
    log_p = logits.detach().to("cpu", torch.float64).log_softmax(dim=1)
    # The logarithm of the mean, without a logarithm of 0 where a class underflows in every image.
    log_marginal = log_p.logsumexp(dim=0) - math.log(len(log_p))
    return float((log_p.exp() * (log_p - log_marginal)).sum(dim=1).mean().exp())
