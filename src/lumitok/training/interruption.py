"""Leaving in good order when a scheduler or a person asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator

from lumitok.training.checkpoint import Place
from lumitok.training.journal import Journal

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """While it is entered, SIGTERM and the first Ctrl-C only set ``asked``; a second Ctrl-C acts at once.

    A scheduler and a launcher often signal the same process twice, so more SIGTERMs change nothing.

    The loop looks at ``asked`` between steps, saves, and leaves with ``128 + number`` as shells do.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Only it may set handlers.
            # A signal that is ignored, as a shell does with Ctrl-C for what runs in the background, stays so.
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._ask) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.asked = signal.Signals(number)
        if number == signal.SIGINT and number in self._before:
            signal.signal(number, self._before.pop(signal.SIGINT))

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def leave_if_asked(
    accelerator: Accelerator,
    journal: Journal,
    interruption: Interruption,
    place: Place,
    save: Callable[[], None],
) -> None:
    """Save and leave where a signal came to any process.

    Raises:
        SystemExit: one did; the code is 128 plus its number.
    """
    number = 0 if interruption.asked is None else int(interruption.asked)
    asked = torch.tensor([number], device=accelerator.device)
    number = int(accelerator.gather(asked).max())
    if number == 0:
        return
    with journal.pause():
        save()
    journal.say(f"stopped by signal {number} after step {place.step}, saved; go on with --resume")
    raise SystemExit(128 + number)
