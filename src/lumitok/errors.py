"""The one exception that means: the user can put this right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class LumitokError(Exception):
    """Something a user can mend: the message says what was found, what was wanted and what to do.

    The command line prints it as one sentence, without a traceback; library code raises it for
    anything a user can cause and keeps ``assert`` for its own invariants.
    """


def nearest(wrong: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``wrong``, or an empty string."""
    match = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


def some(names: Sequence[str], shown: int) -> str:
    """``a, b and 7 more``: the first ``shown`` names, and how many there are besides."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
