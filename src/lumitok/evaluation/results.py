"""Numbers with their protocols: printed, kept as JSON, and read again by the report."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from lumitok import __version__
from lumitok.errors import LumitokError
from lumitok.evaluation.protocol import Protocol, common_lines, in_words

FOLDER = "evaluation"
"""Folder of a run that holds its results."""

SETS_APART = frozenset(entry.name for entry in fields(Protocol)) - {"seed", "weights"}
"""What of a protocol makes another measurement of the same run."""

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
        """Return what all numbers' protocols share, of numbers that speak of the same pictures.

        Raises:
            LumitokError: there is no number, or they speak of several sets; :meth:`how` copes with both.
        """
        protocols = [number.protocol for number in self.numbers]
        if not protocols:
            raise LumitokError(f"the evaluation of {self.subject} holds no number")
        shared = {
            name: value
            for name, value in vars(protocols[0]).items()
            if all(getattr(other, name) == value for other in protocols)
        }
        if "data" not in shared:
            raise LumitokError(f"the numbers of {self.subject} speak of several sets of pictures")
        return Protocol(**shared)

    def how(self) -> tuple[str, list[str]]:
        """Say how the numbers were made: what all of them share, and for each what is its own."""
        protocols = [number.protocol for number in self.numbers]
        shared = common_lines(protocols)
        return in_words(shared), [protocol.describe(without=shared) for protocol in protocols]

    def save(self, path: Path) -> Path:
        """Write everything as JSON, the folder made if need be; returns the path.

        Raises:
            LumitokError: there can be no such file.
        """
        check_target(path)
        values = asdict(self)
        values["numbers"] = [
            {**{k: v for k, v in vars(number).items() if v not in ("", None)},
             "protocol": number.protocol.to_json()}
            for number in self.numbers
        ]  # fmt: skip
        text = json.dumps(values, indent=1, allow_nan=False) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise LumitokError(
                f"the results cannot be written to '{path}' ({error.strerror}); name another file"
            ) from None
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


def check_target(path: Path | None) -> None:
    """Refuse a file for results that cannot be written, before the work is done; None is no file.

    Raises:
        LumitokError: the path is a folder, or a file stands where one of its folders would.
    """
    if path is None:
        return
    try:
        folder = path.is_dir()
        above = next((parent for parent in path.parents if parent.exists()), None)
    except OSError as error:  # A name too long, or a folder that is closed to us.
        raise LumitokError(
            f"results cannot be kept in '{path}' ({error.strerror}); name another place"
        ) from None
    if folder:
        raise LumitokError(f"results are kept in one file, and '{path}' is a folder; name a file in it")
    if above is not None and not above.is_dir():
        raise LumitokError(f"results cannot be kept in '{path}': '{above}' is a file; name another place")


def default_path(run: Path, results: Results) -> Path:
    """Return where a run keeps results: ``evaluation/reconstruction-photos-100-ab12cd.json``.

    The name tells the kind, the pictures, their count, and by its digits all else that sets a measurement
    apart. The same measurement, repeated, replaces the one before; the seed, and the weights that were
    measured, make it no other.
    """
    made: list[dict[str, Any]] = []
    for number in results.numbers:
        how = {name: value for name, value in number.protocol.to_json().items() if name in SETS_APART}
        files = [how.pop(name)["files"] for name in ("data", "reference") if name in how]
        made.append({"name": number.name, "files": files, **how})
    digits = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:6]
    data = results.numbers[0].protocol.data if results.numbers else None
    name, count = (data.name, data.count) if data is not None else ("nothing", 0)
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    return run / FOLDER / f"{results.kind}-{plain}-{count}-{digits}.json"
