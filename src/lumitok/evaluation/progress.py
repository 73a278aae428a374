"""What long work shows: how far it is, how fast, and how long it will take; a bar, or lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from lumitok.evaluation.processes import here, is_main

LINE_EVERY = 60.0
"""Seconds between lines where there is no terminal for a bar."""


class _Speed(ProgressColumn):
    """Items a second, averaged by rich over the last half minute."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} {self.unit}/s")


@contextmanager
def show_progress(what: str, total: int, unit: str = "pictures") -> Iterator[Callable[[int], None]]:
    """Show how much of ``total`` is done, on stderr; give what tells it.

    On a terminal a bar, elsewhere a line a minute. Only the main process shows anything: its own share, which
    is as long as the others'.

    Args:
        what: is being done, such as ``reconstructing``.
        total: items of this process.
        unit: their name.

    Yields:
        A function to call with the number of items that are done.
    """
    console = Console(stderr=True)
    processes = here().num_processes
    shown = what if processes == 1 else f"{what}, process 1 of {processes}"
    if not is_main():
        yield lambda _: None
    elif not console.is_terminal:
        yield _Lines(shown, total, unit)
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(unit))
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(shown, total=total)
            yield lambda done: bar.update(task, completed=done)


class _Lines:
    """Writes a line now and then."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.begun = self.told = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.told < LINE_EVERY or not done:
            return
        self.told = now
        speed = done / (now - self.begun)
        left = time.strftime("%H:%M:%S", time.gmtime((self.total - done) / speed))
        line = f"{self.what}: {done:,} of {self.total:,} {self.unit}, {speed:.3g} a second, {left} left"
        print(line, file=sys.stderr, flush=True)
