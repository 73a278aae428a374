"""Evaluation over several processes: each takes its share, every picture counts once.

Started by ``accelerate launch`` or ``torchrun``; one process alone is the simplest case of it. Shares are
contiguous and may be empty: nothing is padded, so nothing is counted twice.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable
from functools import cache
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from lumitok.errors import LumitokError

T = TypeVar("T")


def here() -> PartialState:
    """Return this process's place among the others, joined to them where they were started together."""
    # Without an accelerator it must be told so: under torchrun it takes itself for alone otherwise.
    state = PartialState(cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()))
    if state.num_processes > 1:
        _leave_at_the_end()
    return state


@cache
def _leave_at_the_end() -> None:
    """Part from the others before the interpreter ends: their threads would abort it in the midst of that."""

    def leave() -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    atexit.register(leave)


def share(count: int) -> range:
    """Return which of ``count`` items are this process's: a contiguous part, in order."""
    state = here()
    size, rest = divmod(count, state.num_processes)
    start = state.process_index * size + min(state.process_index, rest)
    return range(start, start + size + (state.process_index < rest))


def gather(mine: Iterable[T]) -> list[T]:
    """Return every process's items, in the order of the processes, on each of them."""
    items = list(mine)
    return items if here().num_processes == 1 else list(gather_object(items))


def together(work: Callable[[], T]) -> list[T]:
    """Do this process's part of the work and return everyone's; an error of one, all of them raise.

    A process that raised alone would leave the others waiting for it.
    """
    mine: T | LumitokError
    try:
        mine = work()
    except LumitokError as error:
        mine = error
    parts = []
    for part in gather([mine]):
        if isinstance(part, LumitokError):
            raise part
        parts.append(part)
    return parts


def is_main() -> bool:
    """Whether this process prints and writes."""
    return bool(here().is_main_process)
