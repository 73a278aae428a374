"""What a reader is told of the pictures that an evaluation was given."""

from __future__ import annotations

from collections.abc import Sequence

from lumitok.data import BadPicture
from lumitok.errors import some
from lumitok.evaluation.picture_sets import PictureSource, find_duplicates

SHOWN = 3
"""Pictures that a warning names."""


def picture_warnings(
    source: PictureSource,
    used: Sequence[int],
    prints: Sequence[bytes],
    bad: Sequence[BadPicture],
    what: str = "pictures",
) -> list[str]:
    """Name the pictures that could not be read, and those that are there twice.

    Args:
        source: of the pictures.
        used: indices of those that were measured.
        prints: a digest of each of them, see :func:`~lumitok.evaluation.picture_sets.fingerprints`.
        bad: those that could not be read.
        what: the pictures are called.

    Returns:
        Sentences to print; none where all is well.
    """
    found = []
    if bad:
        named = some([f"{one.name!r} ({one.reason})" for one in bad], SHOWN)
        found.append(
            f"{len(bad):,} of the {what} could not be read and are not measured: {named}; mend them before "
            "the numbers are compared with others"
        )
    copies = find_duplicates([source.names[index] for index in used], prints)
    if copies:
        named = some([f"{name!r} (as {first!r})" for name, first in copies], SHOWN)
        found.append(
            f"{len(copies):,} of the {len(used):,} {what} are copies of another, pixel by pixel, and are "
            f"measured all the same: {named}"
        )
    return found
