"""Linear probe: what one linear layer on frozen features knows of the classes (AlignTok, arXiv 2509.25162).

Appendix A: Adam with learning rate 1e-3, batches of 256, 3 epochs on the training set, top-1 accuracy on
the validation set. Whether the latent is pooled or flattened is not stated: probe both, and name which.

Features are either stored, or read anew in every epoch where they would not fit into memory; the layer is
the same either way, and on any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor, nn

from lumitok.errors import LumitokError
from lumitok.evaluation.processes import here, share, together

T = TypeVar("T")

_FLOAT = 4  # Bytes.


@dataclass(frozen=True)
class ProbeSettings:
    """How a probe is trained; the defaults are AlignTok's.

    Attributes:
        epochs: over the training set.
        batch_size: pictures a step, over all processes.
        learning_rate: of Adam, constant.
        standardize: bring each feature to mean 0 and deviation 1 over the training set first. AlignTok does
            not speak of it; without it the scale of the features weighs on the result.
        seed: of the layer's initial weights and of the order of the pictures.
    """

    epochs: int = 3
    batch_size: int = 256
    learning_rate: float = 1e-3
    standardize: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise LumitokError(
                f"a probe needs at least one epoch, a batch of at least 1 and a learning rate above 0; got "
                f"{self.epochs}, {self.batch_size} and {self.learning_rate}"
            )

    def describe(self) -> str:
        """Return the settings in words, for the protocol of a number."""
        scale = "standardised" if self.standardize else "as they are"
        return (
            f"one linear layer, Adam {self.learning_rate:g}, batch {self.batch_size}, {self.epochs} epochs, "
            f"no augmentation, features {scale}"
        )


@dataclass(frozen=True)
class Examples:
    """Features of some pictures, a table (b, d) for each probe by name, with their classes (b,)."""

    features: dict[str, Tensor]
    labels: Tensor


Read = Callable[[Sequence[int]], tuple[Examples, list[int]]]
"""Places in a listing -> examples of those that can be read, and their places; of none, empty tables."""


class Source(Protocol):
    """Pictures whose features can be had in any order."""

    @property
    def count(self) -> int:
        """How many places the listing has, over all processes."""

    def batches(self, order: Tensor, size: int) -> Iterator[Examples]:
        """Yield this process's part of each batch of ``size`` places of ``order``; it may be empty."""


class Stored:
    """Features that are kept in memory, each process its share."""

    def __init__(self, read: Read, count: int, *, at_a_time: int = 256) -> None:
        """Read all features of the ``count`` places of a listing, ``at_a_time`` at once."""
        self.count = count
        mine = list(share(count))
        starts = range(0, len(mine), at_a_time)
        parts = _all_or_none(lambda: [read(mine[i : i + at_a_time]) for i in starts] or [read([])])
        empty = parts[0][0].features
        # Filled table by table, so that the parts and the whole are never both in memory.
        self._features = {name: _joined([part.features for part, _ in parts], name) for name in list(empty)}
        self._labels = torch.cat([part.labels for part, _ in parts])
        self._row = torch.full((count,), -1)
        places = [place for _, found in parts for place in found]
        self._row[places] = torch.arange(len(places))

    def batches(self, order: Tensor, size: int) -> Iterator[Examples]:
        """See :class:`Source`."""
        for part in order.split(size):
            rows = self._row[part]
            rows = rows[rows >= 0]
            features = {name: values[rows] for name, values in self._features.items()}
            yield Examples(features, self._labels[rows])


class Streamed:
    """Features that are read anew whenever they are wanted, the pictures of a batch divided evenly."""

    def __init__(self, read: Read, count: int) -> None:
        self.count, self._read = count, read

    def batches(self, order: Tensor, size: int) -> Iterator[Examples]:
        """See :class:`Source`."""
        for part in order.split(size):
            mine = share(len(part))
            yield _all_or_none(partial(self._read, part[mine.start : mine.stop].tolist()))[0]


class LinearProbe:
    """One linear layer from ``dim`` features to ``classes``, and its optimiser."""

    def __init__(self, dim: int, classes: int, settings: ProbeSettings, device: torch.device | str) -> None:
        # torch's own initial weights, drawn on the CPU so that the device does not matter.
        draw = torch.Generator().manual_seed(settings.seed)
        bound = 1 / math.sqrt(dim)
        self.layer = nn.Linear(dim, classes, device="meta").to_empty(device=device)
        for parameter in self.layer.parameters():
            parameter.data.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=draw))
        self.optimizer = torch.optim.Adam(self.layer.parameters(), lr=settings.learning_rate)
        self.mean: Tensor | None = None
        self.scale: Tensor | None = None

    def logits(self, features: Tensor) -> Tensor:
        """Features (b, d) -> (b, classes)."""
        x = features.to(self.layer.weight)
        if self.mean is not None and self.scale is not None:
            x = (x - self.mean) * self.scale
        y: Tensor = self.layer(x)
        return y

    def step(self, features: Tensor, labels: Tensor, total: int) -> None:
        """Take one step on this process's part of a batch of ``total`` over all processes."""
        self.optimizer.zero_grad(set_to_none=False)
        loss = F.cross_entropy(self.logits(features), labels.to(self.layer.weight.device), reduction="sum")
        (loss / total).backward()
        for parameter in self.layer.parameters():
            assert parameter.grad is not None
            parameter.grad.copy_(_sum(parameter.grad))
        self.optimizer.step()

    @torch.no_grad()
    def correct(self, features: Tensor, labels: Tensor) -> int:
        """Count how many classes it gets right."""
        if not len(labels):
            return 0
        return int((self.logits(features).argmax(dim=1).cpu() == labels).sum())


def train_probes(
    source: Source,
    dims: Mapping[str, int],
    classes: int,
    settings: ProbeSettings | None = None,
    *,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> dict[str, LinearProbe]:
    """Train one probe on each of a source's features, all on the same batches.

    Args:
        source: the training set.
        dims: number of features of each, by name.
        classes: at least 2.
        settings: AlignTok's where None.
        device: where the layers are.
        advance: called with the number of pictures after each batch.

    Raises:
        LumitokError: fewer than 2 classes, features that are NaN or infinite, or no picture at all.
    """
    settings = settings or ProbeSettings()
    if classes < 2:
        raise LumitokError(
            f"a linear probe needs at least 2 classes, got {classes}; the pictures must lie in class folders"
        )
    probes = {name: LinearProbe(dim, classes, settings, device) for name, dim in dims.items()}
    if settings.standardize:
        _standardize(probes, source, settings.batch_size)
    seen = 0
    for epoch in range(settings.epochs):
        draw = torch.Generator().manual_seed(settings.seed * settings.epochs + epoch)
        order = torch.randperm(source.count, generator=draw)
        for batch in source.batches(order, settings.batch_size):
            total = _checked_count(batch, dims, device)
            if total == 0:  # None of it could be read, by any process.
                continue
            seen += total
            for name, probe in probes.items():
                probe.step(batch.features[name], batch.labels, total)
            if advance is not None:
                advance(len(batch.labels))
    if not seen:
        raise LumitokError("none of the pictures to train the probe on could be read; check the data")
    return probes


def accuracy(
    probes: Mapping[str, LinearProbe],
    source: Source,
    *,
    batch_size: int = 256,
    advance: Callable[[int], None] | None = None,
) -> tuple[dict[str, float], int]:
    """Return each probe's top-1 accuracy in [0, 1], and how many pictures it was measured on."""
    right = dict.fromkeys(probes, 0)
    total = 0
    device = next(iter(probes.values())).layer.weight.device
    for batch in source.batches(torch.arange(source.count), batch_size):
        total += _checked_count(batch, probes, device)
        for name, probe in probes.items():
            right[name] += probe.correct(batch.features[name], batch.labels)
        if advance is not None:
            advance(len(batch.labels))
    if not total:
        raise LumitokError("none of the pictures to measure the probe on could be read; check the data")
    return {name: int(_sum(torch.tensor(n, device=device))) / total for name, n in right.items()}, total


def stored_bytes(dims: Mapping[str, int], count: int) -> int:
    """Return how many bytes the features of ``count`` pictures take when they are stored."""
    return _FLOAT * count * sum(dims.values())


def layer_bytes(dim: int, classes: int) -> int:
    """Return how many bytes a probe takes while it is trained: weights, gradient, two moments of Adam."""
    return 4 * _FLOAT * (dim + 1) * classes


def _standardize(probes: Mapping[str, LinearProbe], source: Source, batch_size: int) -> None:
    """Set each probe's mean and scale from one pass over the training set; a constant feature stays."""
    sums = {
        name: torch.zeros(2, probe.layer.in_features, dtype=torch.float64) for name, probe in probes.items()
    }
    total = 0
    device = next(iter(probes.values())).layer.weight.device
    for batch in source.batches(torch.arange(source.count), batch_size):
        total += _checked_count(batch, probes, device)
        for name, both in sums.items():
            x = batch.features[name].double().cpu()
            both += torch.stack([x.sum(dim=0), x.square().sum(dim=0)])
    for name, probe in probes.items():
        weight = probe.layer.weight
        first, second = (_sum(sums[name].to(weight.device)) / max(1, total)).unbind()
        deviation = (second - first.square()).clamp(min=0).sqrt()
        known = deviation > 1e-6 * second.sqrt()
        probe.mean = first.to(weight)
        probe.scale = torch.where(known, 1 / deviation.where(known, torch.ones_like(deviation)), 1.0).to(
            weight
        )


def _checked_count(batch: Examples, names: Collection[str], device: torch.device | str) -> int:
    """Return how many examples a batch has over all processes.

    Features that are not finite on one process raise on all: the others would wait for it in a sum.
    """
    wrong = [int(not bool(torch.isfinite(batch.features[name]).all())) for name in names]
    total, *found = _sum(torch.tensor([len(batch.labels), *wrong], device=device)).tolist()
    for name, bad in zip(names, found, strict=True):
        if bad:
            raise LumitokError(
                f"features of {name} are NaN or infinite; the network that made them has diverged, or its "
                "precision is too low"
            )
    return int(total)


def _all_or_none(work: Callable[[], T]) -> T:
    """Do this process's work; an error of one process raises on all. Results stay where they are."""
    done: list[T] = []
    together(lambda: done.append(work()))
    return done[0]


def _joined(parts: Sequence[dict[str, Tensor]], name: str) -> Tensor:
    return torch.cat([part.pop(name) for part in parts])


def _sum(value: Tensor) -> Tensor:
    """Sum over the processes."""
    if here().num_processes == 1:
        return value
    summed: Tensor = reduce(value, "sum")
    return summed
