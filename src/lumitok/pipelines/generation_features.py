"""Features of a set of pictures, extracted by one process or shared among several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lumitok.data import BadPicture
from lumitok.errors import LumitokError
from lumitok.evaluation.extractors import SPATIAL_DIM, Extractor
from lumitok.evaluation.frechet import StatisticsGatherer
from lumitok.evaluation.picture_sets import PictureSource, fingerprints
from lumitok.evaluation.processes import share, together
from lumitok.evaluation.progress import show_progress

Need = Literal["statistics", "spatial", "logits", "rows"]
"""What is kept of the features: mean and covariance of the pooled ones, the same of the spatial ones, the
logits, and the pooled ones themselves."""


@dataclass
class Features:
    """What is kept of the pictures that one process, or all of them, have seen.

    Attributes:
        used: indices of the pictures that were measured, in order.
        prints: a digest of each one's pixels.
        bad: the pictures that could not be read.
        rows: pooled features, batch by batch, on the CPU.
        logits: likewise.
        statistics: of the pooled features.
        spatial: of the spatial features.
    """

    used: list[int] = field(default_factory=list)
    prints: list[bytes] = field(default_factory=list)
    bad: list[BadPicture] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    statistics: StatisticsGatherer | None = None
    spatial: StatisticsGatherer | None = None

    def add(self, other: Features) -> None:
        """Put the features of another process behind this one."""
        for name in ("used", "prints", "bad", "rows", "logits"):
            getattr(self, name).extend(getattr(other, name))
        for name in ("statistics", "spatial"):
            if (mine := getattr(self, name)) is not None:
                mine.merge(getattr(other, name))


def extract(
    source: PictureSource,
    indices: Sequence[int],
    extractor: Extractor,
    needs: set[Need],
    batch_size: int,
    what: str,
) -> Features:
    """Extract features of the pictures at ``indices``, shared among the processes; all get everything."""
    mine = [indices[place] for place in share(len(indices))]

    def work() -> Features:
        part = Features()
        part.statistics = StatisticsGatherer(extractor.dim) if "statistics" in needs else None
        part.spatial = StatisticsGatherer(SPATIAL_DIM) if "spatial" in needs else None
        with show_progress(what, len(mine)) as done:
            for pixels, used in source.batches(mine, batch_size, report=part.bad.append):
                found = extractor(pixels)
                pooled = found.pooled.cpu()
                part.used += used
                part.prints += fingerprints(pixels)
                if "rows" in needs:
                    part.rows.append(pooled)
                if part.statistics is not None:
                    part.statistics.update(pooled)
                if part.spatial is not None and found.spatial is not None:
                    part.spatial.update(found.spatial.cpu())
                if "logits" in needs and found.logits is not None:
                    part.logits.append(found.logits.cpu())
                done(len(part.used) + len(part.bad))
        return part

    whole, *others = together(work)
    for other in others:
        whole.add(other)
    if not whole.used:
        raise LumitokError(f"none of the {len(indices):,} {what} of '{source.path}' can be read")
    return whole
