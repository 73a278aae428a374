"""Leaving in good order when a scheduler or a person asks for it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

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
