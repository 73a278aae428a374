"""The linear probes of ``lumitok evaluate representation``: two sets' features, and the layers on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lumitok.data import BadPicture
from lumitok.errors import LumitokError, some
from lumitok.evaluation.picture_sets import PictureSource
from lumitok.evaluation.probe import (
    Examples,
    ProbeSettings,
    Source,
    Stored,
    Streamed,
    accuracy,
    layer_bytes,
    stored_bytes,
    train_probes,
)
from lumitok.evaluation.processes import gather, here
from lumitok.evaluation.representations import Representation

GIB = 1024**3
POOLED, FLATTENED = "mean-pooled", "flattened"

Report = Callable[[str], None]
Steps = Callable[[str, int], Callable[[int], None]]
"""(what, how many pictures) -> what to call with the number that are done."""


@dataclass(frozen=True)
class ProbeFound:
    """What the probes found.

    Attributes:
        accuracy: top-1, in [0, 1], by block and pooling.
        trained: places of the training pictures in their set.
        measured: places of the pictures in the set they were measured on.
        bad: unreadable pictures of the training set, and of the other.
        too_large: probes that were not trained, by reason.
    """

    accuracy: dict[tuple[str, str], float]
    trained: list[int]
    measured: list[int]
    bad: tuple[list[BadPicture], list[BadPicture]]
    too_large: dict[str, int]


def run_probes(
    train: PictureSource,
    places: Sequence[int],
    data: PictureSource,
    representations: Sequence[Representation],
    blocks: Sequence[str],
    settings: ProbeSettings,
    *,
    batch_size: int,
    memory: float,
    device: torch.device,
    say: Report,
    steps: Steps,
) -> ProbeFound:
    """Train probes on ``train`` at ``places`` and measure them on all of ``data``.

    Args:
        train: pictures with classes.
        places: which of them.
        data: pictures with the same classes.
        representations: networks.
        blocks: those of their blocks that are probed, mean-pooled and flattened.
        settings: of the training.
        batch_size: pictures that go through the networks at a time.
        memory: GiB that the features may take on each process before they are read anew in every epoch
            instead, and that one probe may take at all.
        device: of the networks and the layers.
        say: tells people something.
        steps: shows progress.

    Raises:
        LumitokError: no classes, or other classes in one set than in the other.
    """
    classes = common_classes(train, data)
    dims, too_large = _fitting(_dims(representations, blocks, train.size, device), len(classes), memory)
    if not dims:
        raise LumitokError(f"no probe fits into {memory:g} GiB; allow more memory, or probe smaller pictures")
    readers = [
        _Reader(source, _numbers(source, classes), chosen, representations, dims, batch_size, device)
        for source, chosen in ((train, places), (data, range(len(data))))
    ]
    counts = (len(places), len(data))
    sources, passes = _sources(readers, counts, dims, settings, memory, say, steps)
    advance = steps("training linear probes", counts[0] * settings.epochs) if passes > 1 else None
    probes = train_probes(sources[0], dims, len(classes), settings, device=device, advance=advance)
    advance = steps("measuring linear probes", counts[1]) if passes > 1 else None
    found, _ = accuracy(probes, sources[1], batch_size=settings.batch_size, advance=advance)
    named = {_split(name): value for name, value in found.items()}
    (trained, train_bad), (measured, data_bad) = (reader.met() for reader in readers)
    return ProbeFound(named, trained, measured, (train_bad, data_bad), too_large)


def common_classes(train: PictureSource, data: PictureSource) -> list[str]:
    """Return the names of the classes of both sets, sorted.

    Raises:
        LumitokError: a set has no classes, or they differ.
    """
    found = []
    for source in (train, data):
        if source.labels is None:
            raise LumitokError(
                f"'{source.name}' has no classes, and a linear probe needs them; put its pictures into one "
                "folder a class, or leave the training data out to do without a probe"
            )
        found.append(set(_class_names(source)))
    if found[0] != found[1]:
        only = [sorted(found[0] - found[1]), sorted(found[1] - found[0])]
        said = [
            f"only '{source.name}' has {some(names, 5)}"
            for source, names in zip((train, data), only, strict=True)
            if names
        ]
        raise LumitokError(
            f"the training set and the set to measure on have other classes: {'; '.join(said)}; a probe "
            "needs the same class folders in both"
        )
    return sorted(found[0])


class _Reader:
    """Reads features of pictures by their places in a choice of a set's pictures; remembers what it met."""

    def __init__(
        self,
        source: PictureSource,
        labels: Sequence[int],
        places: Sequence[int],
        representations: Sequence[Representation],
        dims: Mapping[str, int],
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._source, self._labels, self._places = source, labels, places
        self._representations, self._dims = representations, dims
        self._batch_size, self._device = batch_size, device
        self._used: set[int] = set()
        self._bad: dict[str, BadPicture] = {}
        self.advance: Callable[[int], None] | None = None

    @torch.no_grad()
    def __call__(self, positions: Sequence[int]) -> tuple[Examples, list[int]]:
        position = {self._places[i]: i for i in positions}
        parts: dict[str, list[Tensor]] = {name: [torch.empty(0, dim)] for name, dim in self._dims.items()}
        used: list[int] = []
        batches = self._source.batches(list(position), self._batch_size, self._note) if position else ()
        for pixels, read in batches:
            x = pixels.to(self._device).float() / 255
            for name, values in _probe_inputs(self._representations, self._dims, x, read):
                parts[name].append(values.cpu())
            used += read
            if self.advance is not None:
                self.advance(len(read))
        self._used.update(used)
        labels = torch.tensor([self._labels[place] for place in used], dtype=torch.int64)
        features = {name: torch.cat(tables) for name, tables in parts.items()}
        return Examples(features, labels), [position[place] for place in used]

    def met(self) -> tuple[list[int], list[BadPicture]]:
        """Return the places that were read and the bad pictures, of all processes."""
        parts = gather([(self._used, self._bad)])
        used = sorted({place for own, _ in parts for place in own})
        return used, list({name: bad for _, own in parts for name, bad in own.items()}.values())

    def _note(self, bad: BadPicture) -> None:
        self._bad[bad.name] = bad


def _sources(
    readers: Sequence[_Reader],
    counts: tuple[int, int],
    dims: Mapping[str, int],
    settings: ProbeSettings,
    memory: float,
    say: Report,
    steps: Steps,
) -> tuple[list[Source], int]:
    """Store the features where they fit; also return how often the pictures are read."""
    size = stored_bytes(dims, sum(counts)) / here().num_processes / GIB
    passes = settings.epochs + settings.standardize
    if size > memory:
        say(
            f"the features of {sum(counts):,} pictures would take {size:.1f} GiB, more than the {memory:g} "
            f"allowed: the training pictures are read {passes} times instead"
        )
        return [Streamed(reader, count) for reader, count in zip(readers, counts, strict=True)], passes
    say(f"the features of {sum(counts):,} pictures take {size:.2f} GiB")
    sources: list[Source] = []
    for reader, count, what in zip(readers, counts, ("training", "validation"), strict=True):
        reader.advance = steps(f"features of the {what} set", count)
        sources.append(Stored(reader, count))
    return sources, 1


def _dims(
    representations: Sequence[Representation], blocks: Sequence[str], size: int, device: torch.device
) -> dict[str, int]:
    """Return how many features each probe has, from a blank picture."""
    blank = torch.zeros(1, 3, size, size, device=device)
    dims = {}
    with torch.no_grad():
        for one in representations:
            for name, tokens in one.blocks(blank, [0]):
                if name in blocks:
                    dims[_join(name, POOLED)] = tokens.shape[2]
                    dims[_join(name, FLATTENED)] = tokens.shape[1] * tokens.shape[2]
    return dims


def _fitting(dims: dict[str, int], classes: int, memory: float) -> tuple[dict[str, int], dict[str, int]]:
    """Part the probes into those whose layer fits into memory, and the others, by the reason."""
    sizes = {name: layer_bytes(dim, classes) / GIB for name, dim in dims.items()}
    reasons = {
        f"linear probe, {name}: training its {dims[name]:,} x {classes:,} weights would take {size:.1f} GiB, "
        f"more than the {memory:g} allowed": 1
        for name, size in sizes.items()
        if size > memory
    }
    return {name: dim for name, dim in dims.items() if sizes[name] <= memory}, reasons


def _probe_inputs(
    representations: Sequence[Representation], dims: Mapping[str, int], pixels: Tensor, places: Sequence[int]
) -> list[tuple[str, Tensor]]:
    found = []
    for one in representations:
        for name, tokens in one.blocks(pixels, places):
            if _join(name, POOLED) in dims:
                found.append((_join(name, POOLED), tokens.float().mean(dim=1)))
            if _join(name, FLATTENED) in dims:
                found.append((_join(name, FLATTENED), tokens.float().flatten(1)))
    return found


def _class_names(source: PictureSource) -> list[str]:
    """Return the name of each picture's class: its folder, or its number where the set is an array."""
    labels: Any = source.labels
    return [
        name.split("/")[0] if "/" in name else str(label)
        for name, label in zip(source.names, labels, strict=True)
    ]


def _numbers(source: PictureSource, classes: Sequence[str]) -> list[int]:
    number = {name: i for i, name in enumerate(classes)}
    return [number[name] for name in _class_names(source)]


def _join(block: str, pooling: str) -> str:
    return f"{block}, {pooling}"


def _split(name: str) -> tuple[str, str]:
    block, _, pooling = name.rpartition(", ")
    return block, pooling
