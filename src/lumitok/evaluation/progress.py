"""The bar that an evaluation shows: how far it is, how fast, and how long it will take."""

from __future__ import annotations

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
    """Show how much of ``total`` is done, on stderr and to people only; give what tells the bar.

    Only the main process shows anything: its own share, which is as long as the others'.

    Args:
        what: is being done, such as ``reconstructing``.
        total: items of this process.
        unit: their name.

    Yields:
        A function to call with the number of items that are done.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(unit))
    processes = here().num_processes
    shown = what if processes == 1 else f"{what}, process 1 of {processes}"
    quiet = not is_main() or not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=quiet, transient=True) as bar:
        task = bar.add_task(shown, total=total)
        yield lambda done: bar.update(task, completed=done)
