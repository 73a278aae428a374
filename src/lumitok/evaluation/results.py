"""Numbers with their protocols: printed, kept as JSON, and read again by the report."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from lumitok import __version__
from lumitok.errors import LumitokError
from lumitok.evaluation.protocol import Protocol

FOLDER = "evaluation"
"""Folder of a run that holds its results."""

Better = Literal["high", "low", ""]


@dataclass(frozen=True)
class Number:
    """One measured value and how it was made.

    Attributes:
        name: the field's term, such as ``rFID`` or ``linear probe, mean-pooled``.
        value: finite.
        protocol: how it was made.
        unit: such as ``dB`` or ``%``; empty where it has none.
        better: which way is better; empty where neither is.
        spread: standard deviation over the draws that ``value`` is the mean of, where there are several.
    """

    name: str
    value: float
    protocol: Protocol
    unit: str = ""
    better: Better = ""
    spread: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise LumitokError(
                f"{self.name} came out as {self.value}, which is no measurement; look at the features or "
                f"pictures it was made from ({self.protocol.describe()})"
            )


@dataclass
class Results:
    """What one evaluation found.

    Attributes:
        kind: ``reconstruction``, ``generation``, ``representation``, ``latents`` ...
        subject: what was measured: the checkpoint or the samples, as the user named them.
        numbers: in the order they are shown.
        fingerprint: of the tokenizer, where one was measured.
        step: training step of the checkpoint, where it is known.
        per_image: for each metric one value a picture, in the order of ``images``.
        images: names of the pictures.
        left_out: what was not measured: reason -> count.
        tables: anything else worth keeping, by name: histograms, spectra, curves (plain values).
        made: when, UTC.
        version: of lumitok.
    """

    kind: str
    subject: str
    numbers: list[Number]
    fingerprint: str | None = None
    step: int | None = None
    per_image: dict[str, list[float]] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    made: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    version: str = __version__

    def __getitem__(self, name: str) -> float:
        """Return the value of a number by its name."""
        for number in self.numbers:
            if number.name == name:
                return number.value
        raise KeyError(name)

    def common(self) -> Protocol:
        """Return what all numbers' protocols share; they all have the same data."""
        protocols = [number.protocol for number in self.numbers]
        if not protocols:
            raise LumitokError(f"the evaluation of {self.subject} holds no number")
        first = protocols[0]
        shared = {
            name: value
            for name, value in vars(first).items()
            if name == "data" or all(getattr(other, name) == value for other in protocols)
        }
        return Protocol(**shared)

    def save(self, path: Path) -> Path:
        """Write everything as JSON, the folder made if need be; returns the path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        values = asdict(self)
        values["numbers"] = [
            {**{k: v for k, v in vars(number).items() if v not in ("", None)},
             "protocol": number.protocol.to_json()}
            for number in self.numbers
        ]  # fmt: skip
        path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            LumitokError: there is no such file, or it holds something else.
        """
        if not path.is_file():
            raise LumitokError(f"there are no results at '{path}'; `lumitok evaluate` writes them")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            values["numbers"] = [
                Number(**{**number, "protocol": Protocol.from_json(number["protocol"])})
                for number in values["numbers"]
            ]
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LumitokError(f"'{path}' does not hold results of lumitok: {error!r}") from None


def default_path(run: Path, kind: str, data: str) -> Path:
    """Return where a run keeps the results of one kind on one set of pictures."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in data)
    return run / FOLDER / f"{kind}-{plain}.json"


def find_results(run: Path) -> list[Results]:
    """Return all results that a run's folder holds, in the order of their file names."""
    return [Results.load(path) for path in sorted((run / FOLDER).glob("*.json"))]
