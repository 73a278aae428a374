"""Pictures that cannot be read: what is known of each, and how many a run puts up with."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lumitok.errors import LumitokError

SHOWN = 20
"""Bad pictures that a message names; a file has all."""


class BadPicture(NamedTuple):
    """A picture that cannot be read, and why."""

    name: str
    """As in :attr:`lumitok.data.Pictures.names`."""
    reason: str


class UnreadableError(LumitokError):
    """One picture cannot be read; the others may well be good."""

    def __init__(self, bad: BadPicture, source: str) -> None:
        super().__init__(bad, source)  # As given, so that it can be pickled by a worker.
        self.bad, self.source = bad, source

    def __str__(self) -> str:
        name, reason = self.bad
        return f"cannot read the picture {name!r} of {self.source!r}: {reason}; mend or remove the file"


class BadPictures:
    """The bad pictures that a run has met: each counts once, and too many of them end the run.

    The file holds one object a line, ``{"name": ..., "reason": ...}``. It is read at the start, so that
    a run that is taken up again goes on counting, and replaced as a whole whenever pictures are added.

    Args:
        total: all pictures that were listed.
        share: at most ``share * total`` of them may be bad; 0: the first one ends the run.
        path: the file; None: keep it in memory alone.
        write: whether this process writes the file. Of several processes only one may; all read it,
            so that they agree on the count.

    Raises:
        LumitokError: the file already names too many pictures, is no such list, or cannot be read.
    """

    def __init__(self, total: int, share: float, path: Path | None = None, *, write: bool = True) -> None:
        self.total, self.share, self.path, self.write = total, share, path, write
        # Not cut short by a product such as 0.29 * 100, which falls just below 29.
        self.allowed = math.floor(share * total + 1e-9)
        self._reasons: dict[str, str] = {}
        if path is not None and path.is_file():
            self._reasons = _read(path)
        self._check()

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def names(self) -> list[str]:
        """Names of the bad pictures, in the order in which they were met."""
        return list(self._reasons)

    def add(self, found: Iterable[BadPicture]) -> list[BadPicture]:
        """Enter pictures and return those that were not there yet.

        Raises:
            LumitokError: they are more than is allowed, or the file cannot be written.
        """
        new = []
        for bad in found:
            if bad.name not in self._reasons:
                self._reasons[bad.name] = bad.reason
                new.append(bad)
        if new:
            if self.path is not None and self.write:
                _replace(self.path, self._reasons)
            self._check()
        return new

    def _check(self) -> None:
        if len(self) <= self.allowed:
            return
        listed = listing([BadPicture(*item) for item in self._reasons.items()], self.path)
        noted = "" if self.path is None else f", delete {self.path}"
        raise LumitokError(
            f"{len(self)} of {self.total} pictures cannot be read, and data.bad_share={self.share:g} allows "
            f"{self.allowed}:\n{listed}\nMend them{noted} and go on with --resume; or allow more of them "
            "with data.bad_share"
        )


def listing(bad: list[BadPicture], path: Path | None = None) -> str:
    """Name the first bad pictures with their reasons, a line each; ``path`` is the file that has all."""
    lines = [f"  {name!r}: {reason}" for name, reason in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"  ... and {len(bad) - SHOWN} more" + ("" if path is None else f"; all are in {path}"))
    return "\n".join(lines)


def _read(path: Path) -> dict[str, str]:
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {str(entry["name"]): str(entry["reason"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LumitokError(
            f"cannot read the list of bad pictures in {path} ({error}); delete it to start the count anew"
        ) from None


def _replace(path: Path, reasons: dict[str, str]) -> None:
    partial = path.with_name(path.name + ".partial")
    lines = [json.dumps({"name": name, "reason": reason}) + "\n" for name, reason in reasons.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise LumitokError(f"cannot write the list of bad pictures to {path}: {error.strerror}") from None
