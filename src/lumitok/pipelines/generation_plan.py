"""What is measured of generated pictures, whether there are enough of them, and what a reader is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lumitok.errors import LumitokError, nearest
from lumitok.evaluation import inception_score, kid, precision_recall
from lumitok.evaluation.extractors import INCEPTION
from lumitok.evaluation.picture_sets import PictureSource, ReferenceStatistics
from lumitok.pipelines.generation_features import Features, Need
from lumitok.pipelines.picture_warnings import picture_warnings

INCEPTION_METRICS = ("fid", "sfid", "is", "precision", "recall", "kid")
ENCODER_METRICS = ("fd", "precision", "recall", "kd")
"""What can be asked for on Inception, and on any other encoder."""
USUAL_COUNTS = (50_000, 10_000, 5_000)
"""Samples that papers take; nearly all of them the first."""

NEEDS: dict[str, Need] = {
    "fid": "statistics",
    "fd": "statistics",
    "sfid": "spatial",
    "is": "logits",
    "precision": "rows",
    "recall": "rows",
    "kid": "rows",
    "kd": "rows",
}


@dataclass(frozen=True)
class Settings:
    """Parameters of the metrics; the defaults are the published ones.

    Attributes:
        k: neighbours that set a radius, for precision and recall.
        split_size: images in one split of the Inception score.
        kid_subsets: subsets of KID.
        kid_subset_size: images in one of them.
    """

    k: int = precision_recall.K
    split_size: int = inception_score.ADM["split_size"]
    kid_subsets: int = kid.SUBSETS
    kid_subset_size: int = kid.SUBSET_SIZE


@dataclass(frozen=True)
class Sampling:
    """How the samples were made, as whoever made them says; it goes into every number's protocol.

    Attributes:
        labels: how their classes were chosen.
        guidance: guidance scale, interval and channels.
        solver: of the flow.
        steps: network evaluations of the solver.
    """

    labels: str | None = None
    guidance: str | None = None
    solver: str | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise LumitokError(f"got {self.steps} steps of the solver, wanted at least 1")


class Plan:
    """What is to be measured, against what, and what is to be said about it."""

    def __init__(
        self,
        samples: PictureSource,
        against: PictureSource | ReferenceStatistics,
        settings: Settings,
        seed: int,
    ) -> None:
        self.samples, self.settings, self.seed = samples, settings, seed
        self.stored = against if isinstance(against, ReferenceStatistics) else None
        self.pictures = against.pictures if isinstance(against, ReferenceStatistics) else against
        self.metrics: list[str] = []
        self.not_measured: dict[str, str] = {}
        """Metrics that nobody named and that there are too few pictures for, and why."""
        self._named = False
        self.warnings: list[str] = []

    def choose_metrics(self, encoder: str, wanted: Sequence[str] | None) -> None:
        """Take the wanted metrics, or all that can be taken; say which cannot."""
        known = INCEPTION_METRICS if encoder == INCEPTION else ENCODER_METRICS
        for name in wanted or ():
            if name not in known:
                raise LumitokError(
                    f"the metrics on '{encoder}' are {', '.join(known)}, not '{name}'{nearest(name, known)}"
                )
        lacking = []
        if self.pictures is None:
            lacking += ["precision", "recall", "kid"]
        if self.stored is not None and self.stored.spatial is None:
            lacking += ["sfid"]
        refused = [name for name in wanted or known if name in lacking]
        if refused and (wanted or len(refused) == len(known)):
            raise LumitokError(
                f"{', '.join(refused)} cannot be taken against '{self._reference_name()}', which holds other "
                "statistics and no pictures; give a folder, a zip or an npz of pictures as the reference"
            )
        if refused:
            self.warnings.append(
                f"{', '.join(refused)} left out: '{self._reference_name()}' does not hold what they need"
            )
        self._named = bool(wanted)
        self.metrics = [name for name in known if name in (wanted or known) and name not in refused]

    def check(self, count: int) -> None:
        """Refuse, before the work, what would be refused after it; warn of counts that papers do not take.

        A metric that was not named is left out where there are too few pictures for it.
        """
        reference = len(self.pictures) if self.pictures is not None else None
        settings = self.settings
        fewest = {
            "is": (settings.split_size, "one of its splits", "its split size", False),
            "precision": (settings.k + 1, f"k = {settings.k} neighbours of each", "k", True),
            "recall": (settings.k + 1, f"k = {settings.k} neighbours of each", "k", True),
            "kid": (settings.kid_subset_size, "one of its subsets", "its subset size", True),
            "kd": (settings.kid_subset_size, "one of its subsets", "its subset size", True),
            "fid": (2, "a covariance", "", self.stored is None),
            "fd": (2, "a covariance", "", True),
            "sfid": (2, "a covariance", "", self.stored is None),
        }
        for name in list(self.metrics):
            least, why, setting, both = fewest[name]
            found = {"samples": count} | ({"reference pictures": reference} if both else {})
            for what, number in found.items():
                if number is None or number >= least:
                    continue
                lack = f"needs at least {least:,} {what} ({why}), found {number:,}; give more"
                change = f", lower {setting} and report it" if setting else ""
                if self._named:
                    raise LumitokError(f"{name} {lack}, leave {name} out of the metrics{change}")
                self.not_measured.setdefault(name, f"it {lack}{change}")
        self.metrics = [name for name in self.metrics if name not in self.not_measured]
        if not self.metrics:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.not_measured.items())
            raise LumitokError(f"nothing can be measured of '{self.samples.path}'. {reasons}")
        if self.pictures is not None and self.pictures.size != self.samples.size:
            raise LumitokError(
                f"the samples have {self.samples.size} px a side and the reference pictures "
                f"{self.pictures.size}; distances between sizes mean nothing: take the reference made at "
                f"{self.samples.size} px, or a size that both are cropped to"
            )
        self._warn_of_counts(count, reference)

    def _warn_of_counts(self, count: int, reference: int | None) -> None:
        distances = [name for name in self.metrics if name in ("fid", "sfid", "fd")]
        if not distances:
            return
        if count not in USUAL_COUNTS:
            self.warnings.append(
                f"a Fréchet distance depends on the count, by about 1/n, and this one is taken on {count:,} "
                f"samples; papers take {USUAL_COUNTS[0]:,}: compare it with numbers of the same count only"
            )
        elif count != USUAL_COUNTS[0]:
            self.warnings.append(
                f"{count:,} samples: most papers take {USUAL_COUNTS[0]:,}, and a Fréchet distance on fewer "
                "is larger; compare equal counts only"
            )
        if self.stored is None and reference is not None and reference < count:
            self.warnings.append(
                f"there are fewer reference pictures ({reference:,}) than samples ({count:,}), which makes a "
                "Fréchet distance larger than one against a whole data set"
            )
        if self.stored is not None and self.pictures is None:
            self.warnings.append(
                f"'{self.stored.name}' holds statistics alone and does not say at which size they were made; "
                f"the samples have {self.samples.size} px"
            )

    def needs(self) -> set[Need]:
        """What must be kept of the samples' features."""
        return {NEEDS[name] for name in self.metrics}

    def reference_needs(self) -> set[Need]:
        """What must be kept of the reference pictures' features."""
        stored: set[Need] = {"statistics", "spatial"} if self.stored is not None else set()
        return self.needs() - {"logits"} - stored

    def warn_of(self, source: PictureSource, part: Features, what: str) -> None:
        """Name the pictures that could not be read, and those that are there twice."""
        self.warnings += picture_warnings(source, part.used, part.prints, part.bad, what)

    def _reference_name(self) -> str:
        if self.stored is not None:
            return self.stored.name
        assert self.pictures is not None
        return self.pictures.name


def class_counts(labels: Sequence[int]) -> str:
    """Say how many pictures there are of each class: ``balanced, 50 a class, 1,000 classes``."""
    counts = Counter(labels).values()
    classes = f"{len(counts):,} class{'' if len(counts) == 1 else 'es'}"
    fewest, most = min(counts), max(counts)
    if fewest == most:
        return f"balanced, {most:,} a class, {classes}"
    return f"{classes}, {fewest:,} to {most:,} a class"
