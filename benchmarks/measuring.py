"""Run one function in a process of its own: what it returns, its median seconds and its peak memory."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """``mib``: what resident memory grew by at its peak, inputs not counted; NaN where not on Linux."""

    value: Any
    seconds: float
    mib: float


def in_own_process(
    function: Callable[..., Any],
    make: Callable[[int], tuple[Any, ...]],
    *,
    small: int,
    size: int,
    threads: int,
    rounds: int = 1,
) -> Measured:
    """Measure ``function(*make(size))``, after a first call with ``make(small)`` that loads libraries."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)  # read by the libraries when the new process starts
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, function, make, small, size, rounds).result()


def _measure(
    function: Callable[..., Any], make: Callable[[int], tuple[Any, ...]], small: int, size: int, rounds: int
) -> Measured:
    function(*make(small))
    inputs = make(size)
    before = _peak(reset=True)
    value, seconds = None, []
    for _ in range(rounds):
        start = time.perf_counter()
        value = function(*inputs)
        seconds.append(time.perf_counter() - start)
    return Measured(value, statistics.median(seconds), _peak() - before)


def _peak(*, reset: bool = False) -> float:
    """Peak of resident memory, MiB, since the last reset."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    if reset:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # What making the inputs has freed would otherwise be used again, unseen.
            trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024
