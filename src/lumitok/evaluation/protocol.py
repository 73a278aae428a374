"""How a number was made: the small object that travels with each one.

Two scores may be set side by side where their protocols are alike; :meth:`Protocol.unlike` says where
they are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from lumitok.errors import LumitokError, nearest

Latent = Literal["mean", "sample"]
LATENTS: dict[Latent, str] = {"mean": "posterior's mean", "sample": "posterior sample"}
"""Which latent is decoded or analysed, in the words that stand beside a number."""

SHOWN_DIGITS = 12
"""Digits of a sha256 that are shown to people; all of them are stored and compared."""


@dataclass(frozen=True)
class PictureSet:
    """Which pictures a number speaks of.

    Attributes:
        name: of the folder or file, without the path to it.
        count: pictures that were measured; one that could not be read is not among them.
        files: sha256 over the list of their names and of what is known of their content, see
            :func:`hash_names`.
    """

    name: str
    count: int
    files: str


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a number was made; what does not apply to it is None.

    Attributes:
        data: the pictures that were judged: real ones that were reconstructed, or generated ones.
        reference: the pictures they were held against, where it is another set.
        size: side in pixels at which they were judged.
        preparation: resize and crop that brought them to this size.
        rounding: how decoded values became 8 bits.
        latent: which latent was decoded or analysed: ``posterior's mean`` or ``posterior sample``.
        method: the convention of this metric, in one line, with its parameters.
        extractor: network whose features were compared.
        weights: sha256 of the extractor's weights.
        labels: how the classes of generated pictures were chosen.
        guidance: guidance scale, interval and channels.
        solver: of the flow.
        steps: network evaluations of the solver.
        precision: number type that the model computed in.
        seed: of everything that was drawn. Two seeds are one protocol.
    """

    data: PictureSet
    reference: PictureSet | None = None
    size: int | None = None
    preparation: str | None = None
    rounding: str | None = None
    latent: str | None = None
    method: str | None = None
    extractor: str | None = None
    weights: str | None = None
    labels: str | None = None
    guidance: str | None = None
    solver: str | None = None
    steps: int | None = None
    precision: str | None = None
    seed: int | None = None

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) of all that applies, hashes shortened, for people to read."""
        found = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if isinstance(value, PictureSet):
                value = f"{value.name}, {value.count:,} pictures, list {value.files[:SHOWN_DIGITS]}"
            elif field.name == "size":
                value = f"{value} px"
            elif field.name == "weights":
                value = value[:SHOWN_DIGITS]
            found.append((field.name, str(value)))
        return found

    def describe(self, without: Protocol | Collection[tuple[str, str]] = ()) -> str:
        """Return the protocol in words, without the lines that ``without`` has or is."""
        known = without.lines() if isinstance(without, Protocol) else without
        return in_words(line for line in self.lines() if line not in known)

    def unlike(self, other: Protocol) -> list[str]:
        """Say, point by point, why a number made this way cannot be set beside one made the other way.

        An empty list: the two are alike. The seed, the pictures' folder name and the order of its listing
        do not count.
        """
        reasons = []
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name == "seed" or mine == theirs:
                continue
            if isinstance(mine, PictureSet) and isinstance(theirs, PictureSet):
                if mine.count != theirs.count:
                    reasons.append(f"{field.name}: {mine.count:,} pictures, not {theirs.count:,}")
                elif mine.files != theirs.files:
                    reasons.append(f"{field.name}: other pictures ({mine.name}, not {theirs.name})")
                continue
            if field.name == "weights":
                mine, theirs = (value and value[:SHOWN_DIGITS] for value in (mine, theirs))
            reasons.append(f"{field.name}: {mine or 'none'}, not {theirs or 'none'}")
        return reasons

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; what does not apply is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            LumitokError: a key is unknown or missing.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise LumitokError(f"a protocol has no '{name}'{nearest(name, known)}")
        try:
            sets = {key: PictureSet(**values[key]) for key in values if key in ("data", "reference")}
            return cls(**{**values, **sets})
        except TypeError as error:
            raise LumitokError(f"this is no protocol of a number: {error}") from None


def common_lines(protocols: Sequence[Protocol]) -> list[tuple[str, str]]:
    """Return (name, value) of all that every one of the protocols says; nothing of no protocols."""
    first, *others = [protocol.lines() for protocol in protocols] or [[]]
    return [line for line in first if all(line in other for other in others)]


def in_words(lines: Iterable[tuple[str, str]]) -> str:
    """Return lines of a protocol as one line of text."""
    return "; ".join(f"{name}: {value}" for name, value in lines)


def hash_names(lines: Iterable[str]) -> str:
    """Return the sha256 over a list of lines, sorted, each with its line break.

    Args:
        lines: one a picture: its name and, after a tab, what is known of its content without decoding it:
            in a folder the file's size in bytes; in a zip that and the CRC-32 in hexadecimal digits; in an
            npz those of the whole array. Two lists with one hash are the same pictures.
    """
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(f"{line}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
