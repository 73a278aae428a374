"""How the verbs print tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPED_WIDTH = 160
"""Columns where the output goes to a file or a pipe, which has no width of its own."""


def console() -> Console:
    """Return where to print: as wide as the terminal, and plain text into a pipe."""
    from rich.console import Console

    standard = Console(highlight=False, markup=False)
    return standard if standard.is_terminal else Console(highlight=False, markup=False, width=PIPED_WIDTH)


def table(*headings: str) -> Table:
    """Return an empty table without lines; the first column is never broken."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        made.add_column(heading, no_wrap=index == 0, overflow="fold")
    return made
