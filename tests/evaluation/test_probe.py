"""Linear probes on features whose classes are known."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from lumitok.errors import LumitokError
from lumitok.evaluation import probe
from lumitok.evaluation.probe import (
    Examples,
    LinearProbe,
    ProbeSettings,
    Stored,
    Streamed,
    accuracy,
    layer_bytes,
    stored_bytes,
    train_probes,
)

CLASSES = 4


class Table:
    """Features that tell the classes apart, and such that do not; every seventh picture cannot be read."""

    def __init__(self, count: int, seed: int, *, bad: bool = True) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, CLASSES, (count,), generator=draw)
        noise = torch.randn(count, 8, generator=draw)
        told = 3 * nn.functional.one_hot(self.labels, 8) + noise
        self.features = {"told": told, "blind": torch.randn(count, 5, generator=draw)}
        self.bad = set(range(3, count, 7)) if bad else set()
        self.reads = 0

    def __call__(self, places: Sequence[int]) -> tuple[Examples, list[int]]:
        self.reads += len(places)
        good = [place for place in places if place not in self.bad]
        return Examples({n: x[good] for n, x in self.features.items()}, self.labels[good]), good


DIMS = {"told": 8, "blind": 5}


def test_it_finds_the_classes_where_they_can_be_found() -> None:
    train, data = Table(3000, seed=0), Table(700, seed=1)
    probes = train_probes(Stored(train, 3000), DIMS, CLASSES, ProbeSettings(learning_rate=0.01))
    found, count = accuracy(probes, Stored(data, 700))
    assert found["told"] > 0.8
    assert 0.15 < found["blind"] < 0.35
    assert count == 600  # A hundred could not be read.


def test_it_is_plain_adam_on_batches_of_a_seeded_order() -> None:
    table = Table(600, seed=0, bad=False)
    settings = ProbeSettings(epochs=2, batch_size=100, seed=5)
    ours = train_probes(Stored(table, 600), {"told": 8}, CLASSES, settings)["told"].layer
    layer = nn.Linear(8, CLASSES)
    first = LinearProbe(8, CLASSES, settings, "cpu").layer
    layer.load_state_dict(first.state_dict())
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    for epoch in range(2):
        order = torch.randperm(600, generator=torch.Generator().manual_seed(10 + epoch))
        for part in order.split(100):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(layer(table.features["told"][part]), table.labels[part])
            loss.backward()
            optimizer.step()
    assert torch.allclose(ours.weight, layer.weight, atol=1e-6)
    assert not torch.allclose(ours.weight, first.weight, atol=1e-3)


def test_initial_weights_are_torchs_own() -> None:
    weight = LinearProbe(400, 50, ProbeSettings(seed=1), "cpu").layer.weight
    assert float(weight.detach().abs().max()) == pytest.approx(1 / math.sqrt(400), rel=0.01)
    other = LinearProbe(400, 50, ProbeSettings(seed=2), "cpu").layer.weight
    assert not torch.equal(weight, other)


@pytest.mark.parametrize("standardize", [False, True])
def test_stored_and_streamed_features_train_the_same_layer(standardize: bool) -> None:
    table, settings = Table(500, seed=0), ProbeSettings(standardize=standardize, batch_size=64)
    one = train_probes(Stored(table, 500), DIMS, CLASSES, settings)
    assert table.reads == 500
    other = train_probes(Streamed(table, 500), DIMS, CLASSES, settings)
    assert table.reads == 500 + 500 * (4 if standardize else 3)
    for name in DIMS:
        assert torch.equal(one[name].layer.weight, other[name].layer.weight)


def test_standardising_frees_it_from_the_scale_of_the_features() -> None:
    table, data = Table(2000, seed=0), Table(500, seed=1)
    for source in (table, data):
        source.features["told"] = torch.cat(
            [1e-3 * source.features["told"] + 5, torch.ones(len(source.labels), 1)], 1
        )
    plain, scaled = (
        accuracy(
            train_probes(
                Stored(table, 2000),
                {"told": 9},
                CLASSES,
                ProbeSettings(learning_rate=0.01, standardize=chosen),
            ),
            Stored(data, 500),
        )[0]["told"]
        for chosen in (False, True)
    )
    assert plain < 0.5
    assert scaled > 0.8


class Team:
    """Two processes as two threads: each has its share, and sums meet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rank, self.barrier = threading.local(), threading.Barrier(2)
        self.slots: list[Tensor] = [torch.empty(0)] * 2
        monkeypatch.setattr(probe, "share", self.share)
        monkeypatch.setattr(probe, "_sum", self.sum)

    def share(self, count: int) -> range:
        half = (count + 1) // 2
        return range(half) if self.rank.value == 0 else range(half, count)

    def sum(self, value: Tensor) -> Tensor:
        self.slots[self.rank.value] = value.clone()
        self.barrier.wait(60)
        both = self.slots[0] + self.slots[1]
        self.barrier.wait(60)
        return both

    def run(self, work: object) -> list[object]:
        found: list[object] = [None, None]

        def body(rank: int) -> None:
            self.rank.value = rank
            found[rank] = work()  # type: ignore[operator]

        threads = [threading.Thread(target=body, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        return found


@pytest.mark.parametrize("kind", [Stored, Streamed])
def test_two_processes_train_and_measure_as_one(
    kind: type[Stored] | type[Streamed], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ProbeSettings(batch_size=33, standardize=True)

    def work() -> tuple[dict[str, Tensor], dict[str, float], int]:
        probes = train_probes(kind(Table(301, seed=0), 301), DIMS, CLASSES, settings)
        found, count = accuracy(probes, kind(Table(101, seed=1), 101), batch_size=33)
        return {name: one.layer.weight.detach() for name, one in probes.items()}, found, count

    weights, found, count = work()
    for other in Team(monkeypatch).run(work):
        assert other is not None
        theirs, their_found, their_count = other  # type: ignore[misc]
        assert their_count == count
        assert their_found == found
        for name in DIMS:
            assert torch.allclose(theirs[name], weights[name], atol=1e-5)


@pytest.mark.parametrize("standardize", [True, False])
def test_features_that_are_not_finite_on_one_process_raise_on_both(
    standardize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ProbeSettings(standardize=standardize)
    good, bad = Table(40, seed=0), Table(40, seed=0)
    bad.features["blind"][-1] = torch.nan  # In the second process's share.
    probes = train_probes(Stored(good, 40), DIMS, CLASSES, ProbeSettings())
    for task in (
        lambda: train_probes(Stored(bad, 40), DIMS, CLASSES, settings),
        lambda: accuracy(probes, Stored(bad, 40)),
    ):

        def work(task: Callable[[], object] = task) -> object:
            with pytest.raises(LumitokError, match="features of blind are NaN") as raised:
                task()
            return raised.value

        assert all(isinstance(error, LumitokError) for error in Team(monkeypatch).run(work))


def test_what_it_takes_in_bytes() -> None:
    assert stored_bytes({"a": 3072, "b": 3}, 50_000) == 4 * 3075 * 50_000
    assert layer_bytes(8192, 1000) == 16 * 8193 * 1000


def test_what_it_refuses() -> None:
    table = Table(50, seed=0)
    with pytest.raises(LumitokError, match="at least 2 classes, got 1"):
        train_probes(Stored(table, 50), DIMS, 1)
    with pytest.raises(LumitokError, match="at least one epoch"):
        ProbeSettings(epochs=0)
    table.features["blind"][20, 1] = math.nan
    with pytest.raises(LumitokError, match="features of blind are NaN or infinite"):
        train_probes(Stored(table, 50), DIMS, CLASSES)
    table.bad = set(range(50))
    with pytest.raises(LumitokError, match="none of the pictures to train the probe on"):
        train_probes(Stored(table, 50), DIMS, CLASSES)
    probes = {"told": LinearProbe(8, CLASSES, ProbeSettings(), "cpu")}
    with pytest.raises(LumitokError, match="none of the pictures to measure"):
        accuracy(probes, Stored(table, 50))


def test_the_settings_in_words() -> None:
    assert "Adam 0.001, batch 256, 3 epochs" in ProbeSettings().describe()
    assert "as they are" in ProbeSettings().describe()
    assert "standardised" in ProbeSettings(standardize=True).describe()
